"""SampleIndexDataset: positions, labels, contrast ids, worker seeds."""

import json
import random
from collections import Counter
from pathlib import Path

import mmengine.dataset
import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, pseudo_collate
from mmpretrain.datasets import BaseDataset
from mmpretrain.structures import DataSample
from torch.utils.data import ConcatDataset, DataLoader, Subset

import crd_plugin  # noqa: F401
from crd_plugin.datasets import SampleIndexDataset
from crd_plugin.registry import DATASETS, TRANSFORMS

# Figures from HobbitLong/RepDistiller, dataset/cifar100.py, run on six labels.
FACTS = json.loads((Path(__file__).parents[1] / 'data' / 'sampling.json').read_text())
LABELS = FACTS['labels']


@DATASETS.register_module()
class Numbers(BaseDataset):
    """Sample i is an image of the value ``start + i``."""

    METAINFO = dict(classes=('a', 'b', 'c'))

    def __init__(self, labels=LABELS, start=0, key='gt_label', **kwargs):
        self.labels, self.start, self.key = labels, start, key
        kwargs.setdefault('pipeline', [dict(type='mmpretrain.PackInputs')])
        kwargs.setdefault('serialize_data', False)  # it is slow for a test
        super().__init__(ann_file='', **kwargs)

    def load_data_list(self):
        return [
            {'img': np.full((2, 2, 3), self.start + i, dtype=np.uint8), self.key: label}
            for i, label in enumerate(self.labels)
        ]


class FullyOwn(Numbers):
    """Refetches in a __getitem__ of its own, as some data sets do."""

    def __getitem__(self, idx):
        item = self.prepare_data(idx)
        while item is None:
            item = self.prepare_data(self._rand_another())
        return item


@TRANSFORMS.register_module()
class DropValues:
    """Returns None for some images, like a broken file."""

    def __init__(self, values):
        self.values = set(values)

    def __call__(self, results):
        broken = int(results['img'][0, 0, 0]) in self.values
        return None if broken else results


@TRANSFORMS.register_module()
class AddNoise:
    """One draw from each generator that an augmentation could use."""

    def __call__(self, results):
        results['img'] = np.array([[[random.random(), np.random.rand(), torch.rand(()).item()]]])
        return results


PACK = dict(type='mmpretrain.PackInputs')
NOISY = [dict(type='crd_plugin.AddNoise'), PACK]


def _dropping(*values):
    return [dict(type='crd_plugin.DropValues', values=values), PACK]


def _values(dataset, positions=None):
    positions = range(len(dataset)) if positions is None else positions
    items = [dataset[i] for i in positions]
    return [(item['data_samples'].sample_idx, int(item['inputs'][0, 0, 0])) for item in items]


def _numbers(**kwargs):
    return dict(type='crd_plugin.Numbers', **kwargs)


def _wrapped(name):
    first = _numbers(start=0)
    second = _numbers(start=50, labels=[2, 0, 1])
    config = {
        'plain': first,
        'serialised': dict(serialize_data=True, **first),
        'indices': dict(indices=[5, 1, 3], **first),
        'concat': dict(type='ConcatDataset', datasets=[first, second]),
        'repeat': dict(type='RepeatDataset', dataset=first, times=3),
        'balanced': dict(
            type='ClassBalancedDataset', dataset=_numbers(labels=[0] * 8 + [1]), oversample_thr=0.9
        ),
        'kfold': dict(
            type='mmpretrain.KFoldDataset',
            dataset=dict(lazy_init=False, **first),
            fold=1,
            num_splits=3,
        ),
        'nested': dict(
            type='RepeatDataset',
            dataset=dict(type='ConcatDataset', datasets=[first, second]),
            times=2,
        ),
        'lazy': dict(lazy_init=True, **first),
    }
    if name in config:
        return config[name]
    inner = DATASETS.build(config['concat'])
    return {
        'subset': Subset(inner, [7, 0, 8]),
        'subset of balanced': Subset(DATASETS.build(config['balanced']), [9, 8, 0]),
        'torch concat': ConcatDataset([Subset(inner, [1, 2]), DATASETS.build(first)]),
    }[name]


# The values that stand at the positions, by hand, and their classes.
EXPECTED = {
    'plain': ([0, 1, 2, 3, 4, 5], LABELS),
    'serialised': ([0, 1, 2, 3, 4, 5], LABELS),
    'lazy': ([0, 1, 2, 3, 4, 5], LABELS),
    'indices': ([5, 1, 3], [2, 0, 1]),
    'concat': ([0, 1, 2, 3, 4, 5, 50, 51, 52], LABELS + [2, 0, 1]),
    'repeat': ([0, 1, 2, 3, 4, 5] * 3, LABELS * 3),
    # 1 of 9 is class 1: repeated ceil(sqrt(0.9 * 9)) = 3 times; class 0,
    # ceil(sqrt(0.9 / (8 / 9))) = 2 times.
    'balanced': ([i for i in range(8) for _ in range(2)] + [8] * 3, [0] * 16 + [1] * 3),
    'kfold': ([0, 1, 4, 5], [0, 0, 2, 2]),
    'nested': ([0, 1, 2, 3, 4, 5, 50, 51, 52] * 2, (LABELS + [2, 0, 1]) * 2),
    'subset': ([51, 0, 52], [0, 0, 1]),
    'subset of balanced': ([4, 4, 0], [0, 0, 0]),
    'torch concat': ([1, 2, 0, 1, 2, 3, 4, 5], [0, 1] + LABELS),
}


@pytest.mark.parametrize('name', EXPECTED)
def test_position_is_that_in_the_wrapped_set(name):
    dataset = SampleIndexDataset(_wrapped(name))
    dataset.full_init()
    values, labels = EXPECTED[name]
    assert dataset.num_samples == len(dataset) == len(values)
    assert _values(dataset) == list(enumerate(values))
    assert all(type(dataset[i]['data_samples'].sample_idx) is int for i in range(3))
    found = dataset.get_gt_labels()
    assert found.dtype == np.int64 and found.tolist() == labels
    for i, (value, label) in enumerate(zip(values, labels)):
        info = dataset.get_data_info(i)
        assert info['sample_idx'] == i
        assert info['img'][0, 0, 0] == value
        assert dataset.get_cat_ids(i) == [label]


@pytest.mark.parametrize('name', EXPECTED)
def test_batched_fetch_equals_single_fetch(name):
    dataset = SampleIndexDataset(_wrapped(name))
    dataset.full_init()
    batch = dataset.__getitems__([2, 0, 2])
    ids = [item['data_samples'].sample_idx for item in batch]
    assert ids == [2, 0, 2]
    for item, i in zip(batch, ids):
        assert torch.equal(item['inputs'], dataset[i]['inputs'])


def test_expected_table_agrees_with_the_wrappers_themselves():
    for name, (values, _) in EXPECTED.items():
        wrapped = _wrapped(name)
        if isinstance(wrapped, dict):
            wrapped = DATASETS.build(wrapped)
        found = [int(wrapped[i]['inputs'][0, 0, 0]) for i in range(len(wrapped))]
        assert found == values, name


def test_copies_share_a_row_when_the_wrapper_is_inside():
    dataset = mmengine.dataset.RepeatDataset(
        dict(type='crd_plugin.SampleIndexDataset', dataset=_numbers()), times=2
    )
    assert [i for i, _ in _values(dataset)] == list(range(6)) * 2


def test_sample_idx_left_by_the_pipeline_is_replaced():
    pipeline = [dict(type='mmpretrain.PackInputs', meta_keys=())]
    dataset = SampleIndexDataset(_numbers(pipeline=pipeline))
    assert dataset[4]['data_samples'].sample_idx == 4
    pipeline = [dict(type='mmpretrain.PackInputs', algorithm_keys=('sample_idx',), meta_keys=())]
    dataset = SampleIndexDataset(
        dict(type='ConcatDataset', datasets=[_numbers(pipeline=pipeline)] * 2)
    )
    sample = dataset[9]['data_samples']
    assert sample.sample_idx == 9
    assert 'sample_idx' in sample.metainfo_keys()


def test_dict_and_list_samples_get_the_id():

    class Views(list):
        def __getitem__(self, i):
            return dict(data_samples=[DataSample(), DataSample()])

    class Dicts(list):
        def __getitem__(self, i):
            return dict(data_samples=dict(gt_label=0))

    views = SampleIndexDataset(Views([0, 0, 0]))[2]['data_samples']
    assert [view.sample_idx for view in views] == [2, 2]
    assert SampleIndexDataset(Dicts([0, 0]))[1]['data_samples'] == dict(gt_label=0, sample_idx=1)


# --- redraws ---------------------------------------------------------------


@pytest.mark.parametrize(
    'build, alive',
    [
        (lambda pipe: _numbers(pipeline=pipe), {0: 0, 2: 2, 4: 4}),
        (
            lambda pipe: dict(type='RepeatDataset', dataset=_numbers(pipeline=pipe), times=2),
            {i: i % 6 for i in (0, 2, 4, 6, 8, 10)},
        ),
        (
            lambda pipe: dict(
                type='ConcatDataset',
                datasets=[_numbers(pipeline=pipe), _numbers(pipeline=pipe, start=1)],
            ),
            {0: 0, 2: 2, 4: 4, 7: 2, 9: 4, 11: 6},
        ),
        (lambda pipe: Subset(DATASETS.build(_numbers(pipeline=pipe)), [1, 2, 3, 4]), {1: 2, 3: 4}),
        (lambda pipe: FullyOwn(pipeline=pipe), {0: 0, 2: 2, 4: 4}),
    ],
    ids=['plain', 'repeat', 'concat', 'subset', 'own __getitem__'],
)
def test_id_is_of_the_sample_that_a_redraw_returns(build, alive):
    np.random.seed(0)
    dataset = SampleIndexDataset(build(_dropping(1, 3, 5)))
    dataset.full_init()
    seen = Counter()
    for _ in range(60):
        for position, value in _values(dataset):
            assert alive[position] == value
            seen[position] += 1
    assert set(seen) == set(alive)
    # A redraw is uniform over what is left.
    assert max(seen.values()) < 2 * min(seen.values())
    # Samples that are fine stay where they are.
    for position, value in alive.items():
        assert _values(dataset, [position]) == [(position, value)]


def test_redraw_takes_the_same_random_numbers_as_mmengine():
    plain = DATASETS.build(_numbers(pipeline=_dropping(1, 3, 5)))
    wrapped = SampleIndexDataset(plain)
    for seed in range(20):
        np.random.seed(seed)
        theirs = int(plain[1]['inputs'][0, 0, 0])
        np.random.seed(seed)
        assert _values(wrapped, [1]) == [(theirs, theirs)]


def test_contrast_ids_follow_the_redrawn_sample():
    np.random.seed(0)
    dataset = SampleIndexDataset(_numbers(pipeline=_dropping(1, 3, 5)), num_negatives=3)
    for _ in range(20):
        sample = dataset[1]['data_samples']
        assert sample.contrast_idx[0] == sample.sample_idx != 1
        negatives = np.array(LABELS)[sample.contrast_idx[1:]]
        assert (negatives != sample.gt_label.item()).all()


def test_a_set_without_valid_samples_gives_up():
    dataset = SampleIndexDataset(_numbers(pipeline=_dropping(*range(6)), max_refetch=5))
    with pytest.raises(RuntimeError, match='5 redraws from Numbers'):
        dataset[0]


def test_test_mode_does_not_redraw():
    dataset = SampleIndexDataset(_numbers(pipeline=_dropping(1), test_mode=True))
    assert _values(dataset, [2]) == [(2, 2)]
    with pytest.raises(RuntimeError, match='sample 1 with test_mode=True'):
        dataset[1]


# --- contrast ids ----------------------------------------------------------


@pytest.mark.parametrize('example', FACTS['examples'])
def test_contrast_ids_equal_the_originals_draw(example):
    np.random.seed(example['seed'])
    dataset = SampleIndexDataset(
        _numbers(), num_negatives=example['k'], percent=example['percent'], mode=example['mode']
    )
    samples = [dataset[i]['data_samples'] for i in range(6)]
    pools = dataset._pools
    for label in range(3):
        assert pools.positives(label).tolist() == example['positives'][label]
        assert pools.negatives(label).tolist() == example['negatives'][label]
    assert all(s.contrast_idx.dtype == torch.int64 for s in samples)
    found = [s.contrast_idx.tolist() for s in samples]
    assert found == example['contrast_idx']


@pytest.mark.parametrize('percent', [1.0, 0.5])
def test_contrast_ids_with_unequal_unsorted_classes(percent):
    labels = [3, 0, 1, 1, 0, 1, 0, 3, 1, 0, 0, 1]  # class 2 has no sample
    np.random.seed(5)
    dataset = SampleIndexDataset(_numbers(labels=labels), num_negatives=3, percent=percent)
    np.random.seed(5)
    pools = []
    for label in range(4):
        pool = np.concatenate(
            [np.flatnonzero(np.array(labels) == other) for other in range(4) if other != label]
        )
        if percent < 1:  # 7 negatives of class 0, half of them kept
            pool = np.random.permutation(pool)[:3]
        pools.append(pool)
        assert dataset._pools.negatives(label).tolist() == pool.tolist()
    for i, label in enumerate(labels):
        np.random.seed(i)
        expected = np.random.choice(pools[label], 3, replace=False)
        np.random.seed(i)
        found = dataset[i]['data_samples'].contrast_idx.tolist()
        assert found == [i, *expected]


def test_no_contrast_ids_unless_asked_for():
    assert 'contrast_idx' not in SampleIndexDataset(_numbers())[0]['data_samples']


def test_contrast_ids_reach_the_batch():
    dataset = SampleIndexDataset(_numbers(), num_negatives=2)
    batch = next(iter(DataLoader(dataset, batch_size=3, collate_fn=pseudo_collate)))
    stacked = torch.stack([s.contrast_idx for s in batch['data_samples']])
    assert stacked.shape == (3, 3) and stacked[:, 0].tolist() == [0, 1, 2]


# --- reproducible workers --------------------------------------------------


def _noisy(seed=7):
    dataset = SampleIndexDataset(_numbers(labels=[0, 1] * 6, pipeline=NOISY))
    if seed is not None:
        dataset.set_seed(seed)
    return dataset


def _loader(dataset, num_workers):
    return DataLoader(
        dataset,
        batch_size=3,
        sampler=DefaultSampler(dataset, shuffle=True, seed=0),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        collate_fn=pseudo_collate,
    )


def _epoch(loader, epoch):
    loader.dataset.set_epoch(epoch)
    loader.sampler.set_epoch(epoch)
    return [
        ([s.sample_idx for s in batch['data_samples']], torch.stack(batch['inputs']))
        for batch in loader
    ]


def _equal(first, second):
    return all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in zip(first, second))


def test_an_epoch_is_the_same_after_a_restart_with_any_number_of_workers():
    running = _loader(_noisy(), 2)
    epochs = [_epoch(running, epoch) for epoch in range(3)]
    for num_workers in (1, 2, 3):
        fresh = _loader(_noisy(), num_workers)
        assert _equal(_epoch(fresh, 2), epochs[2])
    noise = torch.cat([images for epoch in epochs for _, images in epoch])
    # 3 epochs of 12 images, three generators: no draw ever comes back.
    assert noise.unique().numel() == 3 * 12 * 3


def test_the_seed_counts():
    first = _epoch(_loader(_noisy(7), 1), 0)
    second = _epoch(_loader(_noisy(8), 1), 0)
    assert [ids for ids, _ in first] == [ids for ids, _ in second]
    assert not _equal(first, second)


def test_workers_keep_their_own_seeds_unless_asked():
    torch.manual_seed(1)
    first = _epoch(_loader(_noisy(None), 1), 0)
    second = _epoch(_loader(_noisy(None), 1), 0)
    assert not _equal(first, second)


def test_no_worker_reads_the_same_images_as_two():
    epochs = [_epoch(_loader(_noisy(), workers), 1) for workers in (0, 2)]
    assert _equal(*epochs)


def test_the_training_process_keeps_its_random_state():
    loader = _loader(_noisy(), 0)

    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    undisturbed = [draw(), draw()]
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    first = draw()
    loader.dataset[4]
    loader.dataset.__getitems__([1, 2, 3])
    assert [first, draw()] == undisturbed


def test_state_is_put_back_when_reading_fails():
    dataset = _noisy()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    dataset._prepare = lambda position: 1 / 0
    with pytest.raises(ZeroDivisionError):
        dataset[0]
    assert torch.equal(torch.rand(1), expected)


def test_a_batch_that_comes_again_is_augmented_anew():
    dataset = _noisy()
    first, again = dataset[2]['inputs'], dataset[2]['inputs']
    assert not torch.equal(first, again)
    # A run that starts over repeats both.
    restarted = _noisy()
    assert torch.equal(restarted[2]['inputs'], first)
    assert torch.equal(restarted[2]['inputs'], again)
    # So does the epoch when it is started again.
    dataset.set_epoch(0)
    assert torch.equal(dataset[2]['inputs'], first)


def test_single_fetch_in_a_worker_is_seeded_too():
    batches = []
    for _ in range(2):
        loader = DataLoader(_noisy(), batch_size=None, num_workers=1, sampler=[4, 1])
        batches.append([item['inputs'] for item in loader])
    assert torch.equal(batches[0][0], batches[1][0])
    assert not torch.equal(batches[0][0], batches[0][1])


# --- errors ----------------------------------------------------------------


def test_pipeline_without_pack_inputs_is_told():
    dataset = SampleIndexDataset(_numbers(pipeline=[]))
    with pytest.raises(TypeError, match=r"'img'.*type='PackInputs'"):
        dataset[0]


@pytest.mark.parametrize(
    'labels, key, message',
    [
        (LABELS, 'other', "Numbers has no labels .*exclude='instance'"),
        ([[0, 1], [2]], 'gt_label', 'Numbers is multi-label'),
        ([[0, 1], [2, 0]], 'gt_label', r'multi-label.*\(2, 2\)'),
        ([dict(a=1), dict(a=2)], 'gt_label', 'multi-task'),
        ([0.5, 0.5], 'gt_label', 'labels of type float64, expected integers'),
        ([0, -1], 'gt_label', 'label -1 at sample 1'),
    ],
)
@pytest.mark.parametrize('serialize', [True, False])
def test_labels_that_are_no_classes_are_told(labels, key, message, serialize):
    dataset = SampleIndexDataset(_numbers(labels=labels, key=key, serialize_data=serialize))
    with pytest.raises(ValueError, match=message):
        dataset.get_gt_labels()


def test_labels_of_other_kinds_of_data_sets():

    class WithTargets(list):
        targets = [2, 0, 1]

    class WithInfo(list):
        def get_data_info(self, i):
            return dict(gt_label=[self[i]])

    assert SampleIndexDataset(WithTargets('abc')).get_gt_labels().tolist() == [2, 0, 1]
    assert SampleIndexDataset(WithInfo([4, 5])).get_gt_labels().tolist() == [4, 5]
    with pytest.raises(ValueError, match='2 samples; .* must return one each'):
        WithTargets.targets = [1]
        SampleIndexDataset(WithTargets('ab')).get_gt_labels()


def test_labels_are_a_copy():
    dataset = SampleIndexDataset(_numbers())
    dataset.get_gt_labels()[:] = 9
    assert dataset.get_gt_labels().tolist() == LABELS


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(mode='loose'), "mode must be 'exact' or 'relax', but got 'loose'"),
        (dict(num_negatives=0), 'num_negatives must be a positive int'),
        (dict(num_negatives=1.5), 'but got 1.5'),
        (dict(num_negatives=2, percent='half'), "percent .* but got 'half'"),
        (dict(percent=0.5), 'percent=0.5 .* only when num_negatives is given'),
        (dict(mode='relax'), "mode='relax' .* only when num_negatives"),
        (dict(num_negatives=2, percent=0.1), 'percent=0.1 keeps none of the 4'),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SampleIndexDataset(_numbers(), **kwargs)


def test_one_class_has_no_negatives():
    with pytest.raises(ValueError, match='all 3 samples are of class 1'):
        SampleIndexDataset(_numbers(labels=[1, 1, 1]), num_negatives=1)


def test_wrong_data_sets_are_refused():
    with pytest.raises(TypeError, match='dataset .* but got int'):
        SampleIndexDataset(3)
    with pytest.raises(ValueError, match='SampleIndexDataset already'):
        SampleIndexDataset(SampleIndexDataset(_numbers()))
    with pytest.raises(ValueError, match='list has no samples'):
        SampleIndexDataset([]).full_init()
    with pytest.raises(TypeError, match='list has no get_data_info'):
        SampleIndexDataset([1]).get_data_info(0)


def test_positions_outside_are_refused():
    dataset = SampleIndexDataset(_numbers())
    assert _values(dataset, [-1]) == [(5, 5)]
    for idx in (6, -7):
        with pytest.raises(IndexError, match=f'idx {idx} .* of 6 samples'):
            dataset[idx]


def test_cutting_is_refused_with_the_mend():
    dataset = SampleIndexDataset(_numbers())
    for method in (dataset.get_subset, dataset.get_subset_):
        with pytest.raises(NotImplementedError, match='inner data set'):
            method([0, 1])


@pytest.mark.parametrize('value', [-1, 1.5, True])
def test_seed_and_epoch_are_natural_numbers(value):
    dataset = _noisy()
    with pytest.raises(ValueError, match='seed must be an int >= 0'):
        dataset.set_seed(value)
    with pytest.raises(ValueError, match='epoch must be an int >= 0'):
        dataset.set_epoch(value)


def test_metainfo_is_a_copy_of_the_wrapped_sets():
    dataset = SampleIndexDataset(_numbers())
    assert dataset.metainfo == dict(classes=('a', 'b', 'c'))
    dataset.metainfo['classes'] = ()
    assert dataset.metainfo['classes'] == ('a', 'b', 'c')
