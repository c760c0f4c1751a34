"""Grids of settings, probes of checkpoints: names, runs, the plot, errors."""

from pathlib import Path

import matplotlib.figure
import pytest

from crd_plugin.cli.arguments import UsageError
from crd_plugin.cli.comparison import compare, read_published, read_table_runs
from crd_plugin.cli.sweeps import name_run, plan_probes, plot_rows, read_sweep
from tests.config_files import CONFIGS
from tests.tables import STUDENT, write_run

STL10 = CONFIGS / 'transfer' / 'probe_wrn16-2_b64-120e_stl10.py'
TINY = CONFIGS / 'transfer' / 'probe_wrn16-2_b64-120e_tiny-imagenet.py'
T, K = 'model.loss.temperature', 'model.loss.num_negatives'


def test_combinations_and_names():
    assert read_sweep([]) == [{}] and name_run('crd', {}) == 'crd'
    grid = read_sweep([f'{T}=0.1,0.2', f'{K}=16'])
    assert grid == [{T: '0.1', K: '16'}, {T: '0.2', K: '16'}]
    assert name_run('crd', grid[1]) == 'crd,temperature=0.2,num_negatives=16'
    # Two keys that end alike are written out; brackets hold a list together.
    assert name_run('crd', {'a.x': '1', 'b.x': '2'}) == 'crd,a.x=1,b.x=2'
    assert read_sweep(['a=[1,2],(3,4),5']) == [{'a': '[1,2]'}, {'a': '(3,4)'}, {'a': '5'}]
    assert read_sweep(['a="x,y",z']) == [{'a': '"x,y"'}, {'a': 'z'}]
    assert name_run('crd', {'ckpt': 'a/b.pth'}) == 'crd,ckpt=a_b.pth'


@pytest.mark.parametrize(
    'words, message',
    [
        (['a'], 'a: expected KEY=V1,V2'),
        (['a=1,,2'], 'a=1,,2: expected KEY=V1,V2'),
        (['=1'], '=1: expected KEY=V1,V2'),
        (['a=1', 'a=2'], 'a=2: .* each key and value once'),
        (['a=1,1'], 'a=1,1: .* each key and value once'),
    ],
)
def test_bad_words(words, message):
    with pytest.raises(UsageError, match=message):
        read_sweep(words)


# --- probes ---------------------------------------------------------------- #


def touch(*names):
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    return list(names)


def probes(*checkpoints, configs=(STL10,), options=()):
    return plan_probes(configs, checkpoints, options, Path('probes'))


def test_runs_are_named_after_their_checkpoints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoints = touch(
        'w/kd_x/seed_1/epoch_240.pth', 'w/crd_x,t=0.1/seed_2/epoch_9.pth', 'my net.pth'
    )
    options = ['train_cfg.max_epochs=3']
    runs = probes(*checkpoints, checkpoints[0], configs=[STL10, TINY], options=options)
    assert [str(run.run_dir) for run in runs] == [
        f'probes/{config.stem}/{name}'
        for name in ('kd_x/seed_1', 'crd_x,t=0.1/seed_2', 'my net/seed_0')
        for config in (STL10, TINY)
    ]
    assert [run.seed for run in runs[::2]] == [1, 2, 0]
    assert [run.settings.config.model.backbone_ckpt for run in runs[::2]] == checkpoints
    assert {run.settings.epochs for run in runs} == {3}
    assert all(run.state == 'new' and not run.missing for run in runs)
    Path(checkpoints[-1]).write_text('other weights')  # at the same place are probed again
    assert probes(checkpoints[-1])[0].teacher != runs[-1].teacher


def test_random_weights_with_the_seeds_of_the_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoints = touch('w/kd_x/seed_1/epoch_9.pth', 'w/kd_x/seed_2/epoch_9.pth')
    *_, first, second = probes('random', *checkpoints)
    for seed, run in ((1, first), (2, second), (0, *probes('random'))):
        assert str(run.run_dir) == f'probes/{STL10.stem}/random/seed_{seed}' and run.seed == seed
        assert run.settings.config.model.backbone_ckpt is None and not run.missing


@pytest.mark.parametrize(
    'config, words, message',
    [
        (STL10, ['gone.pth'], '--probe gone.pth does not exist; give the path of a .pth file.'),
        (STL10, ['a', 'b'], '--probe a/kd/.* and b/kd/.* are both kd with seed 0, by the fold'),
        (STUDENT, ['a'], r'--probe: .*digits.py has no model.backbone_ckpt; '),
    ],
)
def test_wrong_probes(tmp_path, monkeypatch, config, words, message):
    monkeypatch.chdir(tmp_path)
    files = {word: f'{word}/kd/epoch_1.pth' for word in 'ab'}
    touch(*files.values())
    with pytest.raises(UsageError, match=f'^{message}'):
        probes(*(files.get(word, word) for word in words), configs=[config])


# --- the figure ------------------------------------------------------------ #


@pytest.fixture
def drawn(monkeypatch):
    """The axes of each figure that is saved."""
    axes = []
    monkeypatch.setattr(
        matplotlib.figure.Figure, 'savefig', lambda self, path, **kwargs: axes.append(self.axes[0])
    )
    return axes


def lines(axes):
    """Points and half lengths of the bars, by the label of the line."""
    handles, labels = axes.get_legend_handles_labels()
    found = {}
    for handle, label in zip(handles, labels, strict=True):
        line, _, (bars,) = handle
        heights = [(high - low) / 2 for (_, low), (_, high) in bars.get_segments()]
        found[label] = (line.get_xydata().tolist(), heights)
    return found


def sweep(folder, values, top1, seed=0):
    name = name_run('crd', values)
    write_run(folder, name, seed, (top1,), config='crd.py', sweep=values)


def plot(folder):
    plot_rows(compare(read_table_runs([folder]), read_published()), 'plot.png')


def test_accuracy_against_the_value(tmp_path, drawn):
    for value, seeds in {'1024': (60.0, 64.0), '16': (50.0,)}.items():
        for seed, top1 in enumerate(seeds):
            sweep(tmp_path, {K: value, T: '0.1'}, top1, seed)
            sweep(tmp_path, {K: value, T: '0.2'}, top1 + 1, seed)
    plot(tmp_path)
    (axes,) = drawn
    points, bars = lines(axes)['crd,temperature=0.1']
    assert points == [[16.0, 50.0], [1024.0, 62.0]]
    assert bars == pytest.approx([0.0, 2 * 2**0.5])
    assert lines(axes)['crd,temperature=0.2'][0] == [[16.0, 51.0], [1024.0, 63.0]]
    assert axes.get_xlabel() == K and axes.get_xscale() == 'log'


def test_words_networks_and_numbers_of_teachers(tmp_path, drawn):
    for value in ('class', 'instance'):
        sweep(tmp_path / 'words', {'exclude': value}, 50.0)
    for network, top1 in (('crd_t', 52.0), ('random', 20.0)):
        write_run(tmp_path / 'probes' / 'probe_a', network, 0, (top1,), config='probe_a.py')
    for number in (1, 2):
        name = f'crd-ensemble_{number}xa_b'
        write_run(tmp_path / 'teachers', name, 0, (50.0 + number,), teacher=' '.join('ab'[:number]))
    for folder in ('words', 'probes', 'teachers'):
        plot(tmp_path / folder)
    words, probes, teachers = drawn
    labels = [[text.get_text() for text in axes.get_xticklabels()] for axes in (words, probes)]
    assert labels == [['class', 'instance'], ['crd\nt', 'random']]
    assert lines(probes)['probe_a'][0] == [[0, 52.0], [1, 20.0]]
    assert lines(teachers)['crd-ensemble_a_b'][0] == [[1.0, 49.0], [2.0, 48.0]]
    assert [axes.get_xlabel() for axes in drawn] == ['exclude', 'network', 'teachers']
    assert teachers.get_xscale() == 'linear'
    accuracy = 'top-1 accuracy (%)'
    assert [axes.get_ylabel() for axes in drawn] == [accuracy, accuracy, 'top-1 error (%)']


def test_no_or_several_settings(tmp_path):
    write_run(tmp_path / 'none', 'crd', 0, finished=False)
    sweep(tmp_path / 'two', {T: '0.1'}, 50.0)
    sweep(tmp_path / 'two', {K: '16'}, 50.0)
    for folder, what in (('none', 'nothing'), ('two', f".'{K}', '{T}'.")):
        with pytest.raises(UsageError, match=f'differ in {what}, expected one;'):
            plot(tmp_path / folder)
