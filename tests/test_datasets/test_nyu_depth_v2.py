"""NYUDepthV2: axes, classes, splits, workers, memory and damaged files."""

import pickle
import shutil
import sys

import h5py
import numpy as np
import pytest
from scipy.io import loadmat, savemat
from torch.utils.data import DataLoader

from crd_plugin.datasets import NYUDepthV2, SampleIndexDataset
from tests import fake_data

PACK = dict(type='mmpretrain.PackInputs', algorithm_keys=('gt_seg_map',))
DATA = 'nyu_depth_v2_labeled.mat'


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp('nyu')
    return root, fake_data.write_nyu_depth(root)


@pytest.fixture
def files(written, tmp_path):
    """A copy that a test may damage."""
    shutil.copytree(written[0], tmp_path, dirs_exist_ok=True)
    return tmp_path


def infos_of(dataset):
    return [dataset.get_data_info(i) for i in range(len(dataset))]


@pytest.mark.parametrize('split', ['train', 'test'])
def test_pixels_depths_and_labels_of_a_split(written, split):
    root, expected = written[0], written[1][split]
    infos = infos_of(NYUDepthV2(str(root), split))
    assert len(infos) == len(expected[0])
    for info, image, depth, label in zip(infos, *expected):
        assert info['img'].dtype == np.float32 and info['img_shape'] == (48, 64)
        np.testing.assert_array_equal(info['img'][..., :3], image)
        np.testing.assert_array_equal(info['img'][..., 3], depth)
        # The written mappings go around, 894 classes to 40 to 13; 0 has no label.
        classes = (label.astype(int) - 1) % 40 % 13
        np.testing.assert_array_equal(info['gt_seg_map'], np.where(label == 0, 255, classes))
        assert info['gt_seg_map'].dtype == np.uint8


def test_one_value_lies_where_matlab_has_it(files):
    """images(y, x, c, n), depths(y, x, n), labels(y, x, n); HDF5 stores the axes in reverse."""
    with h5py.File(files / DATA, 'r+') as file:
        row = int(loadmat(files / 'splits.mat')['trainNdxs'][0, 0]) - 1
        file['images'][row, 2, 5, 7] = 11
        file['depths'][row, 5, 7] = 4.5
        file['labels'][row, 5, 7] = 3
    info = NYUDepthV2(str(files)).get_data_info(0)
    assert info['img'][7, 5, 2] == 11 and info['img'][7, 5, 3] == 4.5
    assert info['gt_seg_map'][7, 5] == 2


def test_inputs_and_forty_classes(written):
    dataset = NYUDepthV2(str(written[0]), inputs=['depth'], mappings=['classMapping40.mat'])
    info, (_, depths, labels) = dataset.get_data_info(1), written[1]['train']
    np.testing.assert_array_equal(info['img'], depths[1][..., None])
    known = labels[1] > 0
    np.testing.assert_array_equal(
        info['gt_seg_map'][known], (labels[1][known].astype(int) - 1) % 40
    )
    assert dataset.metainfo['classes'] == tuple(f'of 40 {i}' for i in range(1, 41))


def test_workers_read_the_same_and_are_sent_no_images(written):
    dataset = SampleIndexDataset(NYUDepthV2(str(written[0]), pipeline=[PACK]))
    here = [dataset[i] for i in range(len(dataset))]  # the file is open in this process
    assert len(pickle.dumps(dataset)) < 8000
    copied = pickle.loads(pickle.dumps(dataset))[1]
    assert (copied['inputs'] == here[1]['inputs']).all()
    for method in ('fork', 'spawn'):
        loader = DataLoader(dataset, num_workers=2, collate_fn=list, multiprocessing_context=method)
        there = [item for batch in loader for item in batch]
        assert [item['data_samples'].sample_idx for item in there] == [0, 1, 2]
        for one, other in zip(here, there, strict=True):
            assert (one['inputs'] == other['inputs']).all()
            assert (one['data_samples'].gt_seg_map == other['data_samples'].gt_seg_map).all()


def test_label_out_of_range_is_told_before_training(files):
    row = int(loadmat(files / 'splits.mat')['testNdxs'][1, 0])
    with h5py.File(files / DATA, 'r+') as file:
        file['labels'][row - 1, 3, 4] = 895
    assert len(NYUDepthV2(str(files))) == 3
    message = f'image {row} has the label 895, but classMapping40.mat maps classes from 1 to 894'
    with pytest.raises(ValueError, match=message):
        NYUDepthV2(str(files), 'test')


def test_depths_that_are_not_finite_are_told_when_they_are_read(files):
    row = int(loadmat(files / 'splits.mat')['trainNdxs'][1, 0])
    with h5py.File(files / DATA, 'r+') as file:
        file['depths'][row - 1, 3, 4] = np.nan
    dataset = SampleIndexDataset(NYUDepthV2(str(files), pipeline=[PACK]))
    dataset[0]
    message = f'sample 1 of NYUDepthV2 .*{DATA}: image {row} has depths that are not finite; get it'
    with pytest.raises(ValueError, match=message):
        dataset[1]
    NYUDepthV2(str(files), inputs=['rgb']).get_data_info(1)


def edit(name, change):
    """Replace an array of the file by a changed one; None removes it."""

    def damage(root):
        with h5py.File(root / DATA, 'r+') as file:
            array = change(file[name][:])
            del file[name]
            if array is not None:
                file[name] = array

    return damage


def replace(name, **content):
    return lambda root: savemat(root / name, content)


@pytest.mark.parametrize(
    'damage, kwargs, message',
    [
        (
            edit('depths', lambda array: None),
            {},
            f"{DATA}: truncated or another file: .*object 'depths'",
        ),
        (edit('depths', lambda a: a[:4]), {}, r'depths \(4, 64, 48\) float32, .*; expected images'),
        (edit('depths', lambda a: a.transpose(0, 2, 1)), {}, r'depths \(5, 48, 64\) float32'),
        (edit('depths', lambda a: (1000 * a).astype(np.uint16)), {}, r'depths \S+ 64, 48\) uint16'),
        (edit('labels', lambda a: a[:4]), {}, r'labels \(4, 64, 48\) uint16; expected images'),
        (edit('labels', lambda a: a[:, 1:]), {}, r'labels \(5, 63, 48\) uint16'),
        (edit('labels', lambda a: a.astype(float)), {}, r'labels \(5, 64, 48\) float64'),
        (edit('images', lambda a: a[:, :1]), {}, r'images \(5, 1, 64, 48\) uint8'),
        (edit('images', lambda a: a / 255), {}, r'images \(5, 3, 64, 48\) float64'),
        (
            replace('splits.mat', trainNdxs=[[1], [6]]),
            {},
            'trainNdxs has 2 image numbers, expected different ones from 1 to 5',
        ),
        (
            replace('classMapping40.mat', mapClass=[[1, 2]]),
            {},
            'maps 2 classes to 0 to 2 and names 0, expected',
        ),
        (
            replace('class13Mapping.mat', mapClass=[[1, 1]], className=['a']),
            {},
            'class13Mapping.mat maps 2 classes, but the file before it names 40',
        ),
        (
            replace('class13Mapping.mat', mapClass=[[9] * 40], className=['a']),
            {},
            'class13Mapping.mat: maps 40 classes to 0 to 9 and names 1, expected',
        ),
        (
            None,
            dict(mappings=['class13Mapping.mat', 'classMapping40.mat']),
            r"^mappings=\['class13Mapping.mat', .*\]: classMapping40.mat maps 894 classes, but the "
            'file before it names 13; list each file once, in the order of use',
        ),
        (
            None,
            dict(mappings=['classMapping40.mat'] * 2),
            'classMapping40.mat maps 894 classes, but the file before it names 40',
        ),
        (
            None,
            dict(mappings=['class13Mapping.mat']),
            r"has the label \d+, but .* from 1 to 40; correct mappings=\['class13Mapping.mat'\]",
        ),
        (None, dict(mappings=['splits.mat']), 'splits.mat: maps 0 classes'),
    ],
)
def test_what_does_not_fit(files, damage, kwargs, message):
    if damage:
        damage(files)
    with pytest.raises(ValueError, match=message):
        NYUDepthV2(str(files), **kwargs)


def test_missing_h5py_is_told(written, monkeypatch):
    monkeypatch.setitem(sys.modules, 'h5py', None)
    with pytest.raises(ImportError, match='h5py'):
        NYUDepthV2(str(written[0]))


def test_published_number_of_images(written):
    dataset = NYUDepthV2(str(written[0]))
    with pytest.raises(ValueError, match='train set of NYUDepthV2 .* has 3 images, expected 795'):
        SampleIndexDataset(dataset, complete=True).full_init()
