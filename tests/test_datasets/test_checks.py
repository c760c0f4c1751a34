"""Checks of data sets and samples: what is refused, and that the file is named."""

import os

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import crd_plugin.cli  # noqa: F401  sets a variable
from crd_plugin.cli.lookup import wants_complete
from crd_plugin.datasets import SampleIndexDataset, _checks, sample_index
from crd_plugin.datasets._checks import check_image
from crd_plugin.datasets.sample_index import check_sources
from crd_plugin.registry import DATASETS
from tests.config_files import BASE, parsed
from tests.test_datasets.toy_dataset import PACK, Numbers, drop_odd, numbers

LOAD = dict(type='LoadImageFromFile')


def folder(root):
    """Write six images of two classes; return a config."""
    rng = np.random.default_rng(0)
    for label in 'ab':
        (root / label).mkdir()
        for name in '012':
            image = rng.integers(0, 255, (4, 4, 3)).astype(np.uint8)
            cv2.imwrite(str(root / label / f'{name}.png'), image)
    return dict(type='CustomDataset', data_root=str(root), data_prefix='', pipeline=[LOAD, PACK])


def kinds(dataset):
    """The data set wrapped for a loader with workers, and to be kept on the device."""
    yield SampleIndexDataset(dataset).__getitem__
    resident = DATASETS.build(
        dict(type='crd_plugin.ResidentDataset', dataset=dataset, device='cpu')
    )
    yield lambda index: resident.__getitems__([index])


@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
@pytest.mark.parametrize('size', [0, 60])
def test_a_broken_image_is_named(tmp_path, backend, size):
    cfg = folder(tmp_path)
    path = tmp_path / 'b/1.png'
    path.write_bytes(path.read_bytes()[:size])
    cfg['pipeline'] = [dict(LOAD, imdecode_backend=backend), PACK]
    views = dict(type='crd_plugin.MultiViewPipeline', transforms=cfg['pipeline'], num_views=2)
    reads = [
        *kinds(cfg),
        *(
            SampleIndexDataset({**cfg, **changes}).__getitem__
            for changes in (dict(pipeline=[views]), dict(test_mode=True))
        ),
    ]
    for read in reads:
        with pytest.raises(ValueError, match=f'^{path} .sample 4 of CustomDataset. cannot be read'):
            read(4)


def test_an_image_that_is_too_large_is_named(tmp_path, monkeypatch):
    cfg = folder(tmp_path)
    cfg['pipeline'] = [dict(LOAD, imdecode_backend='pillow'), PACK]
    monkeypatch.setattr('PIL.Image.MAX_IMAGE_PIXELS', 7)  # an error from twice as many on
    with pytest.raises(ValueError, match='a/0.png .*exceeds limit of 14 pixels'):
        SampleIndexDataset(cfg)[0]


def test_opencv_has_the_limit_of_pillow_in_the_tools():
    assert int(os.environ['OPENCV_IO_MAX_IMAGE_PIXELS']) == 2 * Image.MAX_IMAGE_PIXELS


def test_what_opencv_says_is_translated(monkeypatch):
    def decode(info):
        raise cv2.error('(-215:Assertion failed) pixels <= CV_IO_MAX_IMAGE_PIXELS in function ...')

    monkeypatch.setenv('OPENCV_IO_MAX_IMAGE_PIXELS', '7000')
    with pytest.raises(ValueError, match='it has more pixels than OpenCV takes, 7000; replace'):
        SampleIndexDataset(numbers(pipeline=[decode]))[0]


def test_what_has_no_file_is_named_by_its_index():
    class Broken(Numbers):
        def get_data_info(self, idx):
            raise OSError('disk gone')

    def fail(info):
        raise KeyError('nothing')

    with pytest.raises(ValueError, match='sample 2 of Broken cannot be read: disk gone'):
        SampleIndexDataset(Broken())[2]
    with pytest.raises(ValueError, match="sample 3 of Numbers cannot be read: 'nothing'; "):
        SampleIndexDataset(numbers(pipeline=[fail]))[3]


def test_a_missing_file_is_named_as_such(tmp_path):
    dataset = SampleIndexDataset(folder(tmp_path))
    (tmp_path / 'a/0.png').unlink()
    with pytest.raises(FileNotFoundError, match='a/0.png'):
        dataset[0]


def test_a_replaced_sample_is_told_once(monkeypatch):
    said = []
    dataset = SampleIndexDataset(numbers(pipeline=[drop_odd, PACK]))
    logger = type('Log', (), dict(warning=lambda _, message: said.append(message)))()
    monkeypatch.setattr(sample_index.MMLogger, 'get_current_instance', lambda: logger)
    for index in (0, 3, 1, 3):
        dataset[index]
    assert len(said) == 1
    assert said[0].startswith('sample 3 of Numbers is replaced by a random other sample')


# --- channels and types ----------------------------------------------------


@pytest.mark.parametrize(
    'image, problem',
    [
        (np.zeros((4, 4, 4), np.uint8), 'has 4 channels, .*before it 3'),
        (np.zeros((4, 4), np.uint8), 'has 1 channels, .*before it 3'),
        (np.zeros((4, 4, 3), np.uint16), 'type uint16, expected uint8 .*'),
    ],
    ids=['RGBA', 'gray', '16 bits'],
)
def test_an_image_of_another_kind_is_named(tmp_path, image, problem):
    cfg = folder(tmp_path)
    cv2.imwrite(str(tmp_path / 'a/other.png'), image)
    cfg['pipeline'] = [dict(LOAD, color_type='unchanged'), PACK]
    dataset = SampleIndexDataset(cfg)
    assert len(dataset) == 7 and 'inputs' in dataset[0]
    with pytest.raises(ValueError, match=f"a/other.png .* {problem}; .*color_type='color'"):
        dataset[3]


def test_what_may_stand_in_a_batch():
    owner = Numbers()
    for image in (torch.zeros(4, 2, 2, dtype=torch.uint8), torch.zeros(4, 2, 2)):
        assert check_image(dict(inputs=image), None, owner, 0) == 4
        assert check_image(dict(inputs=[image, image]), 4, owner, 0) == 4
    assert check_image(dict(inputs=torch.zeros(7)), 3, owner, 0) == 3  # features, say
    assert check_image(dict(), None, owner, 0) is None


# --- whole data sets -------------------------------------------------------


@pytest.fixture
def published(monkeypatch):
    """As if the toy data set were a published one of six images, two per class."""
    monkeypatch.setitem(_checks._IMAGES, 'Numbers', dict(train=6))


def _full_init(complete=True, split='train', **kwargs):
    dataset = DATASETS.build(numbers(**kwargs))
    dataset.split = split
    SampleIndexDataset(dataset, complete=complete).full_init()


def test_a_part_of_a_published_data_set_is_refused(published):
    _full_init()
    with pytest.raises(
        ValueError,
        match=r"The train set of Numbers in .* has 5 images \(class 'c' has 1 of 2\), expected 6; "
        'unpack or download it again.*complete=False',
    ):
        _full_init(labels=[0, 0, 1, 1, 2])
    with pytest.raises(ValueError, match=r"6 images \(class 'b' has 1 of 2\)"):
        _full_init(labels=[0, 0, 0, 0, 1, 2])
    with pytest.raises(ValueError, match='has 5 images, expected 6'):
        _full_init(labels=[0] * 5, key='other')


def test_a_part_on_purpose_is_not_refused(published):
    few = [0, 0, 1, 1, 2]
    _full_init(labels=few, complete=False)
    _full_init(labels=few, split='mine')
    _full_init(indices=3)

    class Others(Numbers):
        split = 'train'

    SampleIndexDataset(Others(labels=few), complete=True).full_init()


def test_parts_are_found_behind_wrappers_and_on_the_device(published):
    dataset = DATASETS.build(numbers(labels=[0]))
    dataset.split = 'train'
    repeated = dict(type='RepeatDataset', dataset=dataset, times=6)
    for kind in ('SampleIndexDataset', 'ResidentDataset'):
        cfg = dict(type=f'crd_plugin.{kind}', dataset=repeated, complete=True)
        with pytest.raises(ValueError, match='The train set of Numbers .*has 1 images'):
            DATASETS.build(cfg).full_init()
        # A set for validation is checked from outside.
        with pytest.raises(ValueError, match='The train set of Numbers .*has 1 images'):
            check_sources(
                DATASETS.build(
                    dict(type='RepeatDataset', times=2, dataset=dict(cfg, complete=False))
                )
            )


@pytest.mark.parametrize(
    'name, text, test',
    [
        ('cifar10', 'CIFAR10 in data/cifar10 has 50 images .* 50,000', 'test .* 20 .* 10,000'),
        ('cifar100', 'CIFAR100 in data/cifar100 has 200 images .* 50,000', 'test .* 100 .* 10,000'),
        ('imagenet', 'ImageNet in data/imagenet has 16 images, .* 1,281,167', 'val .* 50,000'),
        ('stl10', 'STL10 in data/stl10_binary has 40 images .* 5,000', 'test .* 20 .* 8,000'),
        ('stl10_unlabeled', 'STL10 in .* has 60 images, .* 100,000', 'test .* 20 .* 8,000'),
        ('tiny_imagenet', 'TinyImageNet200 in .* has 40 .* 100,000', 'val .* 20 .* 10,000'),
    ],
)
def test_the_configs_ask_for_whole_data_sets(data_files, name, text, test):
    cfg = parsed(BASE / 'datasets' / f'{name}.py')
    split = 'unlabeled' if 'unlabeled' in name else 'train'
    with pytest.raises(ValueError, match=f'The {split} set of {text}'):
        DATASETS.build(cfg.train_dataloader.dataset).full_init()
    assert wants_complete(cfg)
    with pytest.raises(ValueError, match=f'The {test}; unpack'):
        check_sources(DATASETS.build(cfg.test_dataloader.dataset))


@pytest.mark.parametrize('kind', ['SampleIndexDataset', 'ResidentDataset'])
@pytest.mark.parametrize('lazy', [False, True])
def test_an_empty_data_set(kind, lazy):
    cfg = numbers(indices=[], serialize_data=True, lazy_init=lazy)
    with pytest.raises(ValueError, match='Numbers has no samples; check its ann_file, .* indices'):
        DATASETS.build(dict(type=f'crd_plugin.{kind}', dataset=cfg)).full_init()
