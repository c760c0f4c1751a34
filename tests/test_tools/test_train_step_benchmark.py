"""The benchmark of whole steps runs, and adds its times up rightly."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict

REPO = Path(__file__).parents[2]
TOOLS = REPO / 'tools' / 'benchmarks'
DIGITS = 'resnet14_resnet8w4_b20-100e_digits'


def load(name):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(name, TOOLS / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def script():
    """The benchmark."""
    return load('train_step')


@pytest.fixture(scope='module')
def stand_in():
    """Its data."""
    return load('stand_in')


def run(*args):
    """Run it as a user does."""
    return subprocess.run(
        [sys.executable, str(TOOLS / 'train_step.py'), *map(str, args)],
        capture_output=True,
        text=True,
        cwd=REPO,
    )


def test_digits(tmp_path):
    target = tmp_path / 'result.json'
    done = run(
        REPO / f'configs/kd/kd_{DIGITS}.py',
        REPO / f'configs/crd/crd_{DIGITS}.py',
        '--vary',
        'model.channels_last=True',
        'optim_wrapper.optimizer.lr=0.01',
        '--iters',
        2,
        '--rounds',
        1,
        '--warmup',
        1,
        '--num-workers',
        0,
        '--batch-size',
        8,
        '--device',
        'cpu',
        '--threads',
        1,
        '--out',
        target,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(target.read_text())
    cases = result['cases']
    names = [
        f'kd_{DIGITS}',
        f'crd_{DIGITS}',
        'model.channels_last=True optim_wrapper.optimizer.lr=0.01',
    ]
    assert [case['name'] for case in cases] == names
    assert all(name in done.stdout for name in names)
    assert cases[0]['ratio'] == 1
    for case in cases:
        assert case['batch_size'] == 8
        assert case['images_per_second'] == pytest.approx(8 / case['seconds'])
        parts = case['parts']
        # One round: nothing but the end of the last step is missing.
        assert 0 < sum(parts.values()) <= case['seconds']
        for part in set(parts) - {'commit'}:
            assert parts[part] > 0, part
        assert (parts['commit'] > 0) == case['name'].startswith('crd')
    assert result['waits'] == {}


@pytest.mark.parametrize(
    'args, message',
    [
        (('--iters', 0), '--iters is 0, expected more'),
        (('--warmup', -1), '--warmup is -1, expected more'),
        (('--num-workers', -1), '--num-workers is -1, expected more'),
        (('--vary', 'model.compile'), 'model.compile is no KEY=VALUE'),
        (('--device', 'tpu'), "invalid choice: 'tpu'"),
        (('--device', 'cpu', '--check-sync'), '--check-sync looks for waits on a'),
        (
            ('--device', 'cpu', '--synthetic'),
            'error: --synthetic has no stand-in for the Digits of',
        ),
        (
            ('--out', 'no/such/folder.json'),
            '--out is no/such/folder.json, expected a file in a folder',
        ),
    ],
)
def test_wrong_arguments(args, message):
    done = run(REPO / f'configs/kd/kd_{DIGITS}.py', *args)
    assert done.returncode not in (0, None)
    assert message in done.stderr and 'Traceback' not in done.stderr


def test_config_that_is_not_there():
    done = run('configs/kd/kd_resnet14_digits.py')
    assert done.returncode == 1
    assert 'does not exist; the nearest are' in done.stderr
    assert 'Traceback' not in done.stderr


def test_summary(script):
    parts = dict.fromkeys(script.PARTS, 0.0)
    first = [
        (2.0, 20, dict(parts, data=1.0)),
        (4.0, 20, dict(parts, data=2)),
        (3.0, 20, dict(parts, data=0.5)),
    ]
    # Half the images a turn; the ratios are 2, 1 and 4 thirds.
    other = [(2.0, 10, parts), (2.0, 10, parts), (2.0, 10, parts)]
    one, two = script.summary([first, other], ['a', 'b'], [10, 5])
    assert one['ratio'] == 1 and one['seconds'] == pytest.approx(1.5)
    assert one['fastest'] == 1 and one['slowest'] == 2
    assert one['images_per_second'] == pytest.approx(20 / 3)
    assert one['parts']['data'] == pytest.approx(0.5)
    assert two['ratio'] == pytest.approx(4 / 3)
    assert two['seconds'] == pytest.approx(1) and two['name'] == 'b'


def test_clock_charges_what_is_marked(script, monkeypatch):
    now = iter([9.0, 10.0, 10.5, 12.0, 12.25, 13.0])
    monkeypatch.setattr(script.time, 'perf_counter', lambda: next(now))
    clock = script.Clock('cpu', 'wall')
    clock.mark('data')  # before a turn: nothing happens
    clock.start()
    call = script.charged(lambda value: value + 1, clock, 'backward')
    clock.mark('data')
    assert call(1) == 2
    seconds, parts = clock.stop()
    # From 9 to 13; marks at 10, 10.5, 12 and 12.25.
    assert seconds == 4.0
    assert parts['data'] == 0.5 and parts['backward'] == 0.25
    assert parts['other'] == 1.5 and sum(parts.values()) == 2.25


def test_wait_for_the_gpu_is_found(script, monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, 'set_sync_debug_mode', modes.append)
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda: None)

    def run_iter(batch):
        if batch == 'bad':
            raise RuntimeError('called a synchronizing CUDA operation\nmore')

    args = SimpleNamespace(device='cuda', clock='wall')
    case = script.Case('name', None, args)
    case.runner = SimpleNamespace(train_loop=SimpleNamespace(run_iter=run_iter))
    case._batches = iter([('good',), ('bad',)])
    case.check_sync()
    assert case.wait is None and modes == ['error', 'default']
    case.check_sync()
    assert 'called a synchronizing CUDA operation)' in case.wait
    assert 'test_train_step_benchmark.py' in case.wait
    assert modes == ['error', 'default'] * 2


def test_wait_while_fetching_is_found(script, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'set_sync_debug_mode', lambda mode: None)
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda: None)

    def broken():
        raise RuntimeError('called a synchronizing CUDA operation')
        yield

    case = script.Case('name', None, SimpleNamespace(device='cpu', clock='wall'))
    case.runner = SimpleNamespace(train_loop=SimpleNamespace(run_iter=None))
    case._batches = broken()
    case.check_sync()
    assert 'called a synchronizing CUDA operation)' in case.wait


def test_waits_are_looked_for_at_the_end(script):
    """A step that breaks off leaves nothing to be measured."""
    order = []

    class Case:
        def __getattr__(self, name):
            return lambda *args: order.append(name)

    args = SimpleNamespace(check_sync=True, rounds=2, warmup=1, iters=1)
    script.measure([Case(), Case()], args)
    assert order == 2 * ['steps'] + 2 * ['own_pages'] + 4 * ['turn'] + (2 * ['check_sync'])


def test_images_are_counted_not_views(script):
    def ignore(*args):
        return None

    case = script.Case('name', None, SimpleNamespace(device='cpu', clock='wall'))
    loop = SimpleNamespace(
        run_iter=ignore,
        dataloader=[dict(inputs=['view', 'view', 'view'], data_samples=['one', 'two'])],
    )
    case.runner = SimpleNamespace(
        train_loop=loop, call_hook=ignore, model=SimpleNamespace(train=ignore)
    )
    case._batches = script.endless(case.runner, loop)
    assert case.steps(1) == 2


@pytest.mark.parametrize('kind', ['CIFAR100', 'ImageNet'])
def test_stand_in(stand_in, monkeypatch, tmp_path, kind):
    real = stand_in.KINDS[kind]
    small = real._replace(samples=30, classes=10)
    monkeypatch.setitem(stand_in.KINDS, kind, small)
    monkeypatch.setattr(stand_in, '_NUM_FILES', 4)
    pipeline = [dict(type='mmpretrain.PackInputs')]
    if real.files:
        pipeline.insert(0, dict(type='mmpretrain.LoadImageFromFile'))
    loader = ConfigDict(
        batch_size=4,
        dataset=dict(
            type='crd_plugin.SampleIndexDataset',
            dataset=dict(type=kind, data_root='nowhere', pipeline=pipeline),
        ),
    )
    stand_in.replace_dataset(loader, 'config.py', tmp_path)
    dataset = stand_in.DATASETS.build(loader.dataset)
    dataset.full_init()
    assert len(dataset) == dataset.num_samples == 30
    labels = dataset.get_gt_labels()
    assert np.array_equal(labels, np.arange(30) % 10)
    for index in (0, 17):
        item = dataset[index]
        assert item['inputs'].shape == (3, real.height, real.width)
        assert item['inputs'].dtype == torch.uint8
        assert item['inputs'].float().std() > 20
        assert int(item['data_samples'].gt_label) == index % 10
        assert item['data_samples'].sample_idx == index
    assert not torch.equal(dataset[0]['inputs'], dataset[1]['inputs'])


def test_sizes_of_the_real_sets(stand_in):
    assert stand_in.KINDS['CIFAR100'][:4] == (50000, 100, 32, 32)
    assert stand_in.KINDS['ImageNet'][:2] == (1281167, 1000)
    assert stand_in.KINDS['TinyImageNet200'][:4] == (100000, 200, 64, 64)
