"""BatchSamples: real data samples, but only when asked for."""

import copy
import pickle
from collections.abc import Sequence

import pytest
import torch
from mmpretrain.structures import DataSample

from crd_plugin.structures import BatchSamples

IDS = [4, 0, 7]
LABELS = torch.tensor([2, 1, 0])
SCORES = torch.eye(3)[LABELS]
META = [dict(img_path=f'{index}.png') for index in IDS]


def batch(**kwargs):
    """A batch of three."""
    return BatchSamples(IDS, torch.tensor(IDS), **kwargs)


def one_by_one(label=True, score=False, meta=False):
    """The same samples by the public means of a DataSample."""
    samples = []
    for place, index in enumerate(IDS):
        sample = DataSample(metainfo=dict(sample_idx=index))
        if meta:
            sample.set_metainfo(META[place])
        if label:
            sample.set_gt_label(LABELS[place])
        if score:
            sample.set_gt_score(SCORES[place])
        samples.append(sample)
    return samples


def assert_same(found, expected):
    """Data samples with the same fields, values and kinds of fields."""
    assert len(found) == len(expected)
    for mine, its in zip(found, expected):
        assert type(mine) is DataSample
        assert set(mine.keys()) == set(its.keys())
        assert set(mine.metainfo_keys()) == set(its.metainfo_keys())
        assert mine.metainfo == its.metainfo
        for key, value in its.items():
            assert torch.equal(getattr(mine, key), value)
            assert getattr(mine, key).dtype == value.dtype


@pytest.mark.parametrize(
    'kwargs, expected',
    [
        (dict(gt_label=LABELS), dict()),
        (dict(), dict(label=False)),
        (dict(gt_label=LABELS, metainfo=META), dict(meta=True)),
    ],
)
def test_samples_are_those_made_one_by_one(kwargs, expected):
    samples = batch(**kwargs)
    assert len(samples) == 3
    expected = one_by_one(**expected)
    assert_same(list(samples), expected)
    assert_same([samples[0], samples[-1]], [expected[0], expected[2]])
    assert_same(samples[1:], expected[1:])


@pytest.mark.parametrize('made', [False, True])
def test_gt_score(made):
    samples = batch(gt_label=LABELS)
    if made:
        samples[0]
    samples.set_gt_score(SCORES)
    assert_same(list(samples), one_by_one(score=True))


def test_samples_can_be_worked_with():
    sample = batch(gt_label=LABELS)[0]
    assert 'gt_label' in sample and 'gt_score' not in sample
    assert 'sample_idx' in sample and sample.get('sample_idx') == 4
    sample.set_pred_score(torch.tensor([0.1, 0.2, 0.7])).set_pred_label(2)
    assert sample.to_dict()['pred_label'].tolist() == [2]
    for other in (
        copy.deepcopy(sample),
        pickle.loads(pickle.dumps(sample)),
        sample.clone(),
        sample.to('cpu'),
    ):
        assert other.gt_label.tolist() == [2] and other.num_classes == 3


def test_nothing_is_made_before_it_is_asked_for():
    samples = batch(gt_label=LABELS)
    assert not samples.made
    assert samples.field('gt_label') is LABELS
    assert samples.field('sample_idx').tolist() == IDS
    assert samples.field('contrast_idx') is None
    assert len(samples) == 3 and not samples.made
    first = samples[0]
    # What is changed stays, so the tensors do not count any more.
    first.set_gt_label(5)
    assert samples.made and samples.field('gt_label') is None
    assert [sample.gt_label.item() for sample in samples] == [5, 1, 0]
    assert samples[0] is first


def test_upstream_leaves_it_whole():
    # These are taken apart by cast_data and by DDP.
    assert not isinstance(batch(), (Sequence, tuple, dict))


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(gt_label=LABELS[:2]), 'gt_label has 2 entries for 3 ids'),
        (dict(metainfo=META[:1]), 'metainfo has 1 entries for 3 ids'),
    ],
)
def test_lengths_must_agree(kwargs, message):
    with pytest.raises(ValueError, match=message):
        batch(**kwargs)


def test_scores_must_be_rows():
    for scores in (SCORES[:2], LABELS):
        with pytest.raises(ValueError, match=r'expected \(3, classes\)'):
            batch().set_gt_score(scores)
