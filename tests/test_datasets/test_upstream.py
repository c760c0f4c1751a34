"""MMPretrain's CIFAR and ImageNet do what our configs rely on."""

import urllib.request

import numpy as np
import pytest

from crd_plugin.datasets import SampleIndexDataset
from crd_plugin.registry import DATASETS
from tests import fake_data

WRITERS = dict(CIFAR10=fake_data.write_cifar10, CIFAR100=fake_data.write_cifar100)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError(f'tried to download {args[0]}')

    monkeypatch.setattr(urllib.request, 'urlopen', refuse)


def _build(name, root, split='train', **kwargs):
    return DATASETS.build(dict(type=name, data_root=str(root), split=split, **kwargs))


@pytest.mark.parametrize('name, classes', [('CIFAR10', 10), ('CIFAR100', 100)])
@pytest.mark.parametrize('split', ['train', 'test'])
def test_cifar_is_read_in_rgb_and_file_order(tmp_path, monkeypatch, name, classes, split):
    images, labels = WRITERS[name](tmp_path)[split]
    # Damaged files are noticed by their sums.
    with pytest.raises(RuntimeError, match=f'Cannot find {name}'):
        _build(name, tmp_path, split, download=False)
    fake_data.without_md5(monkeypatch)
    dataset = SampleIndexDataset(_build(name, tmp_path, split, download=False))
    assert len(dataset) == len(images)
    assert len(dataset.metainfo['classes']) == classes
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    assert (np.stack([info['img'] for info in infos]) == images).all()
    assert (dataset.get_gt_labels() == labels).all()
    assert [info['sample_idx'] for info in infos] == list(range(len(images)))


@pytest.mark.parametrize('name', ['CIFAR10', 'CIFAR100'])
def test_missing_cifar_is_told_at_once(tmp_path, name):
    with pytest.raises(RuntimeError) as error:
        _build(name, tmp_path / 'nowhere', download=False)
    assert f'Cannot find {name} dataset in {tmp_path}/nowhere' in str(error.value)
    assert 'download=True' in str(error.value)
    assert not (tmp_path / 'nowhere').exists()


@pytest.mark.parametrize('meta', [True, False])
def test_imagenet_by_lists_and_by_folders(tmp_path, meta):
    with pytest.raises(FileNotFoundError, match=f'{tmp_path}/train'):
        _build('ImageNet', tmp_path)
    written = fake_data.write_imagenet(tmp_path, meta=meta)
    for split in ('train', 'val'):
        dataset = SampleIndexDataset(_build('ImageNet', tmp_path, split))
        infos = [dataset.get_data_info(i) for i in range(len(dataset))]
        assert [(info['img_path'], info['gt_label']) for info in infos] == [
            (str(tmp_path / split / path), label) for path, label in written[split]
        ]
        assert len(dataset.metainfo['classes']) == 1000
    if not meta:
        (tmp_path / 'train' / 'n00000999').rmdir()
        with pytest.raises(AssertionError, match=r'subfolders \(999\)'):
            _build('ImageNet', tmp_path)
