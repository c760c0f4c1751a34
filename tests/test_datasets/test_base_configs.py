"""Data sets, schedules and settings under ``configs/_base_``, on files of the real formats."""

import itertools
import random

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS, DefaultScope
from mmengine.runner import Runner
from PIL import Image

from crd_plugin.datasets import SampleIndexDataset
from crd_plugin.registry import DATASETS, MODELS
from tests import fake_data, small_runs
from tests.config_files import BASE, parsed

# Folder that the config names, and what writes it.
WRITERS = dict(
    cifar10=('data/cifar10', fake_data.write_cifar10),
    cifar100=('data/cifar100', fake_data.write_cifar100),
    imagenet=('data/imagenet', fake_data.write_imagenet),
    tiny_imagenet=('data/tiny-imagenet-200', fake_data.write_tiny_imagenet),
    stl10=('data/stl10_binary', fake_data.write_stl10),
    stl10_unlabeled=('data/stl10_binary', fake_data.write_stl10),
)
CIFAR10_STATS = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CIFAR100_STATS = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
IMAGENET_STATS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Pixels, classes, mean and deviation of RGB / 255.
FACTS = dict(
    cifar10=(32, 10, CIFAR10_STATS),
    cifar100=(32, 100, CIFAR100_STATS),
    imagenet=(224, 1000, IMAGENET_STATS),
    tiny_imagenet=(64, 200, IMAGENET_STATS),
    stl10=(64, 10, IMAGENET_STATS),
    stl10_unlabeled=(64, 10, IMAGENET_STATS),
)
# Learning rate, weight decay, epochs, decays, images in a batch of all GPUs.
SCHEDULES = {
    'cifar_b64-240e': (0.05, 5e-4, 240, (150, 180, 210), 64),
    'cifar_b64-240e_lr001': (0.01, 5e-4, 240, (150, 180, 210), 64),
    'cifar_b64-30e-240e': (0.05, 5e-4, 270, (180, 210, 240), 64),
    'cifar_b64-30e-240e_lr001': (0.01, 5e-4, 270, (180, 210, 240), 64),
    'cifar_b64-30e-240e_init001': (0.05, 5e-4, 270, (180, 210, 240), 64),
    'cifar_8xb16-200e': (0.1, 1e-4, 200, (100, 150), 128),
    'imagenet_b256-100e': (0.1, 1e-4, 100, (30, 60, 90), 256),
}


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Config of a data set whose files lie where it looks for them."""
    fake_data.without_md5(monkeypatch)
    monkeypatch.chdir(tmp_path)

    def load(name):
        folder, write = WRITERS[name]
        return parsed(BASE / 'datasets' / f'{name}.py'), write(tmp_path / folder)

    return load


def _train_and_val(cfg):
    return (
        DATASETS.build(cfg.train_dataloader.dataset),
        DATASETS.build(cfg.val_dataloader.dataset),
    )


def _preprocess(cfg, item):
    preprocess = MODELS.build(cfg.data_preprocessor)
    batch = preprocess(dict(inputs=item['inputs'][None], data_samples=[item['data_samples']]))
    return batch['inputs'][0]


def _pil(folder, split, written):
    """The images that torchvision's folders would load, or the array as it is."""
    from torchvision.datasets.folder import default_loader

    if isinstance(written, tuple):
        return [Image.fromarray(image) for image in written[0]]
    below = '' if written[0][0].startswith(split) else f'{split}/'
    return [default_loader(f'{folder}/{below}{path}') for path, _ in written]


def _reference(pixels, stats):
    """Torchvision's ToTensor and Normalize."""
    from torchvision import transforms

    return transforms.Compose([transforms.ToTensor(), transforms.Normalize(*stats)])(pixels)


@pytest.mark.parametrize('name', WRITERS)
def test_train_set_has_ids_and_labels(small, name):
    cfg, written = small(name)
    train, val = _train_and_val(cfg)
    size = FACTS[name][0]
    assert isinstance(train, SampleIndexDataset)
    expected = written['unlabeled' if name == 'stl10_unlabeled' else 'train']
    labels = (
        expected[1].tolist()
        if isinstance(expected, tuple)
        else [label for _, label in sorted(expected)]
    )
    assert len(train) == len(labels)
    items = [train[i] for i in range(len(train))]
    assert [item['data_samples'].sample_idx for item in items] == list(range(len(train)))
    for item in items:
        assert tuple(item['inputs'].shape) == (3, size, size)
        assert item['inputs'].dtype == torch.uint8
    if name == 'stl10_unlabeled':
        assert not any('gt_label' in item['data_samples'] for item in items)
        with pytest.raises(ValueError, match='STL10 has no labels'):
            train.get_gt_labels()
    else:
        assert train.get_gt_labels().tolist() == labels
        assert [item['data_samples'].gt_label.item() for item in items] == labels
    assert not isinstance(val, SampleIndexDataset)
    assert 'gt_label' in val[0]['data_samples']


@pytest.mark.parametrize('name', WRITERS)
def test_test_images_are_those_of_torchvision(small, name):
    from torchvision import transforms

    cfg, written = small(name)
    size, _, stats = FACTS[name]
    split = 'test' if 'test' in written else 'val'
    images = _pil(WRITERS[name][0], split, written[split])
    _, val = _train_and_val(cfg)
    resize = transforms.Compose([])
    if name == 'imagenet':
        resize = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
        # One was written lying on its side, one in four colours.
        assert {image.size for image in images} >= {(400, 300), (300, 400)}
    elif not name.startswith('cifar'):
        resize = transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size)])
    assert len(val) == len(images)
    for position in range(min(len(val), 8)):
        expected = _reference(resize(images[position]), stats)
        found = _preprocess(cfg, val[position])
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize('name', ['imagenet', 'tiny_imagenet', 'stl10'])
def test_train_images_are_those_of_torchvision(small, name):
    from torchvision.transforms import RandomResizedCrop
    from torchvision.transforms import functional as F

    cfg, written = small(name)
    size, _, stats = FACTS[name]
    train, _ = _train_and_val(cfg)
    *_, crop, flip, _ = train.dataset.pipeline.transforms
    theirs = RandomResizedCrop(size)
    assert crop.crop_ratio_range == tuple(theirs.scale)
    assert crop.aspect_ratio_range == tuple(theirs.ratio)
    # The same draws for both; the flip comes out both ways.
    box = (5, 9, 40, 31)
    turns = itertools.cycle(['horizontal', None])
    crop.rand_crop_params = lambda img: box
    flip._choose_direction = lambda: next(turns)
    if name == 'tiny_imagenet':
        written['train'].sort()
    for position, image in enumerate(_pil(WRITERS[name][0], 'train', written['train'])[:6]):
        pixels = F.resized_crop(image, *box, [size, size])
        if position % 2 == 0:
            pixels = F.hflip(pixels)
        torch.testing.assert_close(
            _preprocess(cfg, train[position]), _reference(pixels, stats), rtol=0, atol=1e-5
        )


@pytest.mark.parametrize('name', ['cifar10', 'cifar100'])
def test_cifar_crops_and_flips(small, name):
    cfg, written = small(name)
    train, _ = _train_and_val(cfg)
    # Every pixel tells its place, so a crop tells where it was taken.
    rows, columns = np.mgrid[:32, :32] + 1
    image = np.stack([rows, columns, np.full((32, 32), 99)], axis=-1).astype(np.uint8)
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
    pipeline = train.dataset.pipeline
    np.random.seed(0)
    random.seed(0)
    seen = []
    for _ in range(400):
        found = pipeline(dict(img=image, gt_label=0))['inputs'].numpy()
        found = found.transpose(1, 2, 0)
        middle = found[16, 16:18, 1].astype(int)
        flipped = middle[1] < middle[0]
        upright = found[:, ::-1] if flipped else found
        top, left = 4 + upright[16, 16, :2].astype(int) - 1 - 16
        assert (upright == padded[top : top + 32, left : left + 32]).all()
        seen.append((top, left, flipped))
    tops, lefts, flips = map(np.array, zip(*seen, strict=True))
    for offsets in (tops, lefts):
        # Nine values, 44 times each on average.
        counts = np.bincount(offsets, minlength=9)
        assert len(counts) == 9 and counts.min() > 20
    assert 150 < flips.sum() < 250


def test_cifar_padding_is_black_before_normalisation(small):
    cfg, _ = small('cifar100')
    sample = DATASETS.build(cfg.val_dataloader.dataset)[0]
    sample['inputs'][:] = 0
    mean, std = map(torch.tensor, CIFAR100_STATS)
    torch.testing.assert_close(_preprocess(cfg, sample)[:, 0, 0], -mean / std, rtol=0, atol=1e-5)


@pytest.mark.parametrize('name', WRITERS)
def test_missing_data_stops_at_once(tmp_path, monkeypatch, name):
    # Nothing is downloaded, and the folder is named.
    monkeypatch.chdir(tmp_path)
    cfg = parsed(BASE / 'datasets' / f'{name}.py')
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        with pytest.raises((RuntimeError, FileNotFoundError), match=WRITERS[name][0]):
            DATASETS.build(loader.dataset)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize('name', WRITERS)
def test_settings_of_the_loaders(name):
    cfg = parsed(BASE / 'datasets' / f'{name}.py')
    assert cfg.data_preprocessor.num_classes == FACTS[name][1]
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        assert loader.num_workers > 0
        assert loader.persistent_workers and loader.pin_memory
    assert cfg.train_dataloader.sampler.shuffle is True
    assert cfg.val_dataloader.sampler.shuffle is False
    assert cfg.test_dataloader == cfg.val_dataloader
    assert cfg.val_evaluator.type == 'Accuracy'
    assert tuple(cfg.val_evaluator.topk) == (1, 5)


@pytest.mark.parametrize('folder, tested', [('datasets', WRITERS), ('schedules', SCHEDULES)])
def test_every_base_is_tested(folder, tested):
    # Those of the digits are run by the tests of the demo.
    assert set(tested) == {
        path.stem for path in (BASE / folder).glob('*.py') if not path.stem.startswith('digits')
    }


@pytest.mark.parametrize('name', SCHEDULES)
def test_schedule(name):
    cfg = parsed(BASE / 'schedules' / f'{name}.py')
    lr, weight_decay, epochs, decays, batch = SCHEDULES[name]
    assert cfg.optim_wrapper.optimizer == dict(
        type='SGD', lr=lr, momentum=0.9, weight_decay=weight_decay
    )
    assert cfg.train_cfg.max_epochs == epochs
    assert cfg.auto_scale_lr.base_batch_size == batch
    # The published code lowers the rate after so many whole epochs.
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    given = cfg.param_scheduler
    schedulers = [
        PARAM_SCHEDULERS.build(one, default_args=dict(optimizer=optimizer))
        for one in (given if isinstance(given, list) else [given])
    ]
    for epoch in range(epochs):
        factor = 0.1 ** sum(epoch >= decay for decay in decays)
        if name.endswith('_init001') and epoch < 30:
            factor = 0.01 / lr
        assert optimizer.param_groups[0]['lr'] == pytest.approx(lr * factor)
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    # A first stage is in front of as many epochs as without it.
    first = cfg.train_cfg.get('stage_epochs', {}).get('init', 0)
    assert (first == 30) == ('-30e-' in name)
    assert epochs - first in (100, 200, 240)


@pytest.mark.parametrize(
    'dataset, settings',
    [
        ('cifar10', 'cifar10_8xb16-200e'),
        ('cifar100', 'cifar100_b64-240e_lr001'),
        ('imagenet', 'imagenet_8xb32-100e'),
        ('tiny_imagenet', 'tiny-imagenet_b32-240e'),
        ('stl10', 'stl10_tuned'),
    ],
)
def test_settings_train(small, tmp_path, dataset, settings):
    small(dataset)
    # A copy: the other tests share the parsed config.
    cfg = Config.fromfile(BASE / 'settings' / f'{settings}.py')
    _, classes, stats = FACTS[dataset]
    cfg.merge_from_dict(
        {
            'model': small_runs.net(4),
            'model.head.num_classes': classes,
            'train_cfg.max_epochs': 2,
            'train_dataloader.batch_size': 8,
            'work_dir': str(tmp_path / 'work'),
            'experiment_name': f'leaf-{dataset}-{id(cfg)}',
            'default_hooks.logger.interval': 1,
            'default_hooks.checkpoint.interval': -1,
            'default_hooks.checkpoint.save_best': None,
        }
    )
    del cfg.model['data_preprocessor']
    cfg.optim_wrapper.pop('paramwise_cfg', None)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False, pin_memory=False)
    runner = Runner.from_cfg(cfg)
    runner.train()
    lines = small_runs.scalars(tmp_path / 'work')
    losses = [line['loss'] for line in lines if 'loss' in line]
    assert len(losses) == 2 * len(runner.train_dataloader)
    assert np.mean(losses[-2:]) < np.mean(losses[:2])
    assert runner.model.data_preprocessor.mean.flatten().tolist() == pytest.approx(
        [255 * value for value in stats[0]]
    )
    last = [line for line in lines if 'accuracy/top1' in line][-1]
    assert 0 <= last['accuracy/top1'] <= last['accuracy/top5'] <= 100


@pytest.mark.parametrize('path', sorted(BASE.glob('settings/*.py')), ids=lambda path: path.stem)
def test_learning_rate_belongs_to_the_batch(path):
    cfg = parsed(path)
    gpus = 8 if '_8xb' in path.stem else 1
    assert cfg.train_dataloader.batch_size * gpus == cfg.auto_scale_lr.base_batch_size
    # A method's hooks are there for all data and schedules.
    hooks = {'crd_plugin.MemoryBankHook', 'crd_plugin.CoCoRDHook', 'crd_plugin.RandomStateHook'}
    assert hooks <= {hook.type for hook in cfg.default_hooks.values()}
