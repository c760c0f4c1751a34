"""STL10: byte order, labels, the unlabeled part, memory and errors."""

import pickle

import numpy as np
import pytest
import torchvision.datasets

from crd_plugin.datasets import STL10
from tests.test_datasets.toy_dataset import PACK, images_of


@pytest.fixture
def stl10(written):
    return str(written[0] / 'data/stl10_binary'), written[1]['data/stl10_binary']


def test_pixels_lie_where_the_description_says(tmp_path):
    # By hand: byte c * 9216 + x * 96 + y is channel c, column x, row y.
    data = np.zeros(3 * 96 * 96, dtype=np.uint8)
    data[1 * 9216 + 5 * 96 + 7] = 200
    data.tofile(tmp_path / 'unlabeled_X.bin')  # the only file that this split needs
    image = STL10(str(tmp_path), 'unlabeled').get_data_info(0)['img']
    assert image.shape == (96, 96, 3) and image.dtype == np.uint8
    assert np.argwhere(image).tolist() == [[7, 5, 1]] and image[7, 5, 1] == 200


@pytest.mark.parametrize('split', ['train', 'test'])
def test_labeled_splits(stl10, split):
    root, written = stl10
    dataset = STL10(root, split)
    images, labels = written[split]
    assert (images_of(dataset) == images).all()
    assert (dataset.get_gt_labels() == labels).all()
    assert dataset.get_cat_ids(3) == [labels[3]]
    assert len(dataset.metainfo['classes']) == 10
    assert f'Split: \t{split}' in repr(dataset) and f'Root: \t{root}' in repr(dataset)
    subset = STL10(root, split, indices=[7, 2])
    assert (images_of(subset) == images[[7, 2]]).all()
    assert (subset.get_gt_labels() == labels[[7, 2]]).all()
    theirs = torchvision.datasets.STL10.__new__(torchvision.datasets.STL10)
    theirs.root, theirs.base_folder = root, ''
    planes, classes = theirs._STL10__loadfile(f'{split}_X.bin', f'{split}_y.bin')
    assert (images.transpose(0, 3, 1, 2) == planes).all() and (labels == classes).all()


@pytest.mark.parametrize('split', ['unlabeled', 'train+unlabeled'])
def test_no_item_of_an_unlabeled_split_has_a_label(stl10, split):
    root, written = stl10
    dataset = STL10(root, split, pipeline=[PACK])
    expected = np.concatenate([written[part][0] for part in split.split('+')])
    assert (images_of(dataset) == expected).all()
    for i in range(len(dataset)):
        assert 'gt_label' not in dataset.get_data_info(i)
        assert 'gt_label' not in dataset[i]['data_samples']
    with pytest.raises(KeyError, match='gt_label'):
        dataset.get_gt_labels()
    # Neither what a worker is sent nor a copy holds the images.
    assert len(pickle.dumps(dataset)) < 60 * 3 * 96 * 96 / 20
    dataset.get_data_info(0)['img'][:] = 0  # A transform may write into what it gets.
    assert dataset.get_data_info(0)['img'].any()
