"""ResidentDataPreprocessor against the original on data samples."""

import random

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from mmpretrain.structures import DataSample

from crd_plugin.registry import MODELS
from crd_plugin.structures import BatchSamples

COMMON = dict(mean=[125.3, 123.0, 113.9], std=[63.0, 62.1, 66.7], num_classes=5)
CONFIGS = dict(
    plain=dict(),
    bgr=dict(to_rgb=True),
    padded=dict(pad_size_divisor=16, pad_value=3),
    raw=dict(mean=None, std=None),
    onehot=dict(to_onehot=True),
    mixup=dict(batch_augments=dict(augments=dict(type='Mixup', alpha=0.8))),
    cutmix=dict(batch_augments=dict(augments=dict(type='CutMix', alpha=1.0))),
)
LABELS = torch.tensor([4, 0, 1, 2])
IMAGES = torch.randint(
    0, 256, (4, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


def build(kind, **config):
    """A data preprocessor."""
    return MODELS.build(dict(type=kind, **{**COMMON, **config}))


def whole():
    """Labels as one tensor."""
    return BatchSamples([3, 5, 7, 9], torch.tensor([3, 5, 7, 9]), LABELS)


def one_by_one():
    """Labels as data samples."""
    return [
        DataSample(metainfo=dict(sample_idx=index)).set_gt_label(label)
        for index, label in zip([3, 5, 7, 9], LABELS)
    ]


def run(preprocess, samples, training):
    """Inputs and samples, always from the same random numbers."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    batch = preprocess(dict(inputs=IMAGES, data_samples=samples), training)
    return batch['inputs'], batch['data_samples']


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('name', CONFIGS)
def test_equals_the_original(name, training):
    ours = build('crd_plugin.ResidentDataPreprocessor', **CONFIGS[name])
    theirs = build('ClsDataPreprocessor', **CONFIGS[name])
    inputs, samples = run(ours, whole(), training)
    expected, expected_samples = run(theirs, one_by_one(), training)
    assert torch.equal(inputs, expected) and inputs.dtype == expected.dtype
    assert isinstance(samples, BatchSamples) and not samples.made
    for mine, its in zip(samples, expected_samples):
        assert set(mine.keys()) == set(its.keys())
        assert mine.metainfo == its.metainfo
        for key, value in its.items():
            assert torch.equal(getattr(mine, key), value), key
    if name == 'mixup' and training:
        assert any(sample.gt_score.max() < 1 for sample in samples)


def test_other_batches_are_left_to_the_original():
    ours = build('crd_plugin.ResidentDataPreprocessor', to_onehot=True)
    theirs = build('ClsDataPreprocessor', to_onehot=True)
    samples = whole()
    samples[0].set_gt_label(2)  # made, and changed
    changed = one_by_one()
    changed[0].set_gt_label(2)
    for given, reference in ((one_by_one(), one_by_one()), (samples, changed), (None, None)):
        inputs, found = run(ours, given, True)
        expected, expected_samples = run(theirs, reference, True)
        assert torch.equal(inputs, expected)
        if given is None:
            assert found is None
            continue
        for mine, its in zip(found, expected_samples):
            assert torch.equal(mine.gt_label, its.gt_label)
            assert torch.equal(mine.gt_score, its.gt_score)


def test_the_original_takes_whole_batches_too():
    inputs, samples = run(build('ClsDataPreprocessor'), whole(), True)
    assert torch.equal(inputs, run(build('ClsDataPreprocessor'), one_by_one(), True)[0])
    assert [sample.gt_label.item() for sample in samples] == LABELS.tolist()


def test_one_hot_labels_need_labels_and_classes():
    preprocess = build('crd_plugin.ResidentDataPreprocessor', **CONFIGS['mixup'])
    unlabeled = BatchSamples([0, 1, 2, 3], torch.arange(4))
    with pytest.raises(ValueError, match='the samples have no gt_label'):
        run(preprocess, unlabeled, True)
    preprocess = build('crd_plugin.ResidentDataPreprocessor', to_onehot=True, num_classes=None)
    with pytest.raises(ValueError, match='need num_classes'):
        run(preprocess, whole(), True)
