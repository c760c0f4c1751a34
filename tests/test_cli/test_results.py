"""Reading runs; summaries, tables and curves."""

import json

import pandas as pd
import pytest

from crd_plugin.cli.results import plot_curves, read_run, render_summary, summarise


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


def _summary(*runs):
    return summarise(pd.DataFrame(runs))


def test_last_and_best_epoch(tmp_path):
    values = {1: (50.0, 90.0), 2: (80.0, 97.0), 3: (80.0, 99.0), 4: (70.0, 98.0)}
    _log(tmp_path, '20260101_000000', values)
    run = read_run(tmp_path)
    assert run == dict(
        epochs=[1, 2, 3, 4],
        top1=[50.0, 80.0, 80.0, 70.0],
        top5=[90.0, 97.0, 99.0, 98.0],
        last=dict(epoch=4, top1=70.0, top5=98.0),
        # The earliest of equals, with the top-5 of that epoch.
        best=dict(epoch=2, top1=80.0, top5=97.0),
    )


def test_a_resumed_run_is_read_as_one(tmp_path):
    first = {1: (1.0, 5.0), 2: (2.0, 5.0), 3: (0.0, 0.0)}
    _log(tmp_path, '20260101_000000', first, tail='{"accuracy/top1": 9')
    _log(tmp_path, '20260101_000100', {3: (3.0, 6.0), 4: (4.0, 7.0)})
    run = read_run(tmp_path)
    assert run['epochs'] == [1, 2, 3, 4]
    assert run['top1'] == [1.0, 2.0, 3.0, 4.0]
    assert run['top5'] == [5.0, 5.0, 6.0, 7.0]


def test_missing_and_damaged_logs_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match='No .*scalars.json in'):
        read_run(tmp_path)
    _log(tmp_path, 'a', {})
    with pytest.raises(ValueError, match='no accuracy/top1 .*topk'):
        read_run(tmp_path)
    _log(tmp_path, 'b', {}, tail='{"half\n{"step": 1}\n')
    with pytest.raises(ValueError, match='line 1 is not JSON'):
        read_run(tmp_path)


def test_mean_and_deviation_over_seeds():
    summary = _summary(
        _run('vanilla', 0), _run('kd', 0), _run('kd', 1, (50.0, 70.0, 74.0), seconds=14.0)
    )
    assert list(summary.index) == ['vanilla', 'kd']
    assert summary.loc['vanilla', 'top1_last'] == dict(mean=70.0, std=None)
    row = summary.loc['kd']
    assert row['seeds'] == [0, 1]
    spread = pytest.approx(8**0.5)  # sample deviation of (70, 74), (80, 74) and (10, 14)
    assert row['top1_last'] == dict(mean=pytest.approx(72), std=spread)
    assert row['top1_best'] == dict(mean=77, std=pytest.approx(18**0.5))
    assert row['top5_best']['mean'] == pytest.approx(98.5)
    assert row['best_epoch']['mean'] == pytest.approx(2.5)
    assert row['seconds'] == dict(mean=pytest.approx(12), std=spread)


def test_unknown_seconds_stay_unknown():
    summary = _summary(_run(seed=0), _run(seed=1, seconds=None))
    assert summary.loc['kd', 'seconds'] is None
    assert render_summary(summary).splitlines()[2].endswith(' unknown |')


def test_table_of_one_seed_and_of_two():
    assert render_summary(_summary(_run('student alone'))).splitlines() == [
        '| method        | seeds | top-1 last | top-5 last | top-1 best '
        '| top-5 best | best epoch | seconds |',
        '| ------------- | ----: | ---------: | ---------: | ---------: '
        '| ---------: | ---------: | ------: |',
        '| student alone |     1 |      70.00 |      98.00 |      80.00 '
        '|      99.00 |          2 |    10.0 |',
    ]
    table = render_summary(_summary(_run(seed=0), _run(seed=1, top1=(60.0, 70.0, 74.0))))
    assert '72.00 ± 2.83' in table and '2.5 ± 0.7' in table


@pytest.mark.parametrize('seeds', [1, 2])
def test_curves_are_an_image_with_a_line_per_method(tmp_path, seeds):
    from PIL import Image

    runs = [_run(name, seed) for name in ('kd', 'crd') for seed in range(seeds)]
    path = tmp_path / 'curves.png'
    plot_curves(pd.DataFrame(runs), path, title='digits')
    with Image.open(path) as image:
        assert image.size == (1050, 675)
        colours = {pixel for _, pixel in image.convert('RGB').getcolors(10**6)}
    # Matplotlib's first two line colours.
    assert {(0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E)} <= colours


def test_curves_refuse_unfinished_runs(tmp_path):
    short = _run(seed=1) | dict(epochs=[1, 2], top1=[1.0, 2.0])
    with pytest.raises(ValueError, match='kd: seed 1 .* other epochs'):
        plot_curves(pd.DataFrame([_run(), short]), tmp_path / 'curves.png')
