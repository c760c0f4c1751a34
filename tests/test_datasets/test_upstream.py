"""MMPretrain's CIFAR and ImageNet do what our configs rely on."""

import urllib.request

import numpy as np
import pytest
from mmpretrain.registry import DATASETS as MMPRETRAIN_DATASETS

from crd_plugin.datasets import SampleIndexDataset
from tests import fake_data

WRITERS = dict(CIFAR10=fake_data.write_cifar10, CIFAR100=fake_data.write_cifar100)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError(f'tried to download {args[0]}')

    monkeypatch.setattr(urllib.request, 'urlopen', refuse)


def _cifar(name, root, **kwargs):
    return MMPRETRAIN_DATASETS.build(dict(type=name, data_root=str(root), download=False, **kwargs))


@pytest.mark.parametrize('name, classes', [('CIFAR10', 10), ('CIFAR100', 100)])
@pytest.mark.parametrize('split', ['train', 'test'])
def test_cifar_is_read_in_rgb_and_file_order(tmp_path, monkeypatch, name, classes, split):
    fake_data.without_md5(monkeypatch)
    images, labels = WRITERS[name](tmp_path)[split]
    dataset = SampleIndexDataset(_cifar(name, tmp_path, split=split))
    assert len(dataset) == len(images)
    assert len(dataset.metainfo['classes']) == classes
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    assert (np.stack([info['img'] for info in infos]) == images).all()
    assert (dataset.get_gt_labels() == labels).all()
    assert [info['sample_idx'] for info in infos] == list(range(len(images)))


@pytest.mark.parametrize('name', ['CIFAR10', 'CIFAR100'])
def test_fake_types_need_no_patch(tmp_path, name):
    WRITERS[name](tmp_path)
    fake = _cifar(f'Fake{name}', tmp_path, split='train')
    assert isinstance(fake, MMPRETRAIN_DATASETS.get(name))
    # The real one looks at the sums, so damaged files are noticed.
    with pytest.raises(RuntimeError, match=f'Cannot find {name}'):
        _cifar(name, tmp_path, split='train')


@pytest.mark.parametrize('name', ['CIFAR10', 'CIFAR100'])
def test_missing_cifar_is_told_at_once(tmp_path, name):
    with pytest.raises(RuntimeError) as error:
        _cifar(name, tmp_path / 'nowhere')
    assert f'Cannot find {name} dataset in {tmp_path}/nowhere' in str(error.value)
    assert 'download=True' in str(error.value)
    assert not (tmp_path / 'nowhere').exists()


@pytest.mark.parametrize('meta', [True, False])
def test_imagenet_by_lists_and_by_folders(tmp_path, meta):
    written = fake_data.write_imagenet(tmp_path, meta=meta)
    for split in ('train', 'val'):
        dataset = SampleIndexDataset(
            MMPRETRAIN_DATASETS.build(dict(type='ImageNet', data_root=str(tmp_path), split=split))
        )
        infos = [dataset.get_data_info(i) for i in range(len(dataset))]
        assert [(info['img_path'], info['gt_label']) for info in infos] == [
            (str(tmp_path / split / path), label) for path, label in written[split]
        ]
        assert len(dataset.metainfo['classes']) == 1000


def test_missing_imagenet_names_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=f'{tmp_path}/train'):
        MMPRETRAIN_DATASETS.build(dict(type='ImageNet', data_root=str(tmp_path), split='train'))


def test_imagenet_with_folders_missing_is_refused(tmp_path):
    fake_data.write_imagenet(tmp_path, meta=False)
    (tmp_path / 'train' / 'n00000999').rmdir()
    with pytest.raises(AssertionError, match=r'subfolders \(999\)'):
        MMPRETRAIN_DATASETS.build(dict(type='ImageNet', data_root=str(tmp_path), split='train'))
