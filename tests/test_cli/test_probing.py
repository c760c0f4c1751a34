"""Probes of several checkpoints: their names and seeds, the table, errors."""

from pathlib import Path

import pytest

from crd_plugin.cli.arguments import UsageError
from crd_plugin.cli.probing import plan_probes, render_probes
from tests import tables
from tests.config_files import CONFIGS

STL10 = CONFIGS / 'transfer' / 'probe_wrn16-2_b64-120e_stl10.py'
TINY = CONFIGS / 'transfer' / 'probe_wrn16-2_b64-120e_tiny-imagenet.py'


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def touch(*names):
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    return list(names)


def test_runs_are_named_after_their_checkpoints():
    checkpoints = touch(
        'work_dirs/kd_x/epoch_240.pth',
        'work_dirs/kd_x/seed_1/epoch_240.pth',
        'work_dirs/crd_x/seed_2/best_accuracy_top1_epoch_9.pth',
        'published/net-abcdef01.pth',
    )
    runs = plan_probes([STL10, TINY], checkpoints, ['train_cfg.max_epochs=3'], Path('probes'))
    names = ('kd_x/seed_0', 'kd_x/seed_1', 'crd_x/seed_2', 'net-abcdef01/seed_0')
    assert [str(run.run_dir) for run in runs] == [
        f'probes/{config.stem}/{name}' for name in names for config in (STL10, TINY)
    ]
    assert [run.seed for run in runs[::2]] == [0, 1, 2, 0]
    assert [run.settings.config.model.backbone_ckpt for run in runs[::2]] == checkpoints
    assert {run.settings.epochs for run in runs} == {3}
    assert all(run.state == 'new' and not run.missing for run in runs)


def test_another_file_at_the_same_place_is_probed_again():
    (checkpoint,) = touch('kd_x/epoch_240.pth')
    (before,) = plan_probes([STL10], [checkpoint], [], Path('probes'))
    Path(checkpoint).write_text('other weights')
    (after,) = plan_probes([STL10], [checkpoint], [], Path('probes'))
    assert before.teacher != after.teacher


@pytest.mark.parametrize(
    'config, checkpoints, message',
    [
        (STL10, ['gone.pth'], '^--probe gone.pth does not exist; give paths of .pth files.$'),
        (
            STL10,
            ['a/kd/epoch_1.pth', 'b/kd/epoch_1.pth'],
            '^--probe a/kd/.* and b/kd/.* are both kd with seed 0; give one of them.$',
        ),
        (
            tables.STUDENT,
            ['a/kd/epoch_1.pth'],
            r'^--probe: .*digits.py has no model.backbone_ckpt; .*probe_\*.py.$',
        ),
    ],
)
def test_wrong_arguments(config, checkpoints, message):
    touch('a/kd/epoch_1.pth', 'b/kd/epoch_1.pth')
    with pytest.raises(UsageError, match=message):
        plan_probes([config], checkpoints, [], Path('probes'))


def test_a_table_beside_the_published_figures():
    name = 'crd_wrn40-2_wrn16-2_b64-240e_cifar100'
    checkpoints = touch(f'work_dirs/{name}/seed_0/epoch_240.pth', 'work_dirs/own/epoch_9.pth')
    touch(f'work_dirs/{name}/seed_1/epoch_240.pth')
    checkpoints.append(f'work_dirs/{name}/seed_1/epoch_240.pth')
    runs = plan_probes([STL10], checkpoints, [], Path('probes'))
    for run, top1 in zip(runs, (70.0, 50.0, 72.0)):
        options = [f'model.backbone_ckpt={run.settings.config.model.backbone_ckpt}']
        tables.write_run(
            run.run_dir.parents[1],
            run.run_dir.parent.name,
            run.seed,
            [1.0, 2.0, top1],
            options=options,
            signature=str(top1),
            config=STL10.as_posix(),
        )
    text = render_probes(runs, [])
    assert text.startswith('\n## probe_wrn16-2_b64-120e_stl10\n')
    rows = {
        line.split('|')[1].strip(): [cell.strip() for cell in line.split('|')[2:-1]]
        for line in text.splitlines()
        if line.startswith('|')
    }
    assert rows[name][:5] == ['71.60', '71.00 ± 1.41', '71.00 ± 1.41', '-0.60', '2']
    assert rows['own'][:2] == ['-', '50.00']
    # The other columns of the published table.
    assert rows['crd-kd_wrn40-2_wrn16-2_b64-240e_cifar100'][:2] == ['72.20', 'missing']
    assert rows['vanilla_wrn16-2_b64-240e_cifar100'][0] == '69.70'
    assert len(rows) == 2 + 6 + 1
    assert 'different' not in text and 'trained with' not in text
