"""Digits: split, scaling and errors."""

import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from crd_plugin.datasets import Digits
from tests.test_datasets.toy_dataset import images_of


def _keys(dataset):
    return {image.tobytes() for image in images_of(dataset)}


def test_split_is_stratified_and_covers_everything_once():
    train, test = Digits('train'), Digits('test')
    assert (len(train), len(test)) == (797, 1000)
    assert np.bincount(test.get_gt_labels()).tolist() == [100] * 10
    counts = np.bincount(train.get_gt_labels())
    assert counts.min() == 74 and counts.max() == 83
    # scikit-learn's 1,797 images are all different.
    assert len(_keys(train) | _keys(test)) == 1797


def test_images_are_scikit_learns_scaled_to_bytes():
    bundle = load_digits()
    table = {
        np.rint(image * 255 / 16).astype(np.uint8).tobytes(): label
        for image, label in zip(bundle.images, bundle.target)
    }
    test = Digits('test')
    images, labels = images_of(test), test.get_gt_labels()
    assert images.shape == (1000, 8, 8, 3) and images.dtype == np.uint8
    assert images.min() == 0 and images.max() == 255
    assert (images[..., :1] == images).all()
    assert [table[image[..., 0].tobytes()] for image in images] == labels.tolist()


def test_small_training_sets_lie_inside_larger_ones():
    np.random.seed(1)
    small = Digits('train', num_train_per_class=5)
    np.random.seed(2)  # which the split does not depend on
    middle = Digits('train', num_train_per_class=20)
    some = Digits('train', num_train_per_class=5, digits=[2, 7])
    assert np.bincount(small.get_gt_labels()).tolist() == [5] * 10
    assert np.bincount(some.get_gt_labels()).tolist() == [0, 0, 5, 0, 0, 0, 0, 5]
    assert _keys(some) < _keys(small) < _keys(middle) < _keys(Digits('train'))
    assert not _keys(middle) & _keys(Digits('test'))
    assert some.metainfo['classes'] == tuple('0123456789')


def test_missing_scikit_learn_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, 'sklearn.datasets', None)
    with pytest.raises(ImportError, match='pip install scikit-learn'):
        Digits()
