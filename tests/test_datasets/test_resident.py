"""ResidentDataset: the batches of the plain loader, made on the device."""

import copy
import pickle
from unittest import mock

import numpy as np
import pytest
import torch
from mmengine.dataset import RepeatDataset, default_collate, pseudo_collate
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from torch.utils.data import ConcatDataset, DataLoader, Subset
from torch.utils.data._utils.pin_memory import pin_memory

from crd_plugin.datasets import ResidentDataset, SampleIndexDataset, whole_batch
from crd_plugin.registry import DATASETS, MODELS
from tests import small_runs
from tests.config_files import BASE, parsed
from tests.test_datasets.toy_dataset import PACK, Numbers, OwnIndexing

RESIDENT = dict(num_workers=0, collate_fn=dict(type='crd_plugin.whole_batch'))
CROP = dict(type='RandomCrop', crop_size=2, padding=1)
SETS = [
    'cifar10',
    'cifar100',
    'digits',
    'fashion_mnist',
    'stl10',
    'stl10_unlabeled',
    'tiny_imagenet',
]


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    """What is expected is on the CPU."""
    monkeypatch.setattr('crd_plugin.datasets.resident.get_device', lambda: 'cpu')


def numbers(labels=(0, 1, 2, 0, 1), pipeline=(CROP, PACK), **kwargs):
    """Return a data set whose images tell their number."""
    return Numbers(labels=list(labels), pipeline=list(pipeline), **kwargs)


def resident(dataset):
    """Return the config that keeps a data set on the device."""
    if isinstance(dataset, dict) and dataset['type'] == 'crd_plugin.SampleIndexDataset':
        dataset = dataset['dataset']
    return dict(type='crd_plugin.ResidentDataset', dataset=dataset)


@pytest.mark.parametrize('name', SETS)
def test_evaluation_is_bit_identical(data_files, name):
    cfg = parsed(BASE / 'datasets' / f'{name}.py')
    theirs = DATASETS.build(cfg.val_dataloader.dataset)
    loader = dict(RESIDENT, batch_size=8, sampler=dict(type='DefaultSampler', shuffle=False))
    loader['dataset'] = resident(cfg.val_dataloader.dataset)
    preprocess = [
        MODELS.build(dict(cfg.data_preprocessor, type=kind))
        for kind in ('ClsDataPreprocessor', 'crd_plugin.ResidentDataPreprocessor')
    ]
    seen = 0
    for ours, _ in zip(Runner.build_dataloader(loader, seed=0), '123'):
        items = [theirs[seen + place] for place in range(len(ours['inputs']))]
        seen += len(items)
        expected = preprocess[0](default_collate(items))
        found = preprocess[1](ours)
        assert found['inputs'].dtype == torch.float32
        assert torch.equal(found['inputs'], expected['inputs'])
        for mine, sample in zip(found['data_samples'], expected['data_samples']):
            assert mine.metainfo == sample.metainfo
            assert set(mine.keys()) == set(sample.keys()) == {'gt_label'}
            assert torch.equal(mine.gt_label, sample.gt_label)
    assert seen >= 20


@pytest.mark.parametrize('name', SETS)
def test_training_images_are_those_of_the_plain_set(data_files, name):
    cfg = parsed(BASE / 'datasets' / f'{name}.py').train_dataloader.dataset
    theirs, ours = DATASETS.build(cfg), DATASETS.build(resident(cfg))
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
        crop.rand_crop_params = mock.Mock(return_value=box if len(box) == 4 else (*box, *size))
        if flip is not None:
            turn = 'horizontal' if draws['flip'][place] else None
            flip._choose_direction = mock.Mock(return_value=turn)
        item = theirs[index]
        image, sample = item['inputs'], item['data_samples']
        difference = (batch['inputs'][place].int() - image.int()).abs()
        # A box with more lines than the result: see ops.augment.resized_crop.
        assert difference.max() <= (len(box) == 4 and box[2] > size[0])
        mine = batch['data_samples'][place]
        assert mine.sample_idx == sample.sample_idx == index
        assert mine.metainfo == dict(sample_idx=index)
        assert ('gt_label' in mine) == (name != 'stl10_unlabeled')
        assert mine.get('gt_label') == sample.get('gt_label')
    if name != 'stl10_unlabeled':
        assert (ours.get_gt_labels() == theirs.get_gt_labels()).all()


def test_images_depend_on_seed_epoch_and_position_only():
    whole = list(range(30))

    def images(dataset, ids, step):
        parts = [ids[i : i + step] for i in range(0, len(ids), step)]
        return torch.cat([dataset.__getitems__(part)['inputs'] for part in parts])

    dataset = ResidentDataset(numbers(range(30)))
    seen = {}
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        # Other batches, another order, another object.
        other = ResidentDataset(numbers(range(30)))
        for one in (dataset, other):
            one.set_seed(seed)
            one.set_epoch(epoch)
        seen[seed, epoch] = images(dataset, whole, 30)
        assert torch.equal(images(other, whole[::-1], 7).flip(0), seen[seed, epoch])
    first, *others = seen.values()
    assert not any(torch.equal(first, other) for other in others)
    # Other draws of the process change nothing, and none is left behind.
    torch.manual_seed(5)
    np.random.seed(5)
    state = torch.get_rng_state()
    dataset.set_seed(0)
    assert torch.equal(images(dataset, whole, 30), first)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize('seeded', [True, False])
def test_every_pass_differs_in_a_loop_without_epochs(seeded):
    runs = []
    for _ in range(2):
        torch.manual_seed(1)
        dataset = ResidentDataset(numbers(range(30)))
        if seeded:
            dataset.set_seed(1)
        passes = [dataset.__getitems__(list(range(30)))['inputs'] for _ in range(3)]
        runs.append(torch.stack(passes))
    assert torch.equal(*runs)
    assert len(runs[0].unique(dim=0)) == 3


def test_ranks_share_the_set():
    loader = dict(RESIDENT, batch_size=4, dataset=resident(numbers(range(30))))
    loader['sampler'] = dict(type='DefaultSampler', shuffle=True)
    seen = {}
    for rank, size in ((0, 1), (0, 3), (1, 3), (2, 3)):
        with (
            mock.patch('mmengine.dataset.sampler.get_dist_info', return_value=(rank, size)),
            mock.patch('crd_plugin.datasets.resident.get_world_size', return_value=size),
        ):
            built = Runner.build_dataloader(copy.deepcopy(loader), seed=4)
            built.dataset.set_seed(0)
            for epoch in range(2):
                built.sampler.set_epoch(epoch)
                built.dataset.set_epoch(epoch)
                batches = list(built)
                ids = [sample.sample_idx for batch in batches for sample in batch['data_samples']]
                images = torch.cat([batch['inputs'] for batch in batches])
                seen[size, rank, epoch] = dict(zip(ids, images))
                assert len(ids) == 30 // size
    # Disjoint and together complete, each image as in a single process.
    for epoch in range(2):
        shards = [seen[3, rank, epoch] for rank in range(3)]
        assert sorted(index for shard in shards for index in shard) == list(range(30))
        assert set(shards[0]) != set(range(0, 30, 3))
        for shard in shards:
            for index, image in shard.items():
                assert torch.equal(image, seen[1, 0, epoch][index])


def test_device():
    with mock.patch.object(MMLogger, 'get_current_instance') as logger:
        batch = ResidentDataset(numbers(), device='meta').__getitems__([0, 1])
    assert batch['inputs'].is_meta and batch['data_samples'][1].gt_label.is_meta
    assert '5 images of shape (3, 4, 4) read in' in logger().info.call_args.args[0]
    with mock.patch('crd_plugin.datasets.resident.get_device', return_value='meta'):
        assert ResidentDataset(numbers()).__getitems__([0, 1])['inputs'].is_meta


@pytest.mark.cuda
def test_batches_are_the_same_on_a_gpu(monkeypatch):
    monkeypatch.setattr('crd_plugin.datasets.resident.get_device', lambda: 'cuda')
    pipelines = (
        [CROP, dict(type='RandomFlip', prob=0.5), PACK],
        [dict(type='RandomResizedCrop', scale=5, backend='pillow'), PACK],
    )
    for pipeline in pipelines:
        batches = []
        for device in ('cpu', None):  # None: that of the model
            dataset = ResidentDataset(numbers(range(50), pipeline), device=device)
            dataset.set_seed(0)
            batches.append(dataset.__getitems__(list(range(50)))['inputs'])
        assert batches[1].device == torch.device('cuda', torch.cuda.current_device())
        assert torch.equal(batches[0], batches[1].cpu())


def test_wrappers_keep_each_image_once():
    parts = [numbers([0, 1, 2], [PACK]), numbers([2, 1], [PACK], start=100)]
    joined = ConcatDataset([RepeatDataset(parts[0], 2), Subset(parts[1], [1])])
    dataset, plain = ResidentDataset(joined), SampleIndexDataset(joined)
    assert len(dataset) == 7
    batch = dataset.__getitems__([6, 3, 0, 5])
    assert [sample.sample_idx for sample in batch['data_samples']] == [6, 3, 0, 5]
    assert batch['inputs'][:, 0, 0, 0].tolist() == [101, 0, 0, 2]
    images = dataset._held.images
    assert images.shape == (4, 3, 2, 2) and images.dtype == torch.uint8
    assert images.is_contiguous() and batch['inputs'].is_contiguous()
    labels = [sample.gt_label.item() for sample in batch['data_samples']]
    assert labels == plain.get_gt_labels()[[6, 3, 0, 5]].tolist()
    # Copies are cropped each for itself; those of 1 show, those of 0 are as black as the padding.
    dataset = ResidentDataset(RepeatDataset(numbers(), 60))
    copies = dataset.__getitems__(list(range(1, 300, 5)))['inputs']
    assert len(copies.unique(dim=0)) > 5


@pytest.mark.parametrize(
    'clone', [copy.deepcopy, lambda dataset: pickle.loads(pickle.dumps(dataset))]
)
def test_copies_read_again(clone):
    dataset = ResidentDataset(numbers(range(20)))
    dataset.set_seed(0)
    size = len(pickle.dumps(dataset))
    expected = dataset.__getitems__(list(range(20)))['inputs']
    assert len(pickle.dumps(dataset)) < size + 1000
    other = clone(dataset)
    other.set_epoch(0)
    assert other._held is None
    assert torch.equal(other.__getitems__(list(range(20)))['inputs'], expected)


def test_loader_with_workers_is_refused():
    iterator = iter(DataLoader(ResidentDataset(numbers()), num_workers=1, collate_fn=whole_batch))
    with pytest.raises(RuntimeError, match='(?s)read by a worker.*set dataloader=dict'):
        next(iterator)
    # Otherwise it is waited for when garbage is collected.
    iterator._shutdown_workers()


@pytest.mark.parametrize('collate', [default_collate, pseudo_collate])
def test_other_collate_functions_are_refused(collate):
    loader = DataLoader(ResidentDataset(numbers()), batch_size=2, collate_fn=collate)
    with pytest.raises(TypeError, match='must leave alone; set dataloader.*crd_plugin.whole_batch'):
        next(iter(loader))


def test_whole_batch_of_another_data_set_is_refused():
    for dataset in (SampleIndexDataset(numbers()), RepeatDataset(resident(numbers()), 2)):
        with pytest.raises(TypeError, match='got a list; ResidentDataset has to be the outermost'):
            next(iter(DataLoader(dataset, collate_fn=whole_batch)))


def test_pinning_leaves_a_batch_where_it_is():
    batch = ResidentDataset(numbers()).__getitems__([0, 1])
    assert pin_memory(batch) is batch
    with pytest.raises(KeyError, match='images'):
        batch['images']


SHORT = dict(pipeline=[dict(type='Pad', size=(3, 2)), CROP, PACK])
INNER = dict(type='crd_plugin.SampleIndexDataset', dataset=numbers())
REFUSED = {
    'contains a SampleIndexDataset': lambda: RepeatDataset(INNER, 2),
    'joined data sets crop or': lambda: ConcatDataset([numbers(), numbers(pipeline=[PACK])]),
    'OwnIndexing does not use __getitem__ of mmengine.dataset': OwnIndexing,
    'list does not use __getitem__ of mmengine': lambda: [1, 2],
    '5 of 10 images have no gt_label': lambda: ConcatDataset([numbers(), numbers(key='class')]),
    r'sample 0 of Numbers has shape \(3, 4, 5\), the first one \(3, 4, 4\); make': lambda: (
        ConcatDataset([numbers(), numbers(**SHORT)])
    ),
}


@pytest.mark.parametrize('message', REFUSED)
def test_data_sets_that_are_refused(message):
    error = TypeError if 'does not use' in message else ValueError
    with pytest.raises(error, match=message):
        ResidentDataset(REFUSED[message]()).__getitems__([0])


# --- training --------------------------------------------------------------


def _train(work_dir, kept=True, **changes):
    """Train with the data on the device or not; return ids, labels and images of each step."""
    seen = []

    def look(runner, batch_idx, data_batch):
        samples = data_batch['data_samples']
        facts = [(sample.sample_idx, sample.gt_label.tolist()) for sample in samples]
        seen.append((facts, torch.stack(list(data_batch['inputs']))))

    for key in ('train_dataloader', 'val_dataloader') if kept else ():
        cfg = small_runs.config('unused')[key].to_dict()
        dataset = resident(cfg['dataset'])
        changes[key] = {**cfg, **RESIDENT, 'dataset': dataset, '_delete_': True}
    small_runs.build(work_dir, small_runs.Watch('before_train_iter', look), **changes).train()
    return seen


def test_training_equals_the_plain_loader_in_order_and_resumes(tmp_path):
    two, three = (dict(train_cfg__max_epochs=epochs) for epochs in (2, 3))
    plain = _train(tmp_path / 'plain', kept=False, **three)
    steps = _train(tmp_path / 'whole', **three)
    again = _train(tmp_path / 'part', **two) + _train(tmp_path / 'part', **three, resume=True)
    assert len(steps) == 3 * small_runs.STEPS
    for (facts, images), ours, others in zip(plain, steps, again, strict=True):
        assert facts == ours[0] == others[0]
        assert images.dtype == ours[1].dtype and images.shape == ours[1].shape
        assert torch.equal(ours[1], others[1])
    weights = [
        small_runs.load(tmp_path / name / 'epoch_3.pth')['state_dict'] for name in ('whole', 'part')
    ]
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key]), key
    # All is logged that was logged before, validation included.
    logs = [small_runs.scalars(tmp_path / name) for name in ('plain', 'whole')]
    assert [set(line) for line in logs[0]] == [set(line) for line in logs[1]]
    assert 'accuracy/top1' in logs[1][-1]
