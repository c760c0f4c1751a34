"""Data preprocessors: one view for a network, several views of each image."""

import copy

import pytest
import torch
from mmengine.dataset import default_collate, pseudo_collate
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from mmpretrain.structures import DataSample

from crd_plugin.models import LabView, MultiViewPreprocessor, ViewPreprocessor
from crd_plugin.ops import rgb_to_lab

L = dict(type='crd_plugin.LabView', channels='L')


@pytest.mark.parametrize('to_rgb', [False, True])
def test_pixels_are_put_in_order_viewed_and_normalised(to_rgb):
    preprocess = ViewPreprocessor(LabView('ab'), [6.0, -7.0], [92.0, 101.0], to_rgb=to_rgb)
    raw = torch.randint(0, 256, (6, 3, 4, 4), dtype=torch.uint8)
    samples = [DataSample().set_gt_label(i) for i in range(6)]
    found = preprocess(dict(inputs=raw, data_samples=samples), training=True)
    assert [int(sample.gt_label) for sample in found['data_samples']] == list(range(6))
    rgb = raw.flip(1) if to_rgb else raw
    lab = rgb_to_lab(rgb.double() / 255)[:, 1:].float()
    expected = torch.stack([(lab[:, 0] - 6) / 92, (lab[:, 1] + 7) / 101], 1)
    torch.testing.assert_close(found['inputs'], expected, atol=1e-4, rtol=1e-4)


def test_nothing_of_a_view_is_in_a_checkpoint():
    preprocess = ViewPreprocessor(L, [50.0], [50.0])
    assert preprocess.state_dict() == {}
    assert preprocess.to('meta').view.mean.is_meta


def test_numbers_that_do_not_fit_a_view():
    for mean, std in (([1.0], [1.0, 2.0]), ([1.0], [0.0]), ([], [])):
        with pytest.raises(ValueError, match='^mean=.* as many means as positive deviations'):
            ViewPreprocessor(L, mean, std)
    raw = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match='^the view LabView has 1 channels, but mean and std have'):
        ViewPreprocessor(L, [1.0] * 3, [1.0] * 3)(dict(inputs=raw))


def inner(**changes):
    stats = dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], to_rgb=True)
    return MMPRETRAIN_MODELS.build(
        dict(type='mmpretrain.ClsDataPreprocessor', num_classes=10, **stats, **changes)
    )


def items(num_views=3, batch=4):
    return [
        dict(
            inputs=list(torch.randint(256, (num_views, 3, 5, 5), dtype=torch.uint8)),
            data_samples=DataSample().set_gt_label(i),
        )
        for i in range(batch)
    ]


@pytest.mark.parametrize('num_views', [1, 3])
@pytest.mark.parametrize('collate', [pseudo_collate, default_collate])
def test_each_view_is_preprocessed_alone(collate, num_views):
    batch, settings = items(num_views), dict(pad_size_divisor=4, to_onehot=True)
    wrapped = MultiViewPreprocessor(inner(**settings))
    out = wrapped(collate(batch), training=True)
    assert len(out['inputs']) == num_views
    for i, view in enumerate(out['inputs']):
        images = torch.stack([item['inputs'][i] for item in batch])
        expected = inner(**settings)(dict(inputs=images))['inputs']
        assert view.shape == (4, 3, 8, 8) and torch.equal(view, expected)
    scores = torch.stack([sample.gt_score for sample in out['data_samples']])
    assert torch.equal(scores, torch.eye(10)[:4])
    assert list(wrapped.state_dict()) == list(inner().state_dict())


@pytest.mark.parametrize('collate', [pseudo_collate, default_collate])
def test_single_images_go_straight_through(collate):
    """Validation; three images are not three views."""
    batch = [{**item, 'inputs': item['inputs'][0]} for item in items(batch=3)]
    data = collate(batch)
    expected = inner()(copy.deepcopy(data))
    out = MultiViewPreprocessor(inner())(data)
    assert torch.equal(out['inputs'], expected['inputs'])
    assert out['inputs'].shape == (3, 3, 5, 5)
    assert int(out['data_samples'][2].gt_label) == 2


def test_images_must_not_be_mixed():
    augments = dict(augments=[dict(type='mmpretrain.Mixup', alpha=0.2)])
    with pytest.raises(ValueError, match='data_preprocessor.batch_augments mixes images'):
        MultiViewPreprocessor(inner(batch_augments=augments))
