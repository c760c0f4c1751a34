"""Fashion-MNIST: files, subsets and errors."""

import gzip
import shutil

import numpy as np
import pytest

from crd_plugin.datasets import FashionMNIST
from tests import fake_data
from tests.test_datasets.toy_dataset import images_of


@pytest.fixture(scope='module')
def full(tmp_path_factory):
    """Files of the true size, unpacked, whose images tell their number in two pixels."""
    root = tmp_path_factory.mktemp('full')
    images = np.zeros((60000, 28, 28), np.uint8)
    images[:, 0, 0], images[:, 0, 1] = np.divmod(np.arange(60000), 256)
    labels = np.random.RandomState(1).permutation(np.arange(60000) % 10).astype(np.uint8)
    fake_data.write_idx(root / 'train-images-idx3-ubyte', images)
    fake_data.write_idx(root / 'train-labels-idx1-ubyte', labels)
    return root, labels


def test_subsets_are_nested_and_apart_from_the_images_held_out(full):
    root, labels = full

    def ids(**kwargs):
        dataset = FashionMNIST(root.as_posix(), serialize_data=False, **kwargs)
        found = [int(i['img'][0, 0]) * 256 + int(i['img'][0, 1]) for i in dataset.data_list]
        assert found == sorted(found)
        assert [info['gt_label'] for info in dataset.data_list] == labels[found].tolist()
        return set(found)

    np.random.seed(1)
    small = ids(num_train_per_class=20)
    np.random.seed(2)  # which the order does not depend on
    middle, most = ids(num_train_per_class=500), ids(num_train_per_class=5500)
    assert np.bincount(labels[sorted(middle)]).tolist() == [500] * 10
    assert small < middle < most
    held_out = ids(split='holdout')
    assert np.bincount(labels[sorted(held_out)]).tolist() == [500] * 10
    assert not held_out & most and held_out | most == ids() == set(range(60000))


def test_packed_and_unpacked_files_are_the_same(tmp_path):
    written = fake_data.write_fashion_mnist(tmp_path)
    packed = [FashionMNIST(tmp_path.as_posix(), split=split) for split in ('train', 'test')]
    for path in tmp_path.glob('*.gz'):
        path.with_suffix('').write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    for theirs, split in zip(packed, ('train', 'test')):
        ours = FashionMNIST(tmp_path.as_posix(), split=split)
        images, labels = written['train' if split == 'train' else 't10k']
        for dataset in (ours, theirs):
            found = images_of(dataset)
            assert found.dtype == np.uint8
            assert (found == images[..., None].repeat(3, 3)).all()
            assert dataset.get_gt_labels().tolist() == labels.tolist()
    assert 'Split: \ttest' in repr(ours) and ours.metainfo['classes'][9] == 'Ankle boot'


def test_the_first_folder_that_has_the_files_counts(tmp_path):
    first, second = tmp_path / 'data', tmp_path / 'system'
    roots = [first.as_posix(), second.as_posix()]
    with pytest.raises(FileNotFoundError) as error:
        FashionMNIST(roots)
    for words in (f'No train-*-ubyte[.gz] in {roots[0]} or {roots[1]}', 'apt-get', 'github.com'):
        assert words in str(error.value)
    fake_data.write_fashion_mnist(second, num_train=20)
    first.mkdir()
    assert len(FashionMNIST(roots)) == 20
    fake_data.write_fashion_mnist(first, num_train=30)
    assert len(FashionMNIST(roots)) == 30
    (first / 't10k-labels-idx1-ubyte.gz').unlink()
    assert FashionMNIST(roots, split='test').data_root == roots[1]


def test_images_and_labels_of_different_numbers(tmp_path):
    fake_data.write_fashion_mnist(tmp_path, num_train=20, num_test=10)
    shutil.copy(tmp_path / 't10k-images-idx3-ubyte.gz', tmp_path / 'train-images-idx3-ubyte.gz')
    with pytest.raises(ValueError, match='10 images and 20 labels'):
        FashionMNIST(tmp_path.as_posix())
