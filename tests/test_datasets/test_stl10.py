"""STL10: byte order, labels, the unlabeled part, memory and errors."""

import pickle

import numpy as np
import pytest
import torch
import torchvision.datasets
from torch.utils.data import DataLoader

from crd_plugin.datasets import STL10, SampleIndexDataset
from crd_plugin.registry import MODELS
from tests import fake_data

PACK = dict(type='PackInputs')


@pytest.fixture(scope='module')
def stl10(tmp_path_factory):
    root = tmp_path_factory.mktemp('stl') / 'stl10_binary'
    return str(root), fake_data.write_stl10(root)


def _images(dataset):
    return np.stack([dataset.get_data_info(i)['img'] for i in range(len(dataset))])


def test_pixels_lie_where_the_description_says(tmp_path):
    # By hand: byte c * 9216 + x * 96 + y is channel c, column x, row y.
    data = np.zeros(3 * 96 * 96, dtype=np.uint8)
    data[1 * 9216 + 5 * 96 + 7] = 200
    data.tofile(tmp_path / 'unlabeled_X.bin')
    image = STL10(str(tmp_path), 'unlabeled').get_data_info(0)['img']
    assert image.shape == (96, 96, 3) and image.dtype == np.uint8
    assert np.argwhere(image).tolist() == [[7, 5, 1]] and image[7, 5, 1] == 200


@pytest.mark.parametrize('split, count', [('train', 40), ('test', 20)])
def test_labeled_splits(stl10, split, count):
    root, written = stl10
    dataset = STL10(root, split)
    assert len(dataset) == count
    assert (_images(dataset) == written[split][0]).all()
    assert (dataset.get_gt_labels() == written[split][1]).all()
    assert dataset.get_cat_ids(3) == [written[split][1][3]]
    assert len(dataset.metainfo['classes']) == 10
    assert f'Split: \t{split}' in repr(dataset)


@pytest.mark.parametrize('split', ['unlabeled', 'train+unlabeled'])
def test_no_item_of_an_unlabeled_split_has_a_label(stl10, split):
    root, written = stl10
    dataset = STL10(root, split, pipeline=[PACK])
    expected = np.concatenate([written[part][0] for part in split.split('+')])
    assert (_images(dataset) == expected).all()
    for i in range(len(dataset)):
        assert 'gt_label' not in dataset.get_data_info(i)
        assert 'gt_label' not in dataset[i]['data_samples']
    with pytest.raises(KeyError, match='gt_label'):
        dataset.get_gt_labels()


def test_agrees_with_torchvision(stl10):
    theirs = torchvision.datasets.STL10.__new__(torchvision.datasets.STL10)
    theirs.root, theirs.base_folder = stl10[0], ''
    images, labels = theirs._STL10__loadfile('train_X.bin', 'train_y.bin')
    ours = STL10(stl10[0])
    assert (_images(ours).transpose(0, 3, 1, 2) == images).all()
    assert (ours.get_gt_labels() == labels).all()


def test_indices_choose_images_and_labels(stl10):
    images, labels = stl10[1]['train']
    dataset = STL10(stl10[0], indices=[7, 2])
    assert (_images(dataset) == images[[7, 2]]).all()
    assert (dataset.get_gt_labels() == labels[[7, 2]]).all()
    assert (_images(STL10(stl10[0]).get_subset([9])) == images[[9]]).all()


def test_images_are_read_when_asked_for(stl10):
    dataset = STL10(stl10[0], 'unlabeled', pipeline=[PACK])
    first = dataset.get_data_info(0)['img']
    # Neither what a worker is sent nor a copy holds the images.
    assert len(pickle.dumps(dataset)) < 60 * 3 * 96 * 96 / 20
    first[:] = 0  # A transform may write into what it gets.
    assert dataset.get_data_info(0)['img'].any()
    loader = DataLoader(SampleIndexDataset(dataset), batch_size=8, num_workers=2, collate_fn=list)
    for start, items in zip((0, 8), loader):
        assert [item['data_samples'].sample_idx for item in items] == [*range(start, start + 8)]
        images = torch.stack([item['inputs'] for item in items]).permute(0, 2, 3, 1).numpy()
        assert (images == stl10[1]['unlabeled'][0][start : start + 8]).all()


def test_wrapped_unlabeled_set_passes_the_preprocessor(stl10):
    root, written = stl10
    dataset = SampleIndexDataset(STL10(root, 'train+unlabeled', pipeline=[PACK]))
    with pytest.raises(ValueError, match="STL10 has no labels .*'instance'"):
        dataset.get_gt_labels()
    # Positions 39 and 40 are on either side of the border of the files.
    items = [dataset[39], dataset[40]]
    preprocess = MODELS.build(dict(type='mmpretrain.ClsDataPreprocessor'))
    batch = preprocess(
        dict(
            inputs=torch.stack([item['inputs'] for item in items]),
            data_samples=[item['data_samples'] for item in items],
        ),
        training=True,
    )
    assert [s.sample_idx for s in batch['data_samples']] == [39, 40]
    expected = np.stack([written['train'][0][39], written['unlabeled'][0][0]])
    assert (batch['inputs'].numpy().transpose(0, 2, 3, 1) == expected).all()


@pytest.mark.parametrize(
    'split, missing',
    [
        ('train', 'train_X.bin'),
        ('test', 'test_y.bin'),
        ('train+unlabeled', 'unlabeled_X.bin'),
    ],
)
def test_what_is_missing_is_named_with_advice(tmp_path, split, missing):
    fake_data.write_stl10(tmp_path, 10, 10, 10)
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError) as error:
        STL10(str(tmp_path), split)
    message = str(error.value)
    assert f'{tmp_path / missing} is missing' in message
    assert 'stl10_binary.tar.gz' in message and 'unpack it' in message


def test_a_split_asks_for_its_own_files_only(tmp_path):
    fake_data.write_stl10(tmp_path, 10, 10, 10)
    for name in ('train_X', 'train_y', 'test_X', 'test_y'):
        (tmp_path / f'{name}.bin').unlink()
    assert len(STL10(str(tmp_path), 'unlabeled')) == 10


@pytest.mark.parametrize(
    'name, content, message',
    [
        ('train_X.bin', bytes(27647), 'has 27647 bytes, .*multiple of 27648'),
        ('train_X.bin', b'', 'has 0 bytes'),
        ('train_y.bin', bytes([1] * 9), 'has 9 labels, .*has 10 images'),
        ('train_y.bin', bytes([1] * 9 + [11]), 'label 11, expected 1 to 10'),
        ('train_y.bin', bytes([0] * 10), 'label 0, expected 1 to 10'),
    ],
)
def test_damaged_files(tmp_path, name, content, message):
    fake_data.write_stl10(tmp_path, 10, 10, 10)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        STL10(str(tmp_path))


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(data_root='x', split='val'), "one of .*'test'.*but got 'val'"),
        (dict(data_root=''), "folder stl10_binary, but got ''"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        STL10(**kwargs)
