"""The benchmark of data loaders runs and writes what it promises."""

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import small_runs

_SCRIPT = Path(__file__).parents[2] / 'tools' / 'benchmarks' / 'data_pipeline.py'


def run(*args):
    """Run the benchmark."""
    return subprocess.run(
        [sys.executable, str(_SCRIPT), *map(str, args)],
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(small_runs.REPO), 'OMP_NUM_THREADS': '1'},
    )


def test_every_loader_is_measured(tmp_path):
    target = tmp_path / 'result.json'
    done = run(
        '--data',
        'digits',
        '--batch-size',
        10,
        '--workers',
        0,
        1,
        '--negatives',
        20,
        '--rounds',
        2,
        '--batches',
        3,
        '--device',
        'cpu',
        '--threads',
        1,
        '--out',
        target,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(target.read_text())
    assert [case['name'] for case in result['cases']] == [
        'plain, 0 workers',
        'plain, 1 worker',
        'contrast_idx',
        'resident',
    ]
    for case in result['cases']:
        assert 0 < case['fastest'] <= case['seconds'] <= case['slowest']
        assert case['images_per_second'] == pytest.approx(10 / case['seconds'])
        assert case['ratio'] > 0
        assert f'\n{case["name"]:<18}' in done.stdout
    assert result['cases'][0]['ratio'] == 1
    assert result['args']['negatives'] == 20
    assert '1 threads' in result['machine']
    assert 'digits, batch 10, cpu' in done.stdout


def test_rows_that_are_left_out(tmp_path):
    target = tmp_path / 'result.json'
    done = run(
        '--data',
        'digits',
        '--workers',
        '--negatives',
        0,
        '--rounds',
        1,
        '--batches',
        1,
        '--device',
        'cpu',
        '--out',
        target,
    )
    assert done.returncode == 0, done.stderr
    cases = json.loads(target.read_text())['cases']
    assert [case['name'] for case in cases] == ['resident']


def test_images_of_short_batches_are_counted(monkeypatch):
    spec = importlib.util.spec_from_file_location('data_pipeline', _SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    now = itertools.count()
    monkeypatch.setattr(script.time, 'perf_counter', lambda: next(now))
    sizes = iter([4, 4, 4, 2])
    source = SimpleNamespace(ready=0, step=lambda: next(sizes))
    args = SimpleNamespace(device='cpu', rounds=1, batches=2, batch_size=4)
    # Of the four steps the first two are not timed: 4 + 2 images a second.
    seconds = script.measure(dict(plain=source), args)
    assert seconds == dict(plain=[pytest.approx(4 / 6)])


@pytest.mark.parametrize(
    'args, message',
    [
        (('--rounds', 0), '--rounds is 0, expected at least 1'),
        (('--batch-size', 0), '--batch-size is 0, expected at least 1'),
        (('--negatives', -1), '--negatives is -1, expected at least 0'),
        (('--workers', -2), r'--workers is [-2], expected at least 0'),
        (('--data', 'imagenet'), "invalid choice: 'imagenet'"),
        (
            ('--out', 'no/such/folder.json'),
            '--out is no/such/folder.json, expected a file in a folder',
        ),
    ],
)
def test_wrong_arguments(args, message):
    done = run(*args)
    assert done.returncode != 0
    assert message in done.stderr
    assert 'Traceback' not in done.stderr
