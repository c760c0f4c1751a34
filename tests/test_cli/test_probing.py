"""Probes of several checkpoints: their names and seeds, the table, errors."""

from pathlib import Path

import matplotlib.figure
import pytest

from crd_plugin.cli.arguments import UsageError
from crd_plugin.cli.comparison import compare, read_published, read_table_runs
from crd_plugin.cli.probing import plan_probes, plot_probes, render_probes
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


def test_random_weights_with_the_seeds_of_the_others():
    checkpoints = touch('work_dirs/kd_x/seed_1/epoch_9.pth', 'work_dirs/kd_x/seed_2/epoch_9.pth')
    runs = plan_probes([STL10], ['random', *checkpoints], [], Path('probes'))
    found = {(str(run.run_dir.relative_to('probes')), run.missing) for run in runs}
    names = [f'{name}/seed_{seed}' for name in ('random', 'kd_x') for seed in (1, 2)]
    assert found == {(f'{STL10.stem}/{name}', '') for name in names}
    random = [run for run in runs if 'random' in run.name]
    assert [run.settings.config.model.backbone_ckpt for run in random] == [None, None]
    (run,) = plan_probes([STL10], ['random'], [], Path('probes'))
    assert run.seed == 0
    before = runs[1].teacher
    Path(checkpoints[-1]).write_text('other weights')  # at the same place are probed again
    runs = plan_probes([STL10], checkpoints, [], Path('probes'))
    assert runs[1].teacher != before


@pytest.mark.parametrize(
    'config, checkpoints, message',
    [
        (
            STL10,
            ['gone.pth'],
            '^--probe gone.pth does not exist; give paths of .pth files, or rando',
        ),
        (
            STL10,
            ['a/kd/epoch_1.pth', 'b/kd/epoch_1.pth'],
            '^--probe a/kd/.* and b/kd/.* are both kd with seed 0; give one of them.$',
        ),
        (
            tables.STUDENT,
            ['a/kd/epoch_1.pth'],
            r'^--probe: .*digits.py has no model.backbone_ckpt; ',
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
    text = render_probes(runs)
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


def test_bars_of_all_probes(monkeypatch):
    """A group per config, a bar per network, heights and deviations of the seeds."""
    axes = []
    monkeypatch.setattr(
        matplotlib.figure.Figure, 'savefig', lambda self, path, **kwargs: axes.append(self.axes[0])
    )
    for config, name, seed, top1 in (
        ('probe_a', 'crd_t_s', 0, 50.0),
        ('probe_a', 'crd_t_s', 1, 54.0),
        ('probe_a', 'random', 0, 20.0),
        ('finetune_a', 'crd_t_s', 0, 60.0),
    ):
        more = dict(config=f'configs/{config}.py', teacher=str(seed), signature=str(seed))
        more['options'] = [f'model.backbone_ckpt={seed}.pth', 'a=1']
        tables.write_run(Path('w', config), name, seed, [1.0, 2.0, top1], **more)
    tables.write_run(Path('w'), 'crd', 0, [1.0, 2.0, 99.0])
    rows = compare(read_table_runs(['w']), read_published())
    assert {row['config'] for row in rows} == {
        'probe_a of crd_t_s',
        'probe_a of random',
        'finetune_a of crd_t_s',
        'crd',
    }
    assert all(row['notes'] == ['trained with a=1'] for row in rows if ' of ' in row['config'])
    plot_probes(rows, 'plot.png')
    bars = [bar.get_height() for bar in axes[0].patches if bar.get_height()]
    assert sorted(bars) == [20.0, 52.0, 60.0]
    assert [text.get_text() for text in axes[0].figure.legends[0].get_texts()] == ['crd', 'random']
    labels = [text.get_text() for text in axes[0].get_xticklabels()]
    assert labels == ['finetune\na', 'probe\na']
    (line,) = (
        line
        for container in axes[0].containers
        if (line := getattr(container, 'errorbar', None)) and container[0].get_height() == 52
    )
    low, high = line.lines[2][0].get_segments()[0][:, 1]
    assert (high - low) / 2 == pytest.approx(8**0.5)
    with pytest.raises(ValueError, match='^--plot: no probe has finished; wait for tools/run_tab'):
        plot_probes([row for row in rows if row['config'] == 'crd'], 'plot.png')
