"""MultiViewPreprocessor: every view as the inner one would do it."""

import copy

import pytest
import torch
from mmengine.dataset import default_collate, pseudo_collate
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from mmpretrain.structures import DataSample

from crd_plugin.models.data_preprocessors import MultiViewPreprocessor


def inner(**changes):
    return MMPRETRAIN_MODELS.build(
        dict(
            type='mmpretrain.ClsDataPreprocessor',
            num_classes=10,
            mean=[1.0, 2.0, 3.0],
            std=[4.0, 5.0, 6.0],
            to_rgb=True,
            **changes,
        )
    )


def items(num_views=3, batch=4, size=5):
    return [
        dict(
            inputs=[
                torch.randint(256, (3, size, size), dtype=torch.uint8) for _ in range(num_views)
            ],
            data_samples=DataSample().set_gt_label(i),
        )
        for i in range(batch)
    ]


@pytest.mark.parametrize('num_views', [1, 3])
@pytest.mark.parametrize('collate', [pseudo_collate, default_collate])
def test_each_view_is_preprocessed_alone(collate, num_views):
    batch, settings = items(num_views), dict(pad_size_divisor=4, to_onehot=True)
    out = MultiViewPreprocessor(inner(**settings))(collate(batch), training=True)
    assert len(out['inputs']) == num_views
    for i, view in enumerate(out['inputs']):
        images = torch.stack([item['inputs'][i] for item in batch])
        expected = inner(**settings)(dict(inputs=images))['inputs']
        assert view.shape == (4, 3, 8, 8) and torch.equal(view, expected)
    scores = torch.stack([sample.gt_score for sample in out['data_samples']])
    assert torch.equal(scores, torch.eye(10)[:4])


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


def test_device_and_state_are_the_inner_ones():
    wrapped = MultiViewPreprocessor(inner())
    assert list(wrapped.state_dict()) == list(inner().state_dict())
    wrapped.to('meta')
    assert wrapped.device.type == 'meta'
    assert wrapped.preprocessor.mean.is_meta


def test_images_must_not_be_mixed():
    augments = dict(augments=[dict(type='mmpretrain.Mixup', alpha=0.2)])
    with pytest.raises(ValueError, match='data_preprocessor.batch_augments mixes images'):
        MultiViewPreprocessor(inner(batch_augments=augments))
