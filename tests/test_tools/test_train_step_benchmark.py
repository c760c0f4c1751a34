"""The benchmark of whole steps runs, and adds its times up rightly."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict

from tests import tables

DIGITS = tables.PAIR
KD = str(tables.CONFIGS / 'kd' / f'kd_{DIGITS}.py')
CRD = str(tables.CONFIGS / 'crd' / f'crd_{DIGITS}.py')


@pytest.fixture(scope='module')
def script():
    """The benchmark."""
    return tables.load_benchmark('train_step')


@pytest.fixture(scope='module')
def stand_in():
    """Its data."""
    return tables.load_benchmark('stand_in')


def _case(script, cfg=None):
    return script.Case('name', cfg, SimpleNamespace(device='cpu', clock='wall'))


def test_digits(tmp_path):
    target = tmp_path / 'result.json'
    words = (
        '--vary model.channels_last=True optim_wrapper.optimizer.lr=0.01 --iters 2 --rounds 1 '
        '--warmup 1 --num-workers 0 --batch-size 8 --device cpu --threads 1 --out'
    )
    lines = tables.call(tmp_path, 'benchmarks/train_step.py', KD, CRD, *words.split(), target)
    result = json.loads(target.read_text())
    cases = result['cases']
    names = [
        f'kd_{DIGITS}',
        f'crd_{DIGITS}',
        'model.channels_last=True optim_wrapper.optimizer.lr=0.01',
    ]
    assert [case['name'] for case in cases] == names
    assert all(name in '\n'.join(lines) for name in names)
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
        (('--iters', 0), '--iters is 0, expected at least 1'),
        (('--warmup', -1), '--warmup is -1, expected at least 0'),
        (('--num-workers', -1), '--num-workers is -1, expected at least 0'),
        (('--vary', 'model.compile'), 'model.compile is not KEY=VALUE'),
        (('--device', 'tpu'), "invalid choice: 'tpu'"),
        (('--device', 'cpu', '--check-sync'), '--check-sync looks for waits on a'),
        (
            ('--out', 'no/such/folder.json'),
            '--out is no/such/folder.json, expected a file in a folder',
        ),
    ],
)
def test_wrong_arguments(script, monkeypatch, capsys, args, message):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')  # restored, whatever the script sets
    monkeypatch.setattr(sys, 'argv', ['train_step', KD, *map(str, args)])
    with pytest.raises(SystemExit) as caught:
        script.main()
    assert message in f'{caught.value.code} {capsys.readouterr().err}'


def test_what_cannot_be_loaded(script, stand_in, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'stand_in', stand_in)
    args = SimpleNamespace(batch_size=None, num_workers=None, synthetic=True)
    with pytest.raises(SystemExit, match='has no stand-in for the Digits of .*kd_resnet14'):
        script.load_config(KD, [], args, str(tmp_path))
    with pytest.raises(SystemExit, match='does not exist; the nearest are'):
        script.load_config('configs/kd/kd_resnet14_digits.py', [], args, str(tmp_path))


def test_summary(script):
    parts = dict.fromkeys(script.PARTS, 0.0)
    first = [
        (2.0, 20, dict(parts, data=1.0)),
        (4.0, 20, dict(parts, data=2)),
        (3.0, 20, dict(parts, data=0.5)),
    ]
    # Half the images per turn; the ratios are 2, 1 and 4 thirds.
    other = [(2.0, 10, parts), (2.0, 10, parts), (2.0, 10, parts)]
    cases = []
    for name, size, turns in (('a', 10, first), ('b', 5, other)):
        cfg = ConfigDict(train_dataloader=dict(batch_size=size))
        cases.append(SimpleNamespace(name=name, cfg=cfg, turns=turns))
    one, two = script.summary(cases)
    assert one['ratio'] == 1 and one['seconds'] == pytest.approx(1.5)
    assert one['fastest'] == 1 and one['slowest'] == 2
    assert one['images_per_second'] == pytest.approx(20 / 3)
    assert one['parts']['data'] == pytest.approx(0.5)
    assert two['ratio'] == pytest.approx(4 / 3)
    assert two['seconds'] == pytest.approx(1) and two['name'] == 'b'


def test_clock_charges_what_is_marked(script, monkeypatch):
    now = iter([5.0, 9.0, 10.0, 10.5, 12.0, 12.25, 13.0])
    monkeypatch.setattr('torch.utils.benchmark.timer', lambda: next(now))
    clock = script.Clock('cpu', 'wall')
    clock.mark('data')  # before a turn: not counted
    clock.start()
    call = clock.charge(lambda value: value + 1, 'backward')
    clock.mark('data')
    assert call(1) == 2
    seconds, parts = clock.stop()
    # From 9 to 13; marks at 10, 10.5, 12 and 12.25.
    assert seconds == 4.0
    assert parts['data'] == 0.5 and parts['backward'] == 0.25
    assert parts['other'] == 1.5 and sum(parts.values()) == 2.25


def test_a_step_that_waits_for_the_gpu_is_found(script, monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, 'set_sync_debug_mode', modes.append)
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda: None)

    def run_iter(batch):
        if batch == 'bad':
            raise RuntimeError('called a synchronizing CUDA operation\nmore')

    def batches():
        yield ('good',)
        yield ('bad',)
        run_iter('bad')  # while fetching

    case = _case(script)
    case.loop = SimpleNamespace(run_iter=run_iter)
    case.batches = batches()
    case.check_sync()
    assert case.wait is None and modes == ['error', 'default']
    for _ in range(2):
        case.wait = None
        case.check_sync()
        assert 'called a synchronizing CUDA operation)' in case.wait
        assert 'test_train_step_benchmark.py' in case.wait
    assert modes == ['error', 'default'] * 3


def test_waits_are_looked_for_at_the_end(script):
    """A step that breaks off leaves nothing to be measured."""
    order = []

    class Case:
        def __getattr__(self, name):
            return lambda *args: order.append(name)

    args = SimpleNamespace(check_sync=True, rounds=2, warmup=1, iters=1)
    script.measure([Case(), Case()], args)
    assert order == 2 * ['warm_up'] + 4 * ['turn'] + 2 * ['check_sync']


def test_images_are_counted_not_views(script):
    def ignore(*args):
        return None

    case = _case(script)
    samples = dict(inputs=['view', 'view', 'view'], data_samples=['one', 'two'])
    case.loop = SimpleNamespace(run_iter=ignore, dataloader=[samples])
    case.runner = SimpleNamespace(call_hook=ignore, model=SimpleNamespace(train=ignore))
    case.batches = case._endless()
    assert case.steps(1) == 2


@pytest.mark.parametrize('kind', ['CIFAR100', 'ImageNet'])
def test_stand_in(stand_in, monkeypatch, tmp_path, kind):
    real = stand_in.KINDS[kind]
    small = real._replace(samples=30, classes=10)
    monkeypatch.setitem(stand_in.KINDS, kind, small)
    monkeypatch.setattr(stand_in, 'NUM_FILES', 4)
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
