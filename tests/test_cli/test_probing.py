"""Probes of several checkpoints: their names and seeds, the table, errors."""

from pathlib import Path

import pytest

from crd_plugin.cli.arguments import UsageError
from crd_plugin.cli.comparison import compare, read_published, read_table_runs
from crd_plugin.cli.probing import plan_probes
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


def plan(*checkpoints, configs=(STL10,), options=()):
    return plan_probes(configs, checkpoints, options, Path('probes'))


def test_runs_are_named_after_their_checkpoints():
    checkpoints = touch('w/kd_x/seed_1/epoch_240.pth', 'w/crd_x/seed_2/epoch_9.pth', 'net-abc.pth')
    options = ['train_cfg.max_epochs=3']
    runs = plan(*checkpoints, checkpoints[0], configs=[STL10, TINY], options=options)
    assert [str(run.run_dir) for run in runs] == [
        f'probes/{config.stem}/{name}'
        for name in ('kd_x/seed_1', 'crd_x/seed_2', 'net-abc/seed_0')
        for config in (STL10, TINY)
    ]
    assert [run.seed for run in runs[::2]] == [1, 2, 0]
    assert [run.settings.config.model.backbone_ckpt for run in runs[::2]] == checkpoints
    assert {run.settings.epochs for run in runs} == {3}
    assert all(run.state == 'new' and not run.missing for run in runs)
    Path(checkpoints[-1]).write_text('other weights')  # at the same place are probed again
    assert plan(checkpoints[-1])[0].teacher != runs[-1].teacher


def test_random_weights_with_the_seeds_of_the_others():
    checkpoints = touch('w/kd_x/seed_1/epoch_9.pth', 'w/kd_x/seed_2/epoch_9.pth')
    *_, first, second = plan('random', *checkpoints)
    for seed, run in ((1, first), (2, second), (0, *plan('random'))):
        assert str(run.run_dir) == f'probes/{STL10.stem}/random/seed_{seed}' and run.seed == seed
        assert run.settings.config.model.backbone_ckpt is None and not run.missing


@pytest.mark.parametrize(
    'config, words, message',
    [
        (STL10, ['gone.pth'], '--probe gone.pth does not exist; give the path of a .pth file.'),
        (STL10, ['a', 'b'], '--probe a/kd/.* and b/kd/.* are both kd with seed 0; give one of the'),
        (tables.STUDENT, ['a'], r'--probe: .*digits.py has no model.backbone_ckpt; '),
    ],
)
def test_wrong_arguments(config, words, message):
    files = {word: f'{word}/kd/epoch_1.pth' for word in 'ab'}
    touch(*files.values())
    with pytest.raises(UsageError, match=f'^{message}'):
        plan(*(files.get(word, word) for word in words), configs=[config])


def test_a_table_beside_the_published_figures():
    """Also the other columns of the published table, and differences to KD on the same images."""
    crd, kd = (f'{method}_wrn40-2_wrn16-2_b64-240e_cifar100' for method in ('crd', 'kd'))
    for name, seed, top1 in ((crd, 0, 70.0), (crd, 1, 72.0), (kd, 1, 71.0), ('own', 0, 50.0)):
        more = dict(config=STL10.as_posix(), signature=str(top1), teacher=str(top1))
        more['options'] = [f'model.backbone_ckpt={top1}.pth', 'a=1']
        tables.write_run(Path('w', STL10.stem), name, seed, [1.0, 2.0, top1], **more)
    tables.write_run(Path('w'), kd, 1, [1.0, 2.0, 99.0])  # on the images of its training
    rows = {row['config']: row for row in compare(read_table_runs(['w']), read_published())}
    probe = rows[f'{STL10.stem} of {crd}']
    assert probe['published'] == 71.6 and probe['last']['mean'] == 71 and probe['seeds'] == [0, 1]
    assert probe['to_kd']['mean'] == 1 and probe['to_kd']['seeds'] == [1]
    assert rows[f'{STL10.stem} of own']['published'] is None
    missing = rows[f'{STL10.stem} of crd-{kd}']
    assert missing['published'] == 72.2 and missing['last'] is None
    # That the seeds probe different networks is not worth a note.
    assert all(
        row['notes'] == ['trained with a=1'] * bool(row['last'])
        for row in rows.values()
        if ' of ' in row['config']
    )
