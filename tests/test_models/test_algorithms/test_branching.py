"""Branches of networks of every family; others are refused with the reason."""

import functools

import pytest
import torch
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from torch import nn

from crd_plugin.models.algorithms.branching import (
    SkippedStage,
    check_branch,
    find_trunk,
    make_branch,
    run_and_watch,
)
from crd_plugin.models.backbones import build_cifar_classifier_cfg
from crd_plugin.registry import MODELS

pytestmark = pytest.mark.usefixtures('mmpretrain_scope')


@MMPRETRAIN_MODELS.register_module()
class OddNet(BaseModule):
    """Does what a branch cannot repeat."""

    def __init__(self, odd: str) -> None:
        super().__init__()
        self.odd = odd
        self.stem = nn.Conv2d(3, 4, 3)
        self.layer3 = nn.Conv2d(4, 4, 3)

    def forward(self, x):
        if self.odd == 'keyword':
            return (self.layer3(input=self.stem(x)),)
        height = x.size(2)
        return (height * self.layer3(self.stem(x)),)


def classifier(width, neck=True, **backbone):
    cfg = dict(
        type='ImageClassifier',
        backbone=backbone,
        head=dict(type='LinearClsHead', num_classes=5, in_channels=width),
    )
    if neck:
        cfg['neck'] = dict(type='GlobalAveragePooling')
    return cfg


zoo = functools.partial(build_cifar_classifier_cfg, num_classes=5)
VIT = classifier(
    8,
    neck=False,
    type='VisionTransformer',
    arch=dict(embed_dims=8, num_layers=2, num_heads=2, feedforward_channels=16),
    img_size=32,
    patch_size=8,
)
# Networks, the first stage of a branch, and what the branch has of the backbone.
FAMILIES = {
    'resnet': (zoo('resnet8'), 'layer3', ['layer3']),
    'two stages': (zoo('resnet8'), 'layer2', ['layer2', 'layer3']),
    'wide resnet': (zoo('wrn_16_1'), 'block3', ['block3', 'bn1']),
    'vgg': (zoo('vgg8'), 'block3', ['block3', 'block4']),
    'mobilenet': (zoo('MobileNetV2'), 'blocks.5', ['blocks.5', 'blocks.6', 'conv2']),
    'shufflenet v1': (zoo('ShuffleV1'), 'layer3', ['layer3']),
    'shufflenet v2': (zoo('ShuffleV2'), 'layer3', ['layer3', 'conv2', 'bn2']),
    'resnet of mmpretrain': (
        classifier(16, type='mmpretrain.ResNet', depth=18, stem_channels=2, base_channels=2),
        'layer3',
        ['layer3', 'layer4'],
    ),
}


def divide(cfg, stage, size=32):
    torch.manual_seed(0)
    net, branch = MODELS.build(cfg), MODELS.build(cfg)
    images = torch.randn(2, 3, size, size)
    trunk, feature, logits = find_trunk(net.eval(), f'backbone.{stage}', images)
    make_branch(branch, trunk)
    check_branch(net, branch.eval(), feature, logits)
    return net, branch, images


@pytest.mark.parametrize('family', FAMILIES)
def test_a_branch_is_the_network_behind_the_trunk(family):
    """Against a full network with the branch's weights and the trunk's, in training."""
    cfg, stage, own = FAMILIES[family]
    net, branch, images = divide(cfg, stage)
    full = MODELS.build(cfg)
    expected_keys = [
        key
        for key in full.state_dict()
        if key.startswith(('head.', *(f'backbone.{name}.' for name in own)))
    ]
    assert list(branch.state_dict()) == expected_keys
    full.load_state_dict({**net.state_dict(), **branch.state_dict()})
    for each in (net, branch, full):
        each.train()
    inputs, _ = run_and_watch(net, [f'backbone.{stage}'], images)
    logits = branch(inputs[f'backbone.{stage}'], None, mode='tensor')
    expected = full(images, None, mode='tensor')
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)

    logits.square().sum().backward()
    expected.square().sum().backward()
    found = {**dict(net.named_parameters()), **dict(branch.named_parameters())}
    for name, parameter in full.named_parameters():
        scale = float(parameter.grad.abs().max())
        torch.testing.assert_close(
            found[name].grad, parameter.grad, rtol=1e-3, atol=1e-4 * scale + 1e-7
        )


def test_the_network_itself_does_not_change():
    net, branch, images = divide(*FAMILIES['resnet of mmpretrain'][:2])
    assert net.backbone.layer4[0].relu.inplace and not branch.backbone.layer4[0].relu.inplace
    assert not any(isinstance(module, SkippedStage) for module in net.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    with pytest.raises(RuntimeError):
        run_and_watch(net, ['backbone.layer3'], images[:, :1])
    assert not any(m._forward_pre_hooks for m in net.modules())
    assert not torch.equal(branch.head.fc.weight, net.head.fc.weight)


@pytest.mark.parametrize(
    'cfg, stage, message',
    [
        (FAMILIES['resnet'][0], 'layer5', r'is not a stage .*backbone.layer2, backbone.layer3\.'),
        (FAMILIES['resnet'][0], 'layer3.0', "'backbone.layer3.0' is not a stage"),
        (
            zoo('resnet8', pre_activation=True),
            'layer3',
            'is not called .*With pre_activation=True .* leave it out',
        ),
        (VIT, 'layers.1', 'VisionTransformer cannot be divided at branch_from: .* fails'),
        (
            classifier(4, type='OddNet', odd='looks at the images'),
            'layer3',
            'OddNet cannot be divided .* gives other logits than the architecture. Branches copy '
            'the last stages of backbones that hand one map from stage to stage',
        ),
        (classifier(4, type='OddNet', odd='keyword'), 'layer3', 'OddNet cannot be divided'),
        (
            dict(type='LinearClsHead', num_classes=2, in_channels=2),
            'layer3',
            'its backbone, but it has none',
        ),
    ],
)
def test_networks_that_cannot_be_divided(cfg, stage, message):
    with pytest.raises(ValueError, match=message):
        divide(cfg, stage)
