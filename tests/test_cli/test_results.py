"""Reading runs; summaries, paired differences, tables and figures."""

import json

import pandas as pd
import pytest
from PIL import Image

from crd_plugin.cli import results
from crd_plugin.cli.arguments import UsageError
from crd_plugin.cli.results import (
    paired_differences,
    read_run,
    render_summary,
    summarise,
    with_metrics,
)


def _log(run_dir, start, values, tail=''):
    """Write a log as MMEngine's LocalVisBackend does: train and val lines."""
    folder = run_dir / start / 'vis_data'
    folder.mkdir(parents=True)
    lines = []
    for epoch, (top1, top5) in values.items():
        lines.append(dict(lr=0.1, loss=2.0, epoch=epoch, iter=5 * epoch, step=5 * epoch))
        more = {} if top5 is None else {'accuracy/top5': top5}
        lines.append({'accuracy/top1': top1, **more, 'step': epoch})
    text = ''.join(json.dumps(line) + '\n' for line in lines) + tail
    (folder / 'scalars.json').write_text(text)


def _run(name='kd', seed=0, top1=(50.0, 80.0, 70.0), seconds=10.0):
    epochs = [
        dict(epoch=epoch, top1=value, top5=top5)
        for epoch, value, top5 in zip((1, 2, 3), top1, (90.0, 99.0, 98.0), strict=True)
    ]
    return dict(
        name=name,
        seed=seed,
        seconds=seconds,
        epochs=[1, 2, 3],
        top1=list(top1),
        last=epochs[-1],
        best=max(epochs, key=lambda epoch: epoch['top1']),
    )


def _runs(**top1):
    """One run per method and seed, from seed 0, by its last epoch."""
    runs = [(name, *pair) for name, values in top1.items() for pair in enumerate(values)]
    runs = [_run(name, seed, (0.0, 0.0, value)) for name, seed, value in runs]
    return with_metrics(pd.DataFrame(runs))


def _summary(*runs):
    return summarise(with_metrics(pd.DataFrame(runs)))


def _cells(table):
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in table.splitlines()]


# --- reading --------------------------------------------------------------- #


def test_a_resumed_run_is_read_as_one(tmp_path):
    first = {1: (50.0, 90.0), 2: (80.0, 97.0), 3: (0.0, 0.0)}
    _log(tmp_path, '20260101_000000', first, tail='{"accuracy/top1": 9')
    _log(tmp_path, '20260101_000100', {3: (80.0, 99.0), 4: (70.0, 98.0)})
    assert read_run(tmp_path) == dict(
        epochs=[1, 2, 3, 4],
        top1=[50.0, 80.0, 80.0, 70.0],
        top5=[90.0, 97.0, 99.0, 98.0],
        last=dict(epoch=4, top1=70.0, top5=98.0),
        # The earliest of equals, with the top-5 of that epoch.
        best=dict(epoch=2, top1=80.0, top5=97.0),
    )


def test_a_run_of_few_classes_has_no_top5(tmp_path):
    _log(tmp_path, 'a', {1: (50.0, None), 2: (80.0, None)})
    run = read_run(tmp_path)
    assert run['last'] == run['best'] == dict(epoch=2, top1=80.0, top5=None)
    row = _summary(dict(run, name='kd', seed=0, seconds=1.0))['kd']
    assert row['top1_last']['mean'] == 80.0 and row['top5_last'] is None


def test_missing_and_damaged_logs_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match='no .*scalars.json in'):
        read_run(tmp_path)
    for name, text, message in (
        ('a', '', 'no accuracy/top1, .*Accuracy'),
        ('b', '{"half\n{"step": 1}\n', 'line 1 is not JSON'),
        ('c', '{"accuracy/top1": "7"}\n{}', "line 1: accuracy/top1 is '7', expected float"),
    ):
        _log(tmp_path / name, name, {}, text)
        with pytest.raises(UsageError, match=message):
            read_run(tmp_path / name)


# --- means and differences ------------------------------------------------- #


def test_mean_and_deviation_over_seeds():
    second = _run('kd', 1, (50.0, 70.0, 74.0), seconds=14.0)
    summary = _summary(_run('vanilla', 0), _run('kd', 0), second)
    assert list(summary) == ['vanilla', 'kd']
    assert summary['vanilla']['top1_last'] == dict(mean=70.0, std=None)
    row = summary['kd']
    assert row['seeds'] == [0, 1]
    spread = pytest.approx(8**0.5)  # sample deviation of (70, 74), (80, 74) and (10, 14)
    assert row['top1_last'] == dict(mean=pytest.approx(72), std=spread)
    assert row['top1_best'] == dict(mean=77, std=pytest.approx(18**0.5))
    assert row['top5_best']['mean'] == pytest.approx(98.5)
    assert row['best_epoch']['mean'] == pytest.approx(2.5)
    assert row['seconds'] == dict(mean=pytest.approx(12), std=spread)
    # What is not known of every run is not known of the mean.
    assert _summary(_run(seed=0), _run(seed=1, seconds=None))['kd']['seconds'] is None


def test_table_of_one_seed_and_of_two():
    assert render_summary(_summary(_run('student alone'))).splitlines() == [
        '| method        | seeds | top-1 last | top-5 last | top-1 best '
        '| top-5 best | best epoch | seconds |',
        '| ------------- | ----: | ---------: | ---------: | ---------: '
        '| ---------: | ---------: | ------: |',
        '| student alone |     1 |      70.00 |      98.00 |      80.00 '
        '|      99.00 |          2 |    10.0 |',
    ]
    table = _summary(_run(seed=0), _run(seed=1, top1=(60.0, 70.0, 74.0), seconds=None))
    spread, best = '72.00 ± 2.83', '77.00 ± 4.24'
    five = ['98.00 ± 0.00', '98.50 ± 0.71']
    expected = ['kd', '2', spread, five[0], best, five[1], '2.5 ± 0.7', 'unknown']
    assert _cells(render_summary(table))[2] == expected


def test_difference_is_paired_and_its_interval_is_that_of_t():
    # The seeds differ by tens, the methods by 2, 3 and 1: mean 2, deviation 1.
    runs = _runs(kd=(50.0, 60.0, 70.0), crd=(52.0, 63.0, 71.0), at=(51.0, 59.0, 70.0))
    found = paired_differences(runs, 'kd')
    half = 4.302653 / 3**0.5  # t of two degrees of freedom, 97.5 %
    assert found['crd'] == dict(
        mean=2.0,
        low=pytest.approx(2 - half, abs=1e-6),
        high=pytest.approx(2 + half, abs=1e-6),
        seeds=[0, 1, 2],
        clear=False,
    )
    assert found['at']['mean'] == 0 and not found['at']['clear']
    assert list(found) == ['crd', 'at']
    # Less noise, the same mean: zero is outside, above or below.
    clear = paired_differences(_runs(kd=(50.0, 60.0), crd=(52.0, 62.0), at=(47.9, 58.0)), 'kd')
    assert clear['crd'] == dict(mean=2.0, low=2.0, high=2.0, seeds=[0, 1], clear=True)
    assert clear['at']['clear'] and clear['at']['high'] < 0


def test_seeds_that_one_method_lacks_do_not_count():
    found = paired_differences(_runs(kd=(50.0, 60.0, 99.0), crd=(51.0, 62.0), at=(51.0,)), 'kd')
    assert found['crd']['mean'] == 1.5 and found['crd']['seeds'] == [0, 1]
    assert found['at'] == dict(mean=1.0, low=None, high=None, seeds=[0], clear=False)
    apart = _runs(kd=(50.0,), crd=(51.0,)).assign(seed=[0, 1])
    assert paired_differences(apart, 'kd') == {}


def test_table_of_differences():
    runs = _runs(alone=(50.0, 60.0), kd=(52.0, 62.0), crd=(49.0, 61.0))
    columns = {name: paired_differences(runs, name) for name in ('alone', 'kd')}
    columns['none'] = paired_differences(runs, 'none')
    text = results.render_differences(['teacher', 'alone', 'kd', 'crd'], columns)
    table, _, legend = text.partition('\n\n')
    assert legend == results.LEGEND and results.render_differences(['kd'], {'none': {}}) == ''
    cells = _cells(table)
    assert cells[0] == ['method', 'alone', 'kd']
    assert cells[2:] == [
        ['alone', '-', '-2.00 [-2.00, -2.00] *'],
        ['kd', '+2.00 [+2.00, +2.00] *', '-'],
        ['crd', '+0.00 [-12.71, +12.71]', '-2.00 [-14.71, +10.71]'],
    ]


# --- figures --------------------------------------------------------------- #


def _draw(plot, runs, path):
    """Size and colours of an image."""
    plot(pd.DataFrame(runs), path, title='digits')
    with Image.open(path) as image:
        return image.size, {pixel for _, pixel in image.convert('RGB').getcolors(10**6)}


def test_figures(tmp_path):
    path = tmp_path / 'figure.png'
    blue, orange, grey = (0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E), (0x99, 0x99, 0x99)
    for seeds in (1, 2):  # a line per method, in Matplotlib's first two colours
        runs = [_run(name, seed) for name in ('kd', 'crd') for seed in range(seeds)]
        size, colours = _draw(results.plot_curves, runs, path)
        assert size == (1050, 675) and {blue, orange} <= colours
    several = _runs(kd=(50.0, 51.0), crd=(51.0, 53.0), at=(50.0, 49.0))
    for runs, height in ((_runs(kd=(50.0,)), 210), (several, 330)):  # a row per method
        size, colours = _draw(results.plot_accuracies, runs, path)
        assert size == (1050, height) and {blue, grey} <= colours
