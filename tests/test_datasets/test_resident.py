"""ResidentDataset: the batches of the plain loader, made on the device."""

import copy
import functools
import gc
import json
import os
import pickle
import socket
from unittest import mock

import mmengine.dataset.sampler
import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from mmengine.config import Config
from mmengine.dataset import RepeatDataset, default_collate, pseudo_collate
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmpretrain.datasets import BaseDataset
from torch.utils.data import ConcatDataset, DataLoader, Subset
from torch.utils.data._utils.pin_memory import pin_memory

import crd_plugin  # noqa: F401
from crd_plugin.datasets import ResidentDataset, SampleIndexDataset, whole_batch
from crd_plugin.fragments import keep_on_device
from crd_plugin.registry import DATASETS, MODELS
from tests import resident_worker, small_runs
from tests.resident_worker import RESIDENT
from tests.test_datasets.test_base_configs import BASE, small  # noqa: F401

NAMES = ('cifar10', 'cifar100', 'digits', 'stl10', 'stl10_unlabeled', 'tiny_imagenet')
CROP = dict(type='mmpretrain.RandomCrop', crop_size=2, padding=1)
PACK = dict(type='mmpretrain.PackInputs')


@pytest.fixture(autouse=True)
def scope(monkeypatch):
    # Each data set that is built collects garbage, a second with so many
    # modules.
    monkeypatch.setattr('mmengine.dataset.base_dataset.gc', mock.Mock())
    # What is expected is on the CPU.
    monkeypatch.setattr('crd_plugin.datasets.resident.get_device', lambda: 'cpu')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


@pytest.fixture
def configs(small):  # noqa: F811
    """The plain config of a data set and the resident one, files written."""

    def load(name):
        if name != 'digits':
            small(name)
        resident = copy.deepcopy(parsed(name))
        keep_on_device(resident)
        return parsed(name), resident

    return load


@functools.lru_cache(maxsize=None)
def parsed(name):
    """The config of a data set; nothing may change it."""
    return Config.fromfile(BASE / 'datasets' / f'{name}.py')


class Numbers(BaseDataset):
    """Sample i is an image of the value ``start + i``."""

    METAINFO = dict(classes=('a', 'b', 'c'))

    def __init__(self, labels=(0, 1, 2), start=0, key='gt_label', **kwargs):
        self.labels, self.start, self.key = labels, start, key
        kwargs.setdefault('serialize_data', False)  # it is slow for a test
        super().__init__(ann_file='', **kwargs)

    def load_data_list(self):
        return [
            {'img': np.full((2, 2, 3), self.start + i, dtype=np.uint8), self.key: label}
            for i, label in enumerate(self.labels)
        ]


def numbers(labels=(0, 1, 2, 0, 1), pipeline=(CROP, PACK), **kwargs):
    """A set whose images tell their number."""
    return Numbers(labels=list(labels), pipeline=list(pipeline), **kwargs)


def ids_of(batch):
    """Positions of a batch."""
    return batch['data_samples'].field('sample_idx').tolist()


@pytest.mark.parametrize('name', NAMES)
def test_evaluation_is_bit_identical(configs, name):
    batches = []
    for cfg in configs(name):
        assert cfg.test_dataloader == cfg.val_dataloader
        loader = copy.deepcopy(cfg.val_dataloader)
        loader.update(batch_size=8, num_workers=0, persistent_workers=False, pin_memory=False)
        loader.setdefault('collate_fn', dict(type='default_collate'))
        loader = Runner.build_dataloader(loader, seed=0)
        preprocess = MODELS.build(cfg.data_preprocessor)
        batches.append([preprocess(batch) for batch, _ in zip(loader, '1234')])
    assert len(batches[0]) == len(batches[1]) >= 3
    for theirs, ours in zip(*batches):
        assert theirs['inputs'].dtype == ours['inputs'].dtype == torch.float32
        assert torch.equal(theirs['inputs'], ours['inputs'])
        assert len(theirs['data_samples']) == len(ours['data_samples'])
        for expected, sample in zip(theirs['data_samples'], ours['data_samples']):
            assert sample.metainfo == expected.metainfo
            assert set(sample.keys()) == set(expected.keys()) == {'gt_label'}
            assert torch.equal(sample.gt_label, expected.gt_label)


@pytest.mark.parametrize('name', NAMES)
def test_training_images_are_those_of_the_plain_set(configs, name):
    plain, resident = configs(name)
    theirs = DATASETS.build(plain.train_dataloader.dataset)
    ours = DATASETS.build(resident.train_dataloader.dataset)
    assert isinstance(theirs, SampleIndexDataset)
    assert isinstance(ours, ResidentDataset)
    assert ours.num_samples == len(ours) == len(theirs)
    assert ours.metainfo == theirs.metainfo
    ours.set_seed(0)
    ids = list(range(len(ours)))[:40][::-1]
    batch = ours.__getitems__(ids)
    # The original, told where to crop and what to flip.
    draws = {key: table[ids].tolist() for key, table in ours._draws.items()}
    size = batch['inputs'].shape[2:]
    crop, flip = theirs.dataset.pipeline.transforms[-3:-1]
    if name == 'digits':
        crop, flip = flip, None
    for place, index in enumerate(ids):
        box = draws['box'][place]
        crop.rand_crop_params = lambda img: box if len(box) == 4 else (*box, *size)
        if flip is not None:
            turn = 'horizontal' if draws['flip'][place] else None
            flip._choose_direction = lambda: turn
        item = theirs[index]
        image, sample = item['inputs'], item['data_samples']
        difference = (batch['inputs'][place].int() - image.int()).abs()
        # Larger than the result: see ops.augment.resized_crop.
        assert difference.max() <= (len(box) == 4 and box[2] > size[0])
        mine = batch['data_samples'][place]
        assert mine.sample_idx == sample.sample_idx == index
        assert ('gt_label' in mine) == (name != 'stl10_unlabeled')
        assert mine.get('gt_label') == sample.get('gt_label')
    if name == 'stl10_unlabeled':
        with pytest.raises(ValueError, match='STL10 has no labels'):
            ours.get_gt_labels()
    else:
        assert (ours.get_gt_labels() == theirs.get_gt_labels()).all()


def test_a_single_item_is_that_of_the_plain_set():
    ours = ResidentDataset(numbers())
    theirs = SampleIndexDataset(numbers())
    for dataset in (ours, theirs):
        dataset.set_seed(3)
        dataset.set_epoch(2)
    for index in (3, -1):
        mine, item = ours[index], theirs[index]
        assert torch.equal(mine['inputs'], item['inputs'])
        assert mine['data_samples'].metainfo == item['data_samples'].metainfo
    # And no image was read for it.
    assert ours._held is None


def test_images_depend_on_seed_epoch_and_position_only():
    whole = list(range(30))

    def images(dataset, ids, step):
        parts = [ids[i : i + step] for i in range(0, len(ids), step)]
        batches = [dataset.__getitems__(part) for part in parts]
        return torch.cat([batch['inputs'] for batch in batches])

    dataset = ResidentDataset(numbers(range(30)))
    seen = {}
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        dataset.set_seed(seed)
        dataset.set_epoch(epoch)
        seen[seed, epoch] = images(dataset, whole, 30)
        # Other batches, another order, another object.
        other = ResidentDataset(numbers(range(30)))
        other.set_seed(seed)
        other.set_epoch(epoch)
        assert torch.equal(images(other, whole[::-1], 7).flip(0), seen[seed, epoch])
    first, *others = seen.values()
    for other in others:
        assert not torch.equal(first, other)
    # Other draws of the process change nothing, and none is left behind.
    torch.manual_seed(5)
    np.random.seed(5)
    state = torch.get_rng_state()
    dataset.set_seed(0)
    assert torch.equal(images(dataset, whole, 30), first)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize('seeded', [True, False])
def test_every_pass_differs_in_a_loop_without_epochs(seeded):
    runs_ = []
    for _ in range(2):
        torch.manual_seed(1)
        dataset = ResidentDataset(numbers(range(30)))
        if seeded:
            dataset.set_seed(1)
        runs_.append([dataset.__getitems__(list(range(30)))['inputs'] for _ in range(3)])
    first, second, third = runs_[0]
    assert not torch.equal(first, second) and not torch.equal(second, third)
    # As often as it is repeated.
    for one, other in zip(*runs_):
        assert torch.equal(one, other)


@pytest.mark.parametrize('world', [2, 3])
def test_ranks_share_the_set(world):
    dataset_cfg = dict(type='crd_plugin.ResidentDataset', dataset=numbers(range(30)))
    loader = dict(
        RESIDENT,
        batch_size=4,
        dataset=dataset_cfg,
        sampler=dict(type='DefaultSampler', shuffle=True),
    )
    seen = {}
    for rank, size in [(0, 1)] + [(rank, world) for rank in range(world)]:
        with (
            mock.patch.object(mmengine.dataset.sampler, 'get_dist_info', lambda: (rank, size)),
            mock.patch('crd_plugin.datasets.resident.get_world_size', lambda: size),
        ):
            built = Runner.build_dataloader(copy.deepcopy(loader), seed=4)
            built.dataset.set_seed(0)
            for epoch in range(2):
                built.sampler.set_epoch(epoch)
                built.dataset.set_epoch(epoch)
                batches = list(built)
                ids = [index for batch in batches for index in ids_of(batch)]
                images = torch.cat([batch['inputs'] for batch in batches])
                seen[size, rank, epoch] = dict(zip(ids, images))
                assert len(ids) == 30 // size
    for epoch in range(2):
        alone = seen[1, 0, epoch]
        shards = [seen[world, rank, epoch] for rank in range(world)]
        # Disjoint and together complete, each image as in a single process.
        assert sorted(index for shard in shards for index in shard) == list(range(30))
        for shard in shards:
            for index, image in shard.items():
                assert torch.equal(image, alone[index])
        assert set(shards[0]) != set(range(0, 30, world))


def test_one_tensor_holds_all():
    gc.collect()

    def count():
        return sum(
            type(thing) is torch.Tensor and thing.dtype == torch.uint8 and thing.numel() >= 200 * 48
            for thing in gc.get_objects()
        )

    before = count()
    dataset = ResidentDataset(numbers(range(200), serialize_data=True))
    for _ in range(3):
        batch = dataset.__getitems__([0, 5, 7])
    gc.collect()
    assert count() == before + 1
    held = dataset._held.images
    assert held.shape == (200, 3, 4, 4) and held.dtype == torch.uint8
    assert held.is_contiguous()
    assert batch['inputs'].is_contiguous()


def test_device():
    batch = ResidentDataset(numbers(), device='meta').__getitems__([0, 1])
    samples = batch['data_samples']
    for tensor in (batch['inputs'], samples.field('sample_idx'), samples.field('gt_label')):
        assert tensor.device.type == 'meta'
    with mock.patch('crd_plugin.datasets.resident.get_device', return_value='meta'):
        batch = ResidentDataset(numbers()).__getitems__([0, 1])
    assert batch['inputs'].device.type == 'meta'
    for wrong in ('gpu7', 3.5):
        with pytest.raises(ValueError, match='device must be None or a dev'):
            ResidentDataset(numbers(), device=wrong)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')
def test_batches_are_the_same_on_a_gpu(monkeypatch):
    monkeypatch.setattr('crd_plugin.datasets.resident.get_device', lambda: 'cuda')
    pipelines = (
        [CROP, dict(type='mmpretrain.RandomFlip', prob=0.5), PACK],
        [dict(type='mmpretrain.RandomResizedCrop', scale=5, backend='pillow'), PACK],
    )
    for pipeline in pipelines:
        batches = []
        for device in ('cpu', None):  # None: that of the model
            dataset = ResidentDataset(numbers(range(50), pipeline), device=device)
            dataset.set_seed(0)
            batches.append(dataset.__getitems__(list(range(50)))['inputs'])
        assert batches[1].device == torch.device('cuda', torch.cuda.current_device())
        assert torch.equal(batches[0], batches[1].cpu())


def test_wrappers_hold_each_image_once():
    parts = [numbers([0, 1, 2]), numbers([2, 1], start=100)]
    joined = ConcatDataset([RepeatDataset(parts[0], 2), Subset(parts[1], [1])])
    dataset = ResidentDataset(joined)
    plain = SampleIndexDataset(joined)
    assert len(dataset) == 7
    batch = dataset.__getitems__([6, 3, 0, 5])
    assert ids_of(batch) == [6, 3, 0, 5]
    assert dataset._held.images.shape[0] == 4
    labels = batch['data_samples'].field('gt_label')
    assert labels.tolist() == plain.get_gt_labels()[[6, 3, 0, 5]].tolist()
    # The middle of an image is never padding.
    dataset = ResidentDataset(
        ConcatDataset(
            [
                RepeatDataset(numbers([0, 1, 2], [PACK]), 2),
                Subset(numbers([2, 1], [PACK], start=100), [1]),
            ]
        )
    )
    values = dataset.__getitems__(list(range(7)))['inputs'][:, 0, 0, 0]
    assert values.tolist() == [0, 1, 2, 0, 1, 2, 101]
    # Copies are cropped each for itself.
    dataset = ResidentDataset(RepeatDataset(numbers(), 60))
    copies = dataset.__getitems__(list(range(0, 300, 5)))['inputs']
    assert len(copies.unique(dim=0)) == 1  # of zeros, hence
    copies = dataset.__getitems__(list(range(1, 300, 5)))['inputs']
    assert len(copies.unique(dim=0)) > 5


def test_metainfo_of_repeated_samples():
    dataset = ResidentDataset(RepeatDataset(numbers(pipeline=[PACK]), 2))
    samples = dataset.__getitems__([2, 7])['data_samples']
    assert [sample.sample_idx for sample in samples] == [2, 7]


@pytest.mark.parametrize('state', ['fresh', 'read'])
@pytest.mark.parametrize(
    'clone', [copy.deepcopy, lambda dataset: pickle.loads(pickle.dumps(dataset))]
)
def test_copies_read_anew(state, clone):
    dataset = ResidentDataset(numbers(range(20)))
    dataset.set_seed(0)
    ids = list(range(20))
    expected = dataset.__getitems__(ids)['inputs']
    if state == 'fresh':
        dataset = ResidentDataset(numbers(range(20)))
        dataset.set_seed(0)
    else:
        size = len(pickle.dumps(dataset))
        assert size < len(pickle.dumps(ResidentDataset(numbers(range(20))))) + 1000
    other = clone(dataset)
    other.set_epoch(0)
    assert other._held is None
    assert torch.equal(other.__getitems__(ids)['inputs'], expected)


def test_reading_is_logged():
    with mock.patch.object(MMLogger, 'get_current_instance') as logger:
        ResidentDataset(numbers()).__getitems__([0])
    message = logger().info.call_args.args[0]
    assert '5 images of 3x4x4 read in' in message
    assert 'now 0.00 MB on cpu' in message


def test_loader_with_workers_is_refused():
    iterator = iter(DataLoader(ResidentDataset(numbers()), num_workers=1, collate_fn=whole_batch))
    with pytest.raises(RuntimeError, match='(?s)read by a worker.*set dataloader=dict'):
        next(iterator)
    # Otherwise it is waited for when garbage is collected.
    iterator._shutdown_workers()


@pytest.mark.parametrize(
    'collate', [default_collate, pseudo_collate, torch.utils.data.default_collate]
)
def test_other_collate_functions_are_refused(collate):
    loader = DataLoader(ResidentDataset(numbers()), batch_size=2, collate_fn=collate)
    with pytest.raises(
        TypeError, match='collate_fn must leave alone; set dataloader.*crd_plugin.whole_batch'
    ):
        next(iter(loader))


def test_whole_batch_of_another_data_set_is_refused():
    inner = dict(type='crd_plugin.ResidentDataset', dataset=numbers())
    for dataset in (SampleIndexDataset(numbers()), RepeatDataset(inner, 2)):
        loader = DataLoader(dataset, collate_fn=whole_batch)
        with pytest.raises(TypeError, match='got a list; it has to be the outermost'):
            next(iter(loader))


def test_pinning_leaves_a_batch_where_it_is():
    batch = ResidentDataset(numbers()).__getitems__([0, 1])
    assert pin_memory(batch) is batch
    with pytest.raises(KeyError, match='images'):
        batch['images']


@pytest.mark.parametrize('ids', [[0, 5], [-1, 2]])
def test_positions_outside_are_refused(ids):
    with pytest.raises(IndexError, match='not all in the data set of 5 samp'):
        ResidentDataset(numbers()).__getitems__(ids)


class Own(Numbers):
    """Fetches in its own way."""

    def __getitem__(self, idx):
        return super().__getitem__(idx)


class Wrapper:
    """A wrapper that nothing is known of."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, idx):
        return self.dataset[len(self) - 1 - idx]


@pytest.mark.parametrize(
    'dataset, error, message',
    [
        (
            lambda: SampleIndexDataset(numbers(), num_negatives=2),
            ValueError,
            'num_negatives is 2, but ResidentDataset gives no contrast_idx',
        ),
        (
            lambda: RepeatDataset(dict(type='crd_plugin.SampleIndexDataset', dataset=numbers()), 2),
            ValueError,
            'SampleIndexDataset lies inside a wrapper',
        ),
        (
            lambda: numbers(pipeline=[dict(type='mmpretrain.ColorJitter'), PACK]),
            ValueError,
            'ColorJitter in the pipeline of Numbers',
        ),
        (
            lambda: ConcatDataset([numbers(), numbers(pipeline=[PACK])]),
            ValueError,
            'joined data sets crop or flip differently',
        ),
        (
            lambda: Own(pipeline=[PACK]),
            TypeError,
            'Own has no __getitem__ of mmengine.dataset.BaseDataset',
        ),
        (lambda: [1, 2], TypeError, 'list has no __getitem__ of mmengine'),
        (lambda: 7, TypeError, 'dataset must be a data set'),
    ],
)
def test_data_sets_that_are_refused(dataset, error, message):
    with pytest.raises(error, match=message):
        ResidentDataset(dataset())


class Sizes(Numbers):
    """Images grow."""

    def load_data_list(self):
        infos = super().load_data_list()
        infos[2]['img'] = np.zeros((3, 2, 3), np.uint8)
        return infos


@pytest.mark.parametrize(
    'dataset, error, message',
    [
        (
            lambda: ConcatDataset([numbers(), numbers(key='class')]),
            ValueError,
            '5 of 10 images have no gt_label',
        ),
        (
            lambda: Sizes(pipeline=[PACK]),
            ValueError,
            'Sample 2 of Sizes is 3x2, the first one 2x2 pixels; make them equal',
        ),
        (lambda: Wrapper(numbers()), TypeError, 'Wrapper is a wrapper that'),
    ],
)
def test_contents_that_are_refused(dataset, error, message):
    dataset = ResidentDataset(dataset())
    with pytest.raises(error, match=message):
        dataset.__getitems__([0])


def test_training_equals_the_plain_loader_in_order(tmp_path):
    plain, resident = resident_worker.Watch(), resident_worker.Watch()
    small_runs.build(tmp_path / 'plain', plain).train()
    small_runs.build(tmp_path / 'ours', resident, **resident_worker.changes()).train()
    assert len(plain.seen) == len(resident.seen) == small_runs.STEPS
    for theirs, ours in zip(plain.seen, resident.seen):
        assert theirs['ids'] == ours['ids']
        assert theirs['labels'] == ours['labels']
        assert theirs['inputs'].dtype == ours['inputs'].dtype == torch.uint8
        assert theirs['inputs'].shape == ours['inputs'].shape
    # All is logged that was logged before, validation included.
    logs = [small_runs.scalars(tmp_path / name) for name in ('plain', 'ours')]
    assert [set(line) for line in logs[0]] == [set(line) for line in logs[1]]
    assert 'accuracy/top1' in logs[1][-1]
    assert all(np.isfinite(line.get('loss', 0)) for line in logs[1])


def test_resumed_training_equals_an_uninterrupted_one(tmp_path):
    whole, part = tmp_path / 'whole', tmp_path / 'part'
    hooks = [resident_worker.Watch() for _ in range(3)]
    changes = resident_worker.without_validation()
    three = {**changes, 'train_cfg__max_epochs': 3}
    small_runs.build(whole, hooks[0], **three).train()
    small_runs.build(part, hooks[1], **changes).train()
    small_runs.build(part, hooks[2], **three, resume=True).train()
    again = hooks[1].seen + hooks[2].seen
    assert len(hooks[0].seen) == len(again) == 3 * small_runs.STEPS
    for one, other in zip(hooks[0].seen, again):
        assert one['ids'] == other['ids']
        assert torch.equal(one['inputs'], other['inputs'])
    weights = [small_runs.load(folder / 'epoch_3.pth')['state_dict'] for folder in (whole, part)]
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key]), key


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    """Steps of two epochs, in two processes under DDP."""
    folder = tmp_path_factory.mktemp('ranks')
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    mp.set_forkserver_preload(['tests.resident_worker'])
    with mock.patch.dict(os.environ, PYTHONPATH=str(small_runs.REPO), CUDA_VISIBLE_DEVICES=''):
        mp.start_processes(
            resident_worker.work, args=(str(folder), port), nprocs=2, start_method='forkserver'
        )
    return [torch.load(folder / f'{rank}.pth') for rank in range(2)]


def test_two_processes(ranks, tmp_path):
    alone = resident_worker.Watch()
    changes = resident_worker.without_validation()
    small_runs.build(tmp_path, alone, **changes).train()
    steps = len(ranks[0]) // 2
    for epoch in range(2):
        shards = [
            resident_worker.by_id(seen[epoch * steps : (epoch + 1) * steps]) for seen in ranks
        ]
        assert not set(shards[0]) & set(shards[1])
        assert sorted([*shards[0], *shards[1]]) == list(range(small_runs.NUM_SAMPLES))
        expected = resident_worker.by_id(
            alone.seen[epoch * small_runs.STEPS : (epoch + 1) * small_runs.STEPS]
        )
        for shard in shards:
            for index, image in shard.items():
                assert torch.equal(image, expected[index])


def test_line_in_a_config_is_all_it_takes(tmp_path):
    # What a user sets still fits.
    leaf = tmp_path / 'leaf.py'
    base = BASE / 'datasets' / 'digits.py'
    leaf.write_text(
        f'_base_ = [{json.dumps(str(base))}]\n'
        'from crd_plugin.fragments import keep_on_device\n\n'
        'keep_on_device(_base_)\n'
        'train_dataloader = dict(batch_size=4, dataset=dict(dataset=dict('
        'num_train_per_class=2)))\n'
    )
    cfg = Config.fromfile(leaf)
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    batch = next(iter(loader))
    assert len(loader.dataset) == 20 and batch['inputs'].shape[0] == 4
    assert loader.num_workers == 0 and not loader.pin_memory
    assert cfg.test_dataloader == cfg.val_dataloader
