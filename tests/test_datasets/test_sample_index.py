"""SampleIndexDataset: positions, labels, redraws and errors."""

import copy
from collections import Counter

import numpy as np
import pytest
from mmengine.dataset import Compose
from torch.utils.data import ConcatDataset, Subset

from crd_plugin.datasets import SampleIndexDataset
from crd_plugin.registry import DATASETS
from tests.test_datasets.toy_dataset import PACK, OwnIndexing, drop_odd, numbers

LABELS = [0, 0, 1, 1, 2, 2]
DROPPING = [drop_odd, PACK]


def _read(dataset, positions):
    """Return id and value of samples."""
    items = [dataset[i] for i in positions]
    return [(item['data_samples'].sample_idx, int(item['inputs'][0, 0, 0])) for item in items]


FIRST, SECOND = numbers(), numbers(start=50, labels=[2, 0, 1])
CONCAT = dict(type='ConcatDataset', datasets=[FIRST, SECOND])
BALANCED = dict(
    type='ClassBalancedDataset', dataset=numbers(labels=[0] * 8 + [1]), oversample_thr=0.9
)
# How data sets are wrapped, the values that stand at the positions, by hand, and their classes.
WRAPPED = {
    'serialised': (lambda: dict(serialize_data=True, **FIRST), [0, 1, 2, 3, 4, 5], LABELS),
    'lazy': (lambda: dict(lazy_init=True, **FIRST), [0, 1, 2, 3, 4, 5], LABELS),
    'indices': (lambda: dict(indices=[5, 1, 3], **FIRST), [5, 1, 3], [2, 0, 1]),
    # 1 of 9 is class 1: repeated ceil(sqrt(0.9 * 9)) = 3 times; class 0, ceil(sqrt(0.9 / (8 / 9)))
    # = 2 times.
    'balanced': (
        lambda: BALANCED,
        [i for i in range(8) for _ in range(2)] + [8] * 3,
        [0] * 16 + [1] * 3,
    ),
    'kfold': (
        lambda: dict(type='mmpretrain.KFoldDataset', dataset=FIRST, fold=1, num_splits=3),
        [0, 1, 4, 5],
        [0, 0, 2, 2],
    ),
    'repeated concat': (
        lambda: dict(type='RepeatDataset', dataset=CONCAT, times=2),
        [0, 1, 2, 3, 4, 5, 50, 51, 52] * 2,
        (LABELS + [2, 0, 1]) * 2,
    ),
    'subset': (lambda: Subset(DATASETS.build(CONCAT), [7, 0, 8]), [51, 0, 52], [0, 0, 1]),
    'subset of balanced': (
        lambda: Subset(DATASETS.build(BALANCED), [9, 8, 0]),
        [4, 4, 0],
        [0, 0, 0],
    ),
    'torch concat': (
        lambda: ConcatDataset([Subset(DATASETS.build(CONCAT), [1, 2]), DATASETS.build(FIRST)]),
        [1, 2, 0, 1, 2, 3, 4, 5],
        [0, 1] + LABELS,
    ),
}


@pytest.mark.parametrize('build, values, labels', WRAPPED.values(), ids=WRAPPED)
def test_position_is_that_in_the_wrapped_set(build, values, labels):
    dataset = SampleIndexDataset(copy.deepcopy(build()))
    dataset.full_init()
    everywhere = range(len(values))
    assert dataset.num_samples == len(dataset) == len(values)
    assert _read(dataset, everywhere) == list(enumerate(values))
    assert type(dataset[2]['data_samples'].sample_idx) is int
    # The table agrees with the wrappers themselves.
    assert [int(dataset.dataset[i]['inputs'][0, 0, 0]) for i in everywhere] == values
    found = dataset.get_gt_labels()
    assert found.dtype == np.int64 and found.tolist() == labels
    found[:] = 9  # a copy
    assert dataset.get_gt_labels().tolist() == labels
    for i, (value, label) in enumerate(zip(values, labels)):
        info = dataset.get_data_info(i)
        assert info['sample_idx'] == i
        assert info['img'][0, 0, 0] == value
        assert dataset.get_cat_ids(i) == [label]


def test_sample_idx_left_by_the_pipeline_is_replaced():
    for keys in (dict(), dict(algorithm_keys=('sample_idx',))):
        part = numbers(pipeline=[dict(PACK, meta_keys=(), **keys)])
        dataset = SampleIndexDataset(dict(type='ConcatDataset', datasets=[part] * 2))
        sample = dataset[9]['data_samples']
        assert sample.sample_idx == 9
        assert 'sample_idx' in sample.metainfo_keys()


def test_metainfo_is_a_copy_of_that_of_the_wrapped_set():
    dataset = SampleIndexDataset(numbers())
    assert dataset.metainfo == dict(classes=('a', 'b', 'c'))
    dataset.metainfo['classes'] = ()
    assert dataset.metainfo['classes'] == ('a', 'b', 'c')


def test_pipelines_are_replaced_as_tools_do():
    parts = dict(type='ConcatDataset', datasets=[numbers(), numbers(start=50)])
    dataset = SampleIndexDataset(dict(type='RepeatDataset', dataset=parts, times=2))
    seen = []
    note = [lambda info: seen.append(int(info['img'][0, 0, 0])) or info]
    dataset.pipeline = Compose([*note, *dataset.pipeline.transforms])
    assert _read(dataset, [1, 7, 13]) == [(1, 1), (7, 51), (13, 1)]
    assert seen == [1, 51, 1]
    plain = SampleIndexDataset('abc')
    assert not hasattr(plain, 'pipeline')
    assert len(plain) == 3 and plain.metainfo == {}


# --- redraws ---------------------------------------------------------------


PLAIN = numbers(pipeline=DROPPING)
FROM_ONE = numbers(pipeline=DROPPING, start=1)


@pytest.mark.parametrize(
    'build, alive',
    [
        (lambda: PLAIN, {0: 0, 2: 2, 4: 4}),
        (
            lambda: dict(type='ConcatDataset', datasets=[PLAIN, FROM_ONE]),
            {0: 0, 2: 2, 4: 4, 7: 2, 9: 4, 11: 6},
        ),
        (lambda: Subset(DATASETS.build(PLAIN), [1, 2, 3, 4]), {1: 2, 3: 4}),
        (lambda: OwnIndexing(pipeline=DROPPING), {0: 0, 2: 2, 4: 4}),
    ],
    ids=['plain', 'concat', 'subset', 'own __getitem__'],
)
def test_id_is_of_the_sample_that_a_redraw_returns(build, alive):
    np.random.seed(0)
    dataset = SampleIndexDataset(build())
    seen = Counter()
    for _ in range(60):
        for position, value in _read(dataset, range(len(dataset))):
            assert alive[position] == value
            seen[position] += 1
    assert set(seen) == set(alive)
    # A redraw is uniform over what is left.
    assert max(seen.values()) < 2 * min(seen.values())
    # Samples that are not broken stay where they are.
    assert _read(dataset, alive) == list(alive.items())


def test_redraw_takes_the_same_random_numbers_as_mmengine():
    plain = DATASETS.build(PLAIN)
    wrapped = SampleIndexDataset(plain)
    for seed in range(20):
        np.random.seed(seed)
        theirs = int(plain[1]['inputs'][0, 0, 0])
        np.random.seed(seed)
        assert _read(wrapped, [1]) == [(theirs, theirs)]


def test_contrast_ids_follow_the_redrawn_sample():
    np.random.seed(0)
    dataset = SampleIndexDataset(PLAIN, num_negatives=3)
    for _ in range(20):
        sample = dataset[1]['data_samples']
        assert sample.contrast_idx[0] == sample.sample_idx != 1
        negatives = np.array(LABELS)[sample.contrast_idx[1:]]
        assert (negatives != sample.gt_label.item()).all()


def test_a_set_without_valid_samples_gives_up():
    dataset = SampleIndexDataset(numbers(pipeline=[lambda info: None], max_refetch=5))
    with pytest.raises(RuntimeError, match='5 redraws from Numbers'):
        dataset[0]


def test_test_mode_does_not_redraw():
    dataset = SampleIndexDataset(numbers(pipeline=DROPPING, test_mode=True))
    assert _read(dataset, [2]) == [(2, 2)]
    with pytest.raises(Exception, match='should not get `None`'):
        dataset[1]


# --- errors ----------------------------------------------------------------


def test_pipeline_without_pack_inputs_is_told():
    with pytest.raises(TypeError, match=r"'img'.*type='PackInputs'"):
        SampleIndexDataset(numbers(pipeline=[]))[0]


@pytest.mark.parametrize(
    'labels, key, problem',
    [
        (LABELS, 'other', 'no gt_label'),
        ([[0, 1], [2]], 'gt_label', 'inhomogeneous shape'),
        ([[0, 1], [2, 0]], 'gt_label', r'got int64 of shape \(2, 2\)'),
        ([dict(a=1), dict(a=2)], 'gt_label', 'got object of shape'),
        ([0.5, 0.5], 'gt_label', r'got float64 of shape \(2,\): \[0.5, 0.5\]'),
        ([0, -1], 'gt_label', r'\[0, -1\]'),
    ],
)
def test_labels_that_are_not_classes_are_told(labels, key, problem):
    dataset = SampleIndexDataset(numbers(labels=labels, key=key, serialize_data=True))
    message = f"^Numbers has no labels that .*one class.*{problem}.*exclude='instance'"
    with pytest.raises(ValueError, match=message):
        dataset.get_gt_labels()


class WithInfo(list):
    def get_data_info(self, i):
        return dict(gt_label=[self[i]])


def test_labels_of_other_kinds_of_data_sets():
    assert SampleIndexDataset(WithInfo([4, 5])).get_gt_labels().tolist() == [4, 5]
    with pytest.raises(ValueError, match='list has no labels .*get_data_info'):
        SampleIndexDataset([1, 2]).get_gt_labels()


def test_wrong_data_sets_are_refused():
    inner = dict(type='crd_plugin.SampleIndexDataset', dataset=numbers())
    for nested in (inner, dict(type='RepeatDataset', dataset=inner, times=2)):
        with pytest.raises(ValueError, match='contains a SampleIndexDataset already'):
            SampleIndexDataset(nested).full_init()
    with pytest.raises(ValueError, match='count all of its samples; swap the two'):
        DATASETS.build(dict(type='mmpretrain.KFoldDataset', dataset=inner))
    with pytest.raises(ValueError, match='list has no samples'):
        SampleIndexDataset([]).full_init()


def test_positions_outside_are_refused():
    dataset = SampleIndexDataset(numbers())
    assert _read(dataset, [-1]) == [(5, 5)]
    for idx in (6, -7):
        with pytest.raises(IndexError):
            dataset[idx]
