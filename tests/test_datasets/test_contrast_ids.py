"""ContrastIds against figures of HobbitLong/RepDistiller, dataset/cifar100.py, on six labels."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from torch.utils.data import DataLoader

from crd_plugin.datasets import SampleIndexDataset
from crd_plugin.datasets.contrast_ids import ContrastIds
from tests.test_datasets.toy_dataset import numbers

FACTS = json.loads((Path(__file__).parents[1] / 'data' / 'sampling.json').read_text())
LABELS = np.array(FACTS['labels'])


@pytest.mark.parametrize('example', FACTS['examples'])
def test_ids_equal_those_of_the_original(example):
    np.random.seed(example['seed'])
    dataset = SampleIndexDataset(
        numbers(labels=FACTS['labels']),
        num_negatives=example['k'],
        percent=example['percent'],
        mode=example['mode'],
    )
    drawn = [dataset[i]['data_samples'].contrast_idx for i in range(6)]
    assert [ids.tolist() for ids in drawn] == example['contrast_idx']
    assert all(ids.dtype == torch.int64 for ids in drawn)
    np.random.seed(example['seed'])
    ids = ContrastIds(LABELS, example['k'], example['percent'], example['mode'])
    for label in range(3):
        assert ids.positives[label].tolist() == example['positives'][label]
        assert ids.negatives(label).tolist() == example['negatives'][label]


@pytest.mark.parametrize('percent', [1.0, 0.5])
def test_unequal_unsorted_classes(percent):
    labels = np.array([3, 0, 1, 1, 0, 1, 0, 3, 1, 0, 0, 1])  # class 2 has no sample
    np.random.seed(5)
    ids = ContrastIds(labels, 3, percent)
    np.random.seed(5)
    pools = []
    for label in range(4):
        others = [np.flatnonzero(labels == other) for other in range(4) if other != label]
        pool = np.concatenate(others)
        if percent < 1:  # half of the 7 negatives of class 0
            pool = np.random.permutation(pool)[:3]
        pools.append(pool)
        assert ids.negatives(label).tolist() == pool.tolist()
    for i, label in enumerate(labels):
        np.random.seed(i)
        expected = np.random.choice(pools[label], 3, replace=False)
        np.random.seed(i)
        assert ids.draw(i).tolist() == [i, *expected]


def test_ids_reach_the_batch_only_if_asked_for():
    assert 'contrast_idx' not in SampleIndexDataset(numbers())[0]['data_samples']
    dataset = SampleIndexDataset(numbers(), num_negatives=2)
    batch = next(iter(DataLoader(dataset, batch_size=3, collate_fn=pseudo_collate)))
    stacked = torch.stack([sample.contrast_idx for sample in batch['data_samples']])
    assert stacked.shape == (3, 3) and stacked[:, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(num_negatives=2, mode='loose'), "mode must be 'exact' or 'relax', but got 'loose'"),
        (dict(num_negatives=0), 'num_negatives is 0, expected at least 1'),
        (dict(num_negatives=True), 'num_negatives is True, expected an integer'),
        (dict(num_negatives=2, percent=0.1), 'percent=0.1 keeps none of the 4'),
        (dict(num_negatives=1, dataset=numbers(labels=[1] * 3)), 'all 3 samples are of class 1'),
        (dict(percent=0.5), 'percent=0.5 .* only when num_negatives is given'),
        (dict(mode='relax'), "mode='relax' .* only when num_negatives"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SampleIndexDataset(**{'dataset': numbers(), **kwargs})
