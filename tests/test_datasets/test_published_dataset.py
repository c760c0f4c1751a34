"""What is said of wrong arguments, and of files that are missing or damaged, for each data set."""

import gzip
import shutil

import pytest

from crd_plugin.datasets import STL10, Digits, FashionMNIST, NYUDepthV2, TinyImageNet200
from tests import fake_data

WRITERS = {
    FashionMNIST: fake_data.write_fashion_mnist,
    NYUDepthV2: fake_data.write_nyu_depth,
    STL10: fake_data.write_stl10,
    TinyImageNet200: fake_data.write_tiny_imagenet,
}


@pytest.mark.parametrize(
    'cls, kwargs, message',
    [
        (Digits, dict(split='val'), r"^split must be one of \('train', 'test'\), but got 'val'"),
        (FashionMNIST, dict(split='val'), r"\('train', 'holdout', 'test'\), but got 'val'"),
        (
            NYUDepthV2,
            dict(data_root='x', split='val'),
            r"one of \('train', 'test'\), but got 'val'",
        ),
        (STL10, dict(data_root='x', split='val'), r"'train\+unlabeled'\), but got 'val'"),
        (TinyImageNet200, dict(data_root='x', split='test'), r"'val'\), but got 'test'"),
        (Digits, dict(num_train_per_class=0), '^num_train_per_class=0 with .* from 1 to 74'),
        (Digits, dict(num_train_per_class=75), 'class=75'),
        (FashionMNIST, dict(num_train_per_class=6001), 'class=6001 .* to 6000'),
        (
            Digits,
            dict(split='test', num_train_per_class=5),
            "class=5 with split='test', expected None",
        ),
        (Digits, dict(digits=[]), r'^digits must be some of 0 to 9, such as .* but got \[\]'),
        (Digits, dict(digits=5), 'but got 5'),
        (NYUDepthV2, dict(data_root='x', inputs=['hha']), r"'rgb' and 'depth', .*got \['hha'\]"),
        (NYUDepthV2, dict(data_root='x', inputs='rgb'), "must be a list of 'rgb' and 'depth'"),
        (NYUDepthV2, dict(data_root='x', mappings=[]), r'must be a list of files, .*got \[\]'),
    ],
)
def test_bad_arguments_are_named(cls, kwargs, message):
    with pytest.raises(ValueError, match=message):
        cls(**kwargs)


@pytest.mark.parametrize(
    'cls, split, missing, source',
    [
        (STL10, 'train', 'train_X.bin', 'stl10_binary.tar.gz'),
        (STL10, 'test', 'test_y.bin', 'stl10_binary.tar.gz'),
        (STL10, 'train+unlabeled', 'unlabeled_X.bin', 'stl10_binary.tar.gz'),
        (TinyImageNet200, 'train', 'wnids.txt', 'tiny-imagenet-200.zip'),
        (TinyImageNet200, 'train', 'train', 'tiny-imagenet-200.zip'),
        (TinyImageNet200, 'train', 'train/n02124075', 'tiny-imagenet-200.zip'),
        (TinyImageNet200, 'val', 'val/val_annotations.txt', 'tiny-imagenet-200.zip'),
        (TinyImageNet200, 'val', 'val/images', 'tiny-imagenet-200.zip'),
        (NYUDepthV2, 'train', 'nyu_depth_v2_labeled.mat', 'horatio.cs.nyu.edu.*2.8 GB'),
        (NYUDepthV2, 'train', 'class13Mapping.mat', 'ankurhanda'),
    ],
)
def test_what_is_missing_is_named_with_its_source(tmp_path, cls, split, missing, source):
    WRITERS[cls](tmp_path)
    path = tmp_path / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(FileNotFoundError, match=f'^{path} is missing.*; get .*from .*{source}'):
        cls(str(tmp_path), split)


@pytest.mark.parametrize('given', [[3, -41], [40], 41, -41])
def test_indices_of_samples_that_are_not_there(tmp_path, given):
    WRITERS[STL10](tmp_path)
    wrong = given[-1] if isinstance(given, list) else given
    message = (
        f"indices: {wrong} does not fit split='train' of STL10, which has 40 .* 0 to 39, or an"
    )
    with pytest.raises(ValueError, match=message):
        STL10(str(tmp_path), indices=given)
    with pytest.raises(ValueError, match='does not fit .* of Digits, which has 40 samples'):
        Digits(num_train_per_class=4, indices=given)


def test_indices_that_are_there():
    for given, number in (([39, -40, 0], 3), (40, 40), (-40, 40), (0, 0)):
        assert len(Digits(num_train_per_class=4, indices=given, serialize_data=False)) == number


def labels(*values):
    return lambda content: bytes(values)


def repacked(content):
    return gzip.compress(gzip.decompress(content)[:-5])


IMAGES, PACKED = 'train_X.bin', 'train-images-idx3-ubyte.gz'
VAL = 'val/val_annotations.txt'


@pytest.mark.parametrize(
    'cls, name, damage, message',
    [
        (STL10, IMAGES, lambda content: content[:27647], 'has 27647 bytes, .*multiple of 27648'),
        (STL10, IMAGES, lambda content: b'', 'has 0 bytes'),
        (STL10, 'train_y.bin', labels(*[1] * 9), 'has 9 labels, .*has 40 images'),
        (STL10, 'train_y.bin', labels(*[1] * 39, 11), r'\[1, 11\] among .*from 1 to 10'),
        (STL10, 'train_y.bin', labels(*[0] * 40), r'\[0\] among .*from 1 to 10'),
        (FashionMNIST, PACKED, lambda content: b'', 'damaged .*get it again'),
        (FashionMNIST, PACKED, lambda content: b'<html>', 'damaged .*get it again'),
        (FashionMNIST, PACKED, repacked, f'{PACKED} is damaged .*get it again'),
        (
            NYUDepthV2,
            'nyu_depth_v2_labeled.mat',
            lambda content: content[:-200],
            'labeled.mat: truncated or another file: .*get it again from http',
        ),
        (NYUDepthV2, 'class13Mapping.mat', lambda content: content[:150], 'truncated'),
        (
            TinyImageNet200,
            'wnids.txt',
            lambda content: '\n'.join(fake_data.WNIDS[:9]).encode(),
            '1 folders .* not in .*n03970156 among',
        ),
        (TinyImageNet200, VAL, lambda content: b'val_0.JPEG\tn99\t0\t0\t1\t1', 'line 1 is .*n99'),
        (
            TinyImageNet200,
            VAL,
            lambda content: b'val_0.JPEG n02124075',
            'expected a file name, a tab and an id',
        ),
    ],
)
def test_what_is_damaged_is_told_before_training(tmp_path, cls, name, damage, message):
    WRITERS[cls](tmp_path)
    (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
    with pytest.raises(ValueError, match=message):
        cls(str(tmp_path), 'val' if name == VAL else 'train')
