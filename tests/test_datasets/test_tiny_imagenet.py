"""TinyImageNet200: labels, order, names and what is said of broken copies."""

import shutil
from pathlib import Path

import pytest
from torchvision.datasets import ImageFolder

from crd_plugin.datasets import SampleIndexDataset, TinyImageNet200
from crd_plugin.registry import DATASETS
from tests import fake_data

PIPELINE = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]


@pytest.fixture
def root(tmp_path):
    fake_data.write_tiny_imagenet(tmp_path / 'tiny-imagenet-200')
    return tmp_path / 'tiny-imagenet-200'


def _files(dataset):
    return [
        (info['img_path'], info['gt_label'])
        for info in map(dataset.get_data_info, range(len(dataset)))
    ]


def test_every_image_has_the_label_of_its_folder_or_line(tmp_path):
    written = fake_data.write_tiny_imagenet(tmp_path)
    expected = {
        split: [(str(tmp_path / path), label) for path, label in files]
        for split, files in written.items()
    }
    train = _files(TinyImageNet200(str(tmp_path), 'train'))
    assert len(train) == 40 and sorted(train) == sorted(expected['train'])
    assert train == ImageFolder(str(tmp_path / 'train')).samples
    # Validation images keep the order of the annotations.
    assert _files(TinyImageNet200(str(tmp_path), 'val')) == expected['val']


def test_classes_are_the_words_in_order_of_the_labels(root):
    names = dict(zip(fake_data.WNIDS, fake_data.WORDS))
    expected = tuple(names[wnid] for wnid in sorted(fake_data.WNIDS))
    assert fake_data.WNIDS != tuple(sorted(fake_data.WNIDS))
    assert TinyImageNet200(str(root), 'val').metainfo['classes'] == expected
    letters = tuple('abcdefghij')
    own = TinyImageNet200(str(root), metainfo=dict(classes=letters))
    assert own.metainfo['classes'] == letters
    with pytest.raises(ValueError, match='classes has 2 names, .* has 10 ids'):
        TinyImageNet200(str(root), classes=['a', 'b'])


def test_build_by_config_and_wrap(root):
    cfg = dict(type='crd_plugin.TinyImageNet200', data_root=str(root), pipeline=PIPELINE)
    dataset = DATASETS.build(cfg)
    assert 'Split: \ttrain' in repr(dataset)
    wrapped = SampleIndexDataset(dataset)
    assert wrapped.get_gt_labels().tolist() == [i // 4 for i in range(40)]
    for position in (0, 17, 39):
        item = wrapped[position]
        assert tuple(item['inputs'].shape) == (3, 64, 64)
        assert item['data_samples'].sample_idx == position
        assert item['data_samples'].gt_label.item() == position // 4


def test_grey_images_get_three_channels(root):
    dataset = TinyImageNet200(str(root), 'val', pipeline=PIPELINE)
    grey = dataset[1]['inputs']
    assert (grey[0] == grey[1]).all() and (grey[0] == grey[2]).all()
    assert (dataset[0]['inputs'][0] != dataset[0]['inputs'][2]).any()


def test_subset_and_lazy(root):
    dataset = TinyImageNet200(str(root), 'val', indices=3, lazy_init=True)
    assert "Haven't been initialized" in repr(dataset)
    assert len(dataset) == 3


@pytest.mark.parametrize(
    'missing',
    [
        'wnids.txt',
        'words.txt',
        'train',
        'train/n02124075',
        'val/val_annotations.txt',
        'val/images',
    ],
)
def test_what_is_missing_is_named_with_advice(root, missing):
    path = root / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    split = 'val' if missing.startswith('val') else 'train'
    with pytest.raises(FileNotFoundError) as error:
        TinyImageNet200(str(root), split)
    message = str(error.value)
    assert f'{path} is missing, so data_root={str(root)!r} is' in message
    assert 'tiny-imagenet-200.zip' in message
    assert 'train/<wnid>/images/<wnid>_<number>.JPEG' in message


def test_val_sorted_into_folders_is_recognised(root):
    images = root / 'val' / 'images'
    for path in sorted(images.iterdir())[:18]:
        folder = root / 'val' / 'n02124075' / 'images'
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / path.name)
    with pytest.raises(
        FileNotFoundError, match='lacks 18 images .*val_0.JPEG among them .*not in folders'
    ):
        TinyImageNet200(str(root), 'val')


def test_empty_class_folder(root):
    shutil.rmtree(root / 'train/n02124075/images')
    with pytest.raises(FileNotFoundError, match='n02124075 has no image, so data'):
        TinyImageNet200(str(root))


def test_folders_that_are_no_classes(root):
    (root / 'wnids.txt').write_text('\n'.join(fake_data.WNIDS[:9]))
    with pytest.raises(ValueError, match='has 1 folders .* not in wnids.txt, n03970156 among'):
        TinyImageNet200(str(root))


@pytest.mark.parametrize(
    'line, message',
    [
        ('val_0.JPEG\tn99999999\t0\t0\t1\t1', 'line 1 is .*n99999999'),
        ('val_0.JPEG n02124075', 'expected a file name, a tab and an id'),
    ],
)
def test_broken_annotation_lines(root, line, message):
    (root / 'val/val_annotations.txt').write_text(line + '\n')
    with pytest.raises(ValueError, match=message):
        TinyImageNet200(str(root), 'val')


@pytest.mark.parametrize(
    'text, message',
    [
        ('', '0 lines and 0 different ids'),
        ('n1\nn2\nn1\n', '3 lines and 2 different ids'),
    ],
)
def test_broken_wnids(root, text, message):
    (root / 'wnids.txt').write_text(text)
    with pytest.raises(ValueError, match=message):
        TinyImageNet200(str(root))


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(data_root='x', split='test'), "'train' or 'val', but got 'test'; "),
        (dict(data_root=''), "folder tiny-imagenet-200, but got ''"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        TinyImageNet200(**kwargs)


def test_home_directory_is_expanded(root, monkeypatch):
    monkeypatch.setenv('HOME', str(root.parent))
    dataset = TinyImageNet200('~/tiny-imagenet-200', 'val')
    assert Path(dataset.get_data_info(0)['img_path']).is_file()
