"""SegmentationHead: loss, prediction and label maps out of range."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmpretrain.structures import DataSample

from crd_plugin.registry import MODELS


@pytest.fixture
def head():
    torch.manual_seed(0)
    return MODELS.build(
        dict(type='crd_plugin.SegmentationHead', in_channels=3, num_classes=4, hidden_channels=5)
    )


def samples(*maps):
    return [DataSample(gt_seg_map=one, metainfo=dict(img_shape=one.shape)) for one in maps]


def label_maps(number=2, size=(6, 8)):
    maps = np.random.RandomState(0).randint(0, 4, (number, *size)).astype(np.uint8)
    maps[:, :2] = 255
    return maps


def test_loss_is_the_mean_over_labelled_pixels(head):
    feature, maps = torch.randn(2, 3, 3, 4), label_maps()
    loss = head.loss((None, feature), samples(*maps))['loss']
    scores = F.interpolate(head.layers(feature), (6, 8), mode='bilinear').log_softmax(1)
    terms = [
        -scores[b, maps[b, y, x], y, x]
        for b in range(2)
        for y in range(6)
        for x in range(8)
        if maps[b, y, x] != 255
    ]
    torch.testing.assert_close(loss, torch.stack(terms).mean())
    # Tensors do as well as arrays.
    same = head.loss((feature,), samples(*map(torch.from_numpy, maps)))['loss']
    torch.testing.assert_close(loss, same)


def test_images_without_labels_have_no_loss_and_no_nan(head):
    loss = head.loss((torch.randn(2, 3, 3, 4),), samples(*np.full((2, 6, 8), 255, np.uint8)))[
        'loss'
    ]
    loss.backward()
    assert loss.item() == 0
    assert all((p.grad == 0).all() for p in head.parameters())


def test_prediction_has_the_size_of_the_image(head):
    feature = torch.randn(2, 3, 3, 4)
    found = head.eval().predict((feature,), samples(*label_maps()))
    scores = F.interpolate(head(((feature),)), (6, 8), mode='bilinear')
    for sample, expected in zip(found, scores.argmax(1)):
        assert torch.equal(sample.pred_seg_map, expected)
    assert head.predict((feature,))[0].pred_seg_map.shape == (3, 4)


@pytest.mark.parametrize('value', [4, 254, -1])
def test_label_out_of_range(head, value):
    maps = label_maps().astype(np.int64)
    maps[1, 4, 4] = value
    message = f'gt_seg_map has the value {value}, expected classes from 0 to 3, or 255'
    with pytest.raises(ValueError, match=message):
        head.loss((torch.randn(2, 3, 3, 4),), samples(*maps))


def test_samples_without_a_label_map(head):
    with pytest.raises(ValueError, match=r"no field \"gt_seg_map\".*algorithm_keys=\('gt_seg_map'"):
        head.loss((torch.randn(1, 3, 3, 4),), [DataSample()])
