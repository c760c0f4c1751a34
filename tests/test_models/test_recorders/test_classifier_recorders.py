"""Both recorders of a classifier, on heads of every kind."""

import pytest
import torch
from mmengine.registry import DefaultScope
from torch import nn

from crd_plugin.models.recorders import LogitsRecorder, PenultimateFeatureRecorder
from crd_plugin.registry import MODELS
from tests import small_runs

HIDDEN = dict(type='mmpretrain.VisionTransformerClsHead', num_classes=7, in_channels=16)
VIT = dict(
    type='mmpretrain.VisionTransformer',
    img_size=16,
    patch_size=8,
    arch=dict(embed_dims=16, num_layers=1, num_heads=2, feedforward_channels=8),
)


def classifier(**changes):
    cfg = {**small_runs.net(6), **changes}
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(cfg).eval()


@torch.no_grad()
def record(model, feature=None, logits=None, calls=1):
    """Logits and feature of one call, or of each of several."""
    recorders = LogitsRecorder(logits), PenultimateFeatureRecorder(feature)
    for recorder in recorders:
        recorder.initialize(model)
    images = torch.rand(2, 3, 16, 16)
    with recorders[0], recorders[1]:
        outputs = [model(images, mode='tensor') for _ in range(calls)]
    found = [recorder.data_buffer for recorder in recorders]
    assert [len(buffer) for buffer in found] == [calls, calls]
    assert torch.equal(found[0][-1], outputs[-1])
    return found[0][-1], found[1][-1]


HEADS = {
    'linear': (dict(), 'head.fc', 6),
    'transformer': (dict(backbone=VIT, neck=None, head=HIDDEN), 'head.layers.head', 16),
    'hidden layer': (
        dict(backbone=VIT, neck=None, head=dict(HIDDEN, hidden_dim=9)),
        'head.layers.head',
        9,
    ),
    'stacked': (
        dict(
            head=dict(
                type='mmpretrain.StackedLinearClsHead',
                num_classes=7,
                in_channels=6,
                mid_channels=[5, 4],
            )
        ),
        'head.layers.2.fc',
        4,
    ),
    'multi-label': (
        dict(head=dict(type='mmpretrain.MultiLabelLinearClsHead', num_classes=7, in_channels=6)),
        'head.fc',
        6,
    ),
}


@pytest.mark.parametrize('kind', HEADS)
def test_the_last_layer_is_found(kind):
    changes, layer, width = HEADS[kind]
    model = classifier(**changes)
    logits, feature = record(model, calls=2)
    assert feature.shape == (2, width)
    torch.testing.assert_close(model.get_submodule(layer)(feature), logits)


def test_networks_of_timm():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(dict(type='TimmClassifier', model_name='resnet10t', num_classes=7))
    logits, feature = record(model.eval())
    assert feature.shape == (2, 512)
    torch.testing.assert_close(model.model.fc(feature), logits)


def test_source_names_the_module_that_returns_it():
    model = classifier()
    logits, feature = record(model, feature='neck', logits='head.fc')
    torch.testing.assert_close(model.head.fc(feature), logits)
    for recorder in (LogitsRecorder('fc'), PenultimateFeatureRecorder('fc')):
        with pytest.raises(ValueError, match="source='fc' is not a module of the ImageClassifier"):
            recorder.initialize(model)


def test_a_network_without_a_head():
    recorder = PenultimateFeatureRecorder()
    recorder.initialize(classifier(head=None))
    model = classifier(head=None, neck=None)
    with pytest.raises(ValueError, match="has neither a 'head' nor a 'model'"):
        LogitsRecorder().initialize(model)
    recorder.initialize(model)
    with recorder, pytest.raises(ValueError, match=r'returns a feature of shape \(2, 6, 8, 8\)'):
        model(torch.rand(2, 3, 16, 16), mode='tensor')


def test_what_is_not_logits_is_refused():
    with pytest.raises(TypeError, match='TinyNet returns tuple, expected logits of shape'):
        record(classifier(), logits='backbone')


def test_a_convolution_may_be_the_last_layer():
    """Any layer with weights counts, as in some heads."""
    model = classifier()
    model.head.fc = nn.Sequential(nn.Unflatten(1, (6, 1, 1)), nn.Conv2d(6, 10, 1), nn.Flatten())
    logits, feature = record(model)
    torch.testing.assert_close(model.head.fc(feature), logits)


@torch.no_grad()
def test_the_last_layer_may_be_in_the_backbone():
    head = dict(type='mmpretrain.ClsHead')
    vgg = dict(type='mmpretrain.VGG', depth=11, num_classes=7)
    model = classifier(backbone=vgg, neck=None, head=head)
    for i, (inputs, outputs) in {0: (512, 8), 3: (8, 8), 6: (8, 7)}.items():
        model.backbone.classifier[i] = nn.Linear(inputs, outputs)
    recorder = PenultimateFeatureRecorder()
    recorder.initialize(model)
    with recorder:
        scores = model(torch.rand(2, 3, 32, 32), mode='tensor')
    torch.testing.assert_close(model.backbone.classifier[6](*recorder.data_buffer), scores)


def test_no_layer_with_weights():
    model = nn.Module()
    model.head = nn.Flatten()
    with pytest.raises(ValueError, match='Module has no linear layer that could be'):
        PenultimateFeatureRecorder().initialize(model)
