"""Reading runs, tables and curves."""

import json
import sys

import pytest

from crd_plugin.cli.results import RunResult, plot_curves, read_run, render_table, summarise


def _log(run_dir, start, values, tail=''):
    """Write a log as MMEngine's LocalVisBackend does: train and val lines."""
    folder = run_dir / start / 'vis_data'
    folder.mkdir(parents=True)
    lines = []
    for epoch, (top1, top5) in values.items():
        lines.append(dict(lr=0.1, loss=2.0, epoch=epoch, iter=5 * epoch, step=5 * epoch))
        lines.append({'accuracy/top1': top1, 'accuracy/top5': top5, 'step': epoch})
    text = ''.join(json.dumps(line) + '\n' for line in lines) + tail
    (folder / 'scalars.json').write_text(text)


def _run(name='kd', seed=0, top1=(50.0, 80.0, 70.0), seconds=10.0):
    return RunResult(name, seed, [1, 2, 3], list(top1), [90.0, 99.0, 98.0], seconds)


def test_last_and_best_epoch(tmp_path):
    _log(
        tmp_path,
        '20260101_000000',
        {1: (50.0, 90.0), 2: (80.0, 97.0), 3: (80.0, 99.0), 4: (70.0, 98.0)},
    )
    run = read_run(tmp_path, 'kd', seed=3, seconds=12.5)
    assert run.epochs == [1, 2, 3, 4]
    assert run.top1 == [50.0, 80.0, 80.0, 70.0]
    numbers = run.as_dict()
    assert numbers['last'] == dict(epoch=4, top1=70.0, top5=98.0)
    # The earliest of equals, with the top-5 of that epoch.
    assert numbers['best'] == dict(epoch=2, top1=80.0, top5=97.0)
    assert (numbers['name'], numbers['seed'], numbers['seconds']) == ('kd', 3, 12.5)


def test_a_resumed_run_is_read_as_one(tmp_path):
    _log(
        tmp_path,
        '20260101_000000',
        {1: (1.0, 5.0), 2: (2.0, 5.0), 3: (0.0, 0.0)},
        tail='{"accuracy/top1": 9',
    )
    _log(tmp_path, '20260101_000100', {3: (3.0, 6.0), 4: (4.0, 7.0)})
    run = read_run(tmp_path, 'kd')
    assert run.epochs == [1, 2, 3, 4]
    assert run.top1 == [1.0, 2.0, 3.0, 4.0]
    assert run.top5 == [5.0, 5.0, 6.0, 7.0]


def test_missing_and_damaged_logs_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match='No .*scalars.json in'):
        read_run(tmp_path, 'kd')
    _log(tmp_path, 'a', {})
    with pytest.raises(ValueError, match='no accuracy/top1 .*topk'):
        read_run(tmp_path, 'kd')
    _log(tmp_path, 'b', {}, tail='{"half\n{"step": 1}\n')
    with pytest.raises(ValueError, match='line 1 is not JSON'):
        read_run(tmp_path, 'kd')


def test_mean_and_deviation_over_seeds():
    rows = summarise(
        [
            _run('vanilla', 0),
            _run('kd', 0, (50.0, 80.0, 70.0), 10.0),
            _run('kd', 1, (50.0, 70.0, 74.0), 14.0),
        ]
    )
    assert [row['name'] for row in rows] == ['vanilla', 'kd']
    assert rows[0]['top1_last'] == dict(mean=70.0, std=None)
    row = rows[1]
    assert row['seeds'] == [0, 1]
    assert row['top1_last']['mean'] == pytest.approx(72)
    # Sample deviation of (70, 74), (80, 74), (99, 98) and (10, 14).
    assert row['top1_last']['std'] == pytest.approx(8**0.5)
    assert row['top1_best']['mean'] == pytest.approx(77)
    assert row['top5_best']['mean'] == pytest.approx(98.5)
    assert row['best_epoch']['mean'] == pytest.approx(2.5)
    assert row['seconds'] == dict(mean=pytest.approx(12), std=pytest.approx(8**0.5))


def test_unknown_seconds_stay_unknown():
    rows = summarise([_run(seed=0), _run(seed=1, seconds=None)])
    assert rows[0]['seconds'] is None
    assert render_table(rows).splitlines()[2].endswith(' unknown |')


def test_table_of_one_seed_and_of_two():
    table = render_table(summarise([_run('student alone')]))
    assert table == '\n'.join(
        [
            '| method        | seeds | top-1 last | top-5 last | top-1 best '
            '| top-5 best | best epoch | seconds |',
            '| ------------- | ----: | ---------: | ---------: | ---------: '
            '| ---------: | ---------: | ------: |',
            '| student alone |     1 |      70.00 |      98.00 |      80.00 '
            '|      99.00 |          2 |    10.0 |',
        ]
    )
    table = render_table(summarise([_run(seed=0), _run(seed=1, top1=(60.0, 70.0, 74.0))]))
    assert '72.00 ± 2.83' in table and '2.5 ± 0.7' in table


@pytest.mark.parametrize('seeds', [1, 2])
def test_curves_are_an_image_with_a_line_a_method(tmp_path, seeds):
    from PIL import Image

    runs = [_run(name, seed) for name in ('kd', 'crd') for seed in range(seeds)]
    path = tmp_path / 'curves.png'
    plot_curves(runs, path, title='digits')
    with Image.open(path) as image:
        assert image.size == (1050, 675)
        colours = {pixel for _, pixel in image.convert('RGB').getcolors(10**6)}
    # Matplotlib's first two line colours.
    assert {(0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E)} <= colours


def test_curves_refuse_unfinished_runs(tmp_path):
    short = RunResult('kd', 1, [1, 2], [1.0, 2.0], [1.0, 2.0])
    with pytest.raises(ValueError, match='kd: seed 1 .* other epochs'):
        plot_curves([_run(), short], tmp_path / 'curves.png')


def test_curves_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    with pytest.raises(ImportError, match='pip install matplotlib'):
        plot_curves([_run()], tmp_path / 'curves.png')
