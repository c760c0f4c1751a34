"""SegmentationMetric against scikit-learn."""

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score

from crd_plugin.registry import METRICS


def build(num_classes=5, **kwargs):
    cfg = dict(type='crd_plugin.SegmentationMetric', num_classes=num_classes, **kwargs)
    return METRICS.build(cfg)


def images(number=4, classes=(0, 1, 3), ignore=255):
    """Maps of several sizes; class 2 is predicted only, class 4 nowhere."""
    generator = np.random.RandomState(0)
    for i in range(number):
        size = (5 + i, 7)
        true = generator.choice(classes, size).astype(np.uint8)
        found = generator.choice((*classes, 2), size)
        found[:3] = true[:3]
        true[generator.rand(*size) < 0.2] = ignore
        yield true, found


@pytest.mark.parametrize('ignore', [255, 17])
def test_values_are_those_of_scikit_learn(ignore):
    metric = build(ignore_index=ignore)
    pairs = list(images(ignore=ignore))
    for i, (true, found) in enumerate(pairs):  # arrays, and tensors as of a model
        true = true if i % 2 else torch.from_numpy(true)
        metric.process(None, [dict(gt_seg_map=true, pred_seg_map=torch.from_numpy(found))])
    true, found = (np.concatenate([x.ravel() for x in side]) for side in zip(*pairs))
    found, true = found[true != ignore], true[true != ignore]
    expected = confusion_matrix(true, found, labels=range(5))
    np.testing.assert_array_equal(np.sum(metric.results, axis=0), expected)
    values = Evaluator(metric).evaluate(len(pairs))
    assert values == {
        'segmentation/pixel_accuracy': pytest.approx(100 * accuracy_score(true, found)),
        'segmentation/mean_iou': pytest.approx(
            100 * jaccard_score(true, found, labels=[0, 1, 2, 3], average='macro')
        ),
    }


def test_without_a_labelled_pixel():
    metric = build(3)
    maps = dict(gt_seg_map=np.full((2, 2), 255), pred_seg_map=torch.zeros(2, 2))
    metric.process(None, [maps])
    assert all(np.isnan(list(metric.evaluate(1).values())))


@pytest.mark.parametrize(
    'true, found, message',
    [
        ([[3]], [[0]], 'gt_seg_map has values from 3 to 3, expected 0 to 2; set num_classes'),
        ([[0]], [[5]], 'pred_seg_map has values from 5 to 5, expected 0 to 2'),
        ([[0, 1]], [[0]], r'gt_seg_map is \(1, 2\) and pred_seg_map \(1, 1\), expected one size'),
    ],
)
def test_maps_that_do_not_fit(true, found, message):
    maps = dict(gt_seg_map=np.array(true), pred_seg_map=torch.tensor(found))
    with pytest.raises(ValueError, match=message):
        build(3).process(None, [maps])
