"""Data sets, schedules and settings under ``configs/_base_``, on files of the real formats."""

import itertools

import pytest
import torch
from mmengine.registry import PARAM_SCHEDULERS
from PIL import Image
from torchvision import transforms
from torchvision.datasets.folder import default_loader
from torchvision.transforms import functional

from crd_plugin.datasets import SampleIndexDataset
from crd_plugin.registry import DATASETS, MODELS
from tests.config_files import BASE, parsed

CIFAR10_STATS = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CIFAR100_STATS = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
FASHION_STATS = ((72.94 / 255,) * 3, (90.02 / 255,) * 3)
IMAGENET_STATS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Folder, pixels, mean and deviation of RGB / 255.
FACTS = dict(
    cifar10=('data/cifar10', 32, CIFAR10_STATS),
    cifar100=('data/cifar100', 32, CIFAR100_STATS),
    fashion_mnist=('data/fashion-mnist', 28, FASHION_STATS),
    imagenet=('data/imagenet', 224, IMAGENET_STATS),
    tiny_imagenet=('data/tiny-imagenet-200', 64, IMAGENET_STATS),
    stl10=('data/stl10_binary', 64, IMAGENET_STATS),
    stl10_unlabeled=('data/stl10_binary', 64, IMAGENET_STATS),
)
PADDED = ('cifar10', 'cifar100', 'fashion_mnist')  # then cropped at random
# Learning rate, weight decay, epochs, decays, images in a batch of all GPUs.
SCHEDULES = {
    'cifar_b64-240e': (0.05, 5e-4, 240, (150, 180, 210), 64),
    'cifar_b64-240e_lr001': (0.01, 5e-4, 240, (150, 180, 210), 64),
    'cifar_b64-30e-240e': (0.05, 5e-4, 270, (180, 210, 240), 64),
    'cifar_b64-30e-240e_lr001': (0.01, 5e-4, 270, (180, 210, 240), 64),
    'cifar_b64-30e-240e_init001': (0.05, 5e-4, 270, (180, 210, 240), 64),
    'cifar_8xb16-200e': (0.1, 1e-4, 200, (100, 150), 128),
    'imagenet_b256-100e': (0.1, 1e-4, 100, (30, 60, 90), 256),
    'probe_b64-120e': (0.05, 5e-4, 120, (30, 60, 90), 64),
}


def _load(name):
    return parsed(BASE / 'datasets' / f'{name}.py')


def _train_and_val(cfg):
    return tuple(
        DATASETS.build(loader.dataset) for loader in (cfg.train_dataloader, cfg.val_dataloader)
    )


def _preprocess(cfg, item):
    preprocess = MODELS.build(cfg.data_preprocessor)
    batch = preprocess(dict(inputs=item['inputs'][None], data_samples=[item['data_samples']]))
    return batch['inputs'][0]


def _pil(folder, split, written):
    """Return the images that torchvision's folders would load, or the array as it is."""
    if isinstance(written, tuple):
        return [Image.fromarray(image).convert('RGB') for image in written[0]]
    below = '' if written[0][0].startswith(split) else f'{split}/'
    return [default_loader(f'{folder}/{below}{path}') for path, _ in written]


def _reference(pixels, stats):
    """Apply torchvision's ToTensor and Normalize."""
    return transforms.Compose([transforms.ToTensor(), transforms.Normalize(*stats)])(pixels)


@pytest.mark.parametrize('name', FACTS)
def test_train_set_has_ids_and_labels(data_files, name):
    train, val = _train_and_val(_load(name))
    folder, size, _ = FACTS[name]
    written = data_files[folder]
    assert isinstance(train, SampleIndexDataset)
    expected = written['unlabeled' if name == 'stl10_unlabeled' else 'train']
    if isinstance(expected, list):  # (path, label)
        expected = tuple(zip(*sorted(expected)))
    labels = list(expected[1])
    assert len(train) == len(labels)
    items = [train[i] for i in range(len(train))]
    assert [item['data_samples'].sample_idx for item in items] == list(range(len(train)))
    images = torch.stack([item['inputs'] for item in items])
    assert images.shape[1:] == (3, size, size) and images.dtype == torch.uint8
    if name == 'stl10_unlabeled':
        assert not any('gt_label' in item['data_samples'] for item in items)
        with pytest.raises(ValueError, match='STL10 has no labels'):
            train.get_gt_labels()
    else:
        assert train.get_gt_labels().tolist() == labels
        assert [item['data_samples'].gt_label.item() for item in items] == labels
    assert not isinstance(val, SampleIndexDataset)
    assert 'gt_label' in val[0]['data_samples']


@pytest.mark.parametrize('name', FACTS)
def test_test_images_are_those_of_torchvision(data_files, name):
    cfg = _load(name)
    folder, size, stats = FACTS[name]
    (split,) = {'test', 't10k', 'val'} & set(data_files[folder])
    images = _pil(folder, split, data_files[folder][split])
    _, val = _train_and_val(cfg)
    resize = transforms.Compose([])
    if name == 'imagenet':
        resize = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
        # One was written lying on its side, one in four colours.
        assert {image.size for image in images} >= {(400, 300), (300, 400)}
    elif name not in PADDED:
        resize = transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size)])
    assert len(val) == len(images)
    for position in range(min(len(val), 8)):
        expected = _reference(resize(images[position]), stats)
        found = _preprocess(cfg, val[position])
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize('name', [name for name in FACTS if name != 'stl10_unlabeled'])
def test_train_images_are_those_of_torchvision(data_files, name):
    cfg = _load(name)
    folder, size, stats = FACTS[name]
    train, _ = _train_and_val(cfg)
    *_, crop, flip, _ = train.dataset.pipeline.transforms
    assert (flip.prob, flip.direction) == (0.5, 'horizontal')
    # The same draws for both; the flip comes out both ways.
    if name in PADDED:
        assert crop.crop_size == (size, size) and not crop.pad_if_needed
        box = (1, 7, size, size)  # of the image with four pixels of padding
    else:
        theirs = transforms.RandomResizedCrop(size)
        assert crop.crop_ratio_range == tuple(theirs.scale)
        assert crop.aspect_ratio_range == tuple(theirs.ratio)
        box = (5, 9, 40, 31)
    turns = itertools.cycle(['horizontal', None])
    crop.rand_crop_params = lambda img: box
    flip._choose_direction = lambda: next(turns)
    files = data_files[folder]['train']
    if name == 'tiny_imagenet':
        files = sorted(files)
    for position, image in enumerate(_pil(folder, 'train', files)[:6]):
        if name in PADDED:
            image = functional.pad(image, 4)
        pixels = functional.resized_crop(image, *box, [size, size])
        if position % 2 == 0:
            pixels = functional.hflip(pixels)
        torch.testing.assert_close(
            _preprocess(cfg, train[position]), _reference(pixels, stats), rtol=0, atol=1e-5
        )


@pytest.mark.parametrize('name', sorted({*FACTS} - {'fashion_mnist'}))  # a system may have it
def test_missing_data_stops_at_once(tmp_path, monkeypatch, name):
    # Nothing is downloaded, and the folder is named.
    monkeypatch.chdir(tmp_path)
    cfg = _load(name)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        with pytest.raises((RuntimeError, FileNotFoundError), match=FACTS[name][0]):
            DATASETS.build(loader.dataset)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize('folder, tested', [('datasets', FACTS), ('schedules', SCHEDULES)])
def test_every_base_is_tested(folder, tested):
    # Those of the digits are run by the tests of the demo, NYU-Depth and photos by those of their
    # configs, the schedule of Fashion-MNIST is a cosine.
    elsewhere = ('digits', 'fashion-mnist', 'nyu', 'photos')
    assert set(tested) == {
        path.stem for path in (BASE / folder).glob('*.py') if not path.stem.startswith(elsewhere)
    }


def _rates(cfg):
    """Learning rate of each epoch, a cosine in steps of whole epochs."""
    optimizer = torch.optim.SGD(
        [torch.zeros(1, requires_grad=True)], lr=cfg.optim_wrapper.optimizer.lr
    )
    given = cfg.param_scheduler
    schedulers = [
        PARAM_SCHEDULERS.build(
            dict(one, convert_to_iter_based=False), default_args=dict(optimizer=optimizer)
        )
        for one in (given if isinstance(given, list) else [given])
    ]
    for _ in range(cfg.train_cfg.max_epochs):
        yield optimizer.param_groups[0]['lr']
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()


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
    for epoch, rate in enumerate(_rates(cfg)):
        factor = 0.1 ** sum(epoch >= decay for decay in decays)
        if name.endswith('_init001') and epoch < 30:
            factor = 0.01 / lr
        assert rate == pytest.approx(lr * factor)
    # A first stage is in front of as many epochs as without it.
    first = cfg.train_cfg.get('stage_epochs', {}).get('init', 0)
    assert (first == 30) == ('-30e-' in name)
    assert epochs - first in (100, 120, 200, 240)


@pytest.mark.parametrize('name, first', [('30e-40e', 0.05), ('30e-40e_init001', 0.01)])
def test_first_stage_is_in_front_of_the_cosine_of_fashion_mnist(name, first):
    cfg = parsed(BASE / 'schedules' / f'fashion-mnist_b64-{name}.py')
    alone = parsed(BASE / 'schedules' / 'fashion-mnist_b64-40e.py')
    assert cfg.train_cfg.stage_epochs == dict(init=30)
    assert list(_rates(cfg)) == pytest.approx([first] * 30 + list(_rates(alone)))
