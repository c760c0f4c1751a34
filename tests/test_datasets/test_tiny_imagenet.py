"""TinyImageNet200: labels, order, names and what is said of broken copies."""

import shutil
from pathlib import Path

import pytest
from torchvision.datasets import ImageFolder

from crd_plugin.datasets import TinyImageNet200
from tests import fake_data


@pytest.fixture
def whole(written):
    """Return a copy that stays whole."""
    return written[0] / 'data/tiny-imagenet-200'


@pytest.fixture
def broken(whole, tmp_path):
    """Return a copy to break."""
    return shutil.copytree(whole, tmp_path / 'tiny-imagenet-200')


def test_every_image_has_the_label_of_its_folder_or_line(whole, written):
    found, expected = {}, {}
    for split, files in written[1]['data/tiny-imagenet-200'].items():
        dataset = TinyImageNet200(str(whole), split)
        infos = map(dataset.get_data_info, range(len(dataset)))
        found[split] = [(info['img_path'], info['gt_label']) for info in infos]
        expected[split] = [(str(whole / path), label) for path, label in files]
    assert len(found['train']) == 40 and sorted(found['train']) == sorted(expected['train'])
    assert found['train'] == ImageFolder(str(whole / 'train')).samples
    # Validation images keep the order of the annotations.
    assert found['val'] == expected['val']


def test_classes_are_the_words_in_order_of_the_labels(whole):
    names = dict(zip(fake_data.WNIDS, fake_data.WORDS))
    expected = tuple(names[wnid] for wnid in sorted(fake_data.WNIDS))
    assert fake_data.WNIDS != tuple(sorted(fake_data.WNIDS))
    assert TinyImageNet200(str(whole), 'val').metainfo['classes'] == expected
    letters = tuple('abcdefghij')
    own = TinyImageNet200(str(whole), metainfo=dict(classes=letters))
    assert own.metainfo['classes'] == letters


def test_only_ids_are_classes(whole, broken):
    """Blank lines, spaces and an id that is listed twice change no label."""
    (broken / 'wnids.txt').write_text(
        '\n \n'.join((*fake_data.WNIDS, fake_data.WNIDS[0])) + ' \n\n'
    )
    for split in ('train', 'val'):
        expected, found = (TinyImageNet200(str(root), split) for root in (whole, broken))
        assert found.metainfo == expected.metainfo and len(found) == len(expected)
        assert (found.get_gt_labels() == expected.get_gt_labels()).all()


def test_subset_lazy_and_below_the_home_directory(whole, monkeypatch):
    monkeypatch.setenv('HOME', str(whole.parent))
    dataset = TinyImageNet200('~/tiny-imagenet-200', 'val', indices=3, lazy_init=True)
    assert "Haven't been initialized" in repr(dataset)
    assert len(dataset) == 3
    assert Path(dataset.get_data_info(0)['img_path']).is_file()


def test_images_that_are_missing(broken):
    images = broken / 'val' / 'images'
    folder = broken / 'val' / 'n02124075' / 'images'
    folder.mkdir(parents=True)
    for path in sorted(images.iterdir())[:18]:
        path.rename(folder / path.name)
    message = 'lacks 18 images .*val_0.JPEG among them .*not in folders'
    with pytest.raises(FileNotFoundError, match=message):
        TinyImageNet200(str(broken), 'val')
    shutil.rmtree(broken / 'train/n02124075/images')
    with pytest.raises(FileNotFoundError, match='n02124075 has no image, so data_root'):
        TinyImageNet200(str(broken))
