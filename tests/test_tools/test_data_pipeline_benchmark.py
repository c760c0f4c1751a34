"""The benchmark of data loaders runs and writes what it promises."""

import itertools
import json
import sys
from types import SimpleNamespace

import pytest

from tests import tables

SCRIPT = 'benchmarks/data_pipeline.py'


@pytest.fixture(scope='module')
def script():
    return tables.load_benchmark('data_pipeline')


def test_every_loader_is_measured(tmp_path):
    target = tmp_path / 'result.json'
    words = (
        '--data digits --batch-size 10 --workers 0 1 --negatives 20 --rounds 2 --batches 3 '
        '--device cpu --threads 1 --out'
    )
    lines = tables.call(tmp_path, SCRIPT, *words.split(), target)
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
        assert any(line.startswith(f'{case["name"]:<16}') for line in lines)
    assert result['cases'][0]['ratio'] == 1
    assert result['args']['negatives'] == 20
    assert '1 threads' in result['machine']
    assert lines[0].startswith('digits, batch 10, cpu')


def test_rows_that_are_left_out(script, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'stand_in', tables.load_benchmark('stand_in'))
    args = SimpleNamespace(data='cifar100', workers=[], negatives=0, batch_size=4, device='cpu')
    assert list(script.make_sources(args, tmp_path)) == ['resident']
    args.workers, args.negatives = [2, 1], 8
    sources = script.make_sources(args, tmp_path)
    assert {name: source.ahead for name, source in sources.items()} == {
        'plain, 2 workers': 4,
        'plain, 1 worker': 2,
        'contrast_idx': 0,
        'resident': 0,
    }


def test_images_of_short_batches_are_counted(script, monkeypatch):
    now = itertools.count()
    monkeypatch.setattr('torch.utils.benchmark.timer', lambda: next(now))
    source = script.Source(iter([4, 4, 4, 2]), 0)
    args = SimpleNamespace(rounds=1, batches=2, batch_size=4)
    # Of the four steps the first two are not timed: 4 + 2 images per second.
    assert script.measure(dict(plain=source), args) == dict(plain=[pytest.approx(4 / 6)])


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
def test_wrong_arguments(script, monkeypatch, capsys, args, message):
    monkeypatch.setattr(sys, 'argv', ['data_pipeline', *map(str, args)])
    with pytest.raises(SystemExit) as caught:
        script.main()
    assert message in f'{caught.value.code} {capsys.readouterr().err}'
