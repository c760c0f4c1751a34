"""BranchPoint: networks of every family divide, others say why not."""

import copy

import pytest
import torch
from mmengine.model import BaseModule
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from torch import nn

from crd_plugin.models.algorithms.branching import BranchPoint, StandIn, replay
from crd_plugin.models.backbones import build_cifar_classifier_cfg
from crd_plugin.registry import MODELS


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


@MMPRETRAIN_MODELS.register_module()
class OddNet(BaseModule):
    """Does what a branch cannot repeat."""

    def __init__(self, odd: str) -> None:
        super().__init__()
        self.odd = odd
        self.stem = nn.Conv2d(3, 4, 3)
        self.layer3 = nn.Conv2d(4, 4, 3)
        self.spare = nn.Conv2d(4, 4, 3)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        x = self.stem(x)
        if self.odd == 'in place':
            x += 1
        if self.odd == 'never the same' and self.calls % 2:
            x = self.layer3(x)
        if self.odd == 'keyword':
            return (self.layer3(input=x),)
        if self.odd == 'twice':
            return (self.layer3(self.layer3(self.spare(x))),)
        if self.odd == 'both sides':
            return (self.spare(self.layer3(self.spare(x))),)
        return (self.layer3(x),)


def classifier(width=4, neck=True, **backbone):
    cfg = dict(
        type='ImageClassifier',
        backbone=backbone,
        head=dict(type='LinearClsHead', num_classes=5, in_channels=width),
    )
    if neck:
        cfg['neck'] = dict(type='GlobalAveragePooling')
    return cfg


VIT = classifier(
    8,
    neck=False,
    type='VisionTransformer',
    arch=dict(embed_dims=8, num_layers=2, num_heads=2, feedforward_channels=16),
    img_size=32,
    patch_size=8,
)
# Where the trunk ends, and what the branches call again of it.
FAMILIES = {
    'like 1': (build_cifar_classifier_cfg('resnet8', 5), 'backbone.layer3'),
    'inside a stage': (build_cifar_classifier_cfg('resnet14', 5), 'backbone.layer3.1'),
    'pre-activation': (
        build_cifar_classifier_cfg('resnet14', 5, pre_activation=True),
        'backbone.layer3.0',
    ),
    'reached through': (build_cifar_classifier_cfg('wrn_16_1', 5), 'backbone.block3'),
    'norm of the branch in the trunk': (
        build_cifar_classifier_cfg('wrn_16_1', 5, pre_activation=True),
        'backbone.block3',
    ),
    'pooling on both sides': (build_cifar_classifier_cfg('vgg8', 5), 'backbone.block3'),
    'list of groups': (build_cifar_classifier_cfg('MobileNetV2', 5), 'backbone.blocks.5'),
    'functions between modules': (build_cifar_classifier_cfg('ShuffleV2', 5), 'backbone.layer3'),
    'tokens': (VIT, 'backbone.layers.1'),
    'four stages': (classifier(512, type='mmpretrain.ResNet', depth=18), 'backbone.layer3'),
    'head alone': (build_cifar_classifier_cfg('resnet8', 5), 'head'),
    'keyword': (classifier(type='OddNet', odd='keyword'), 'backbone.layer3'),
}


def divide(cfg, branch_from, seed=0):
    """A network, a branch of it, and where they part."""
    torch.manual_seed(seed)
    net, branch = MODELS.build(cfg), MODELS.build(cfg)
    images = torch.randn(2, 3, 32, 32)
    point = BranchPoint(net, branch_from, images)
    point.make_branch(net, branch)
    return net, branch, point, images


@pytest.mark.parametrize('family', FAMILIES)
def test_a_branch_is_the_network_behind_the_trunk(family):
    """Against a full network of the branch's weights and the trunk's."""
    cfg, branch_from = FAMILIES[family]
    net, branch, point, images = divide(cfg, branch_from)
    feature = point.check(net, branch, images)
    assert feature.size(0) == 2
    full = MODELS.build(cfg)
    weights = {**net.state_dict()}
    own = branch.state_dict()
    assert own and set(own) < set(weights)
    full.load_state_dict({**weights, **own})
    for each in (net, branch, full):
        each.train()
    with point.record(net) as tape:
        net(images, None, mode='tensor')
    with replay(branch, tape):
        logits = branch(images, None, mode='tensor')
    expected = full(images, None, mode='tensor')
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)

    # All of the branch's parameters are used, and those of the trunk.
    logits.square().sum().backward()
    expected.square().sum().backward()
    found = {**dict(net.named_parameters()), **dict(branch.named_parameters())}
    for name, parameter in full.named_parameters():
        if parameter.grad is None:
            continue
        scale = float(parameter.grad.abs().max())
        torch.testing.assert_close(
            found[name].grad, parameter.grad, rtol=1e-3, atol=1e-4 * scale + 1e-7
        )
    assert all(p.grad is not None for p in branch.parameters())


def test_what_belongs_to_a_branch():
    net, branch, point, _ = divide(*FAMILIES['like 1'])
    assert point.replayed == [
        f'backbone.{name}' for name in ('bn1', 'conv1', 'layer1', 'layer2', 'relu')
    ]
    assert {key.split('.')[1] if 'backbone' in key else 'head' for key in branch.state_dict()} == {
        'layer3',
        'head',
    }
    # The network itself is as before.
    assert not any(isinstance(module, StandIn) for module in net.modules())
    assert not net.backbone.layer2._forward_hooks
    assert not net.backbone.layer3._forward_pre_hooks


def test_the_check_leaves_weights_and_modes_alone():
    net, branch, point, images = divide(*FAMILIES['like 1'])
    before = copy.deepcopy(branch.state_dict())
    states = torch.get_rng_state()
    net.train()
    branch.eval()
    point.check(net, branch, images)
    assert net.training and not branch.training
    assert torch.equal(torch.get_rng_state(), states)
    for key, value in branch.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert not torch.equal(branch.head.fc.weight, net.head.fc.weight)


def test_parameters_of_a_divided_module_are_shared():
    """A class token is of the trunk, but of no module that could stand in."""
    net, branch, _, images = divide(*FAMILIES['tokens'])
    assert branch.backbone.cls_token is net.backbone.cls_token
    assert branch.backbone.pos_embed is net.backbone.pos_embed
    assert not any('cls_token' in key for key in branch.state_dict())
    # As EMAHook copies a model: the copies share theirs.
    pair = copy.deepcopy(nn.ModuleList([net, branch]))
    assert pair[1].backbone.cls_token is pair[0].backbone.cls_token
    assert pair[1].backbone.cls_token is not net.backbone.cls_token


def test_a_layer_that_is_called_on_both_sides():
    """Its first call is the trunk's, its second one the branch's own."""
    cfg = classifier(type='OddNet', odd='both sides')
    net, branch, point, images = divide(cfg, 'backbone.layer3')
    point.check(net, branch, images)
    own = [key for key in branch.state_dict() if 'spare' in key]
    assert own == [f'backbone.spare.called_again.{kind}' for kind in ('weight', 'bias')]
    with point.record(net) as tape:
        net(images, None, mode='tensor')
    with replay(branch, tape):
        logits = branch(images, None, mode='tensor')
    with torch.no_grad():
        x = net.backbone.spare(net.backbone.stem(images))
        x = branch.backbone.layer3(x)
        x = branch.backbone.spare.called_again(x)
    expected = branch.head((x.mean(dim=(2, 3)),))
    torch.testing.assert_close(logits, expected)


def test_the_first_call_divides():
    cfg = classifier(type='OddNet', odd='twice')
    net, branch, point, images = divide(cfg, 'backbone.layer3')
    feature = point.check(net, branch, images)
    assert point.replayed == ['backbone.spare', 'backbone.stem']
    expected = net.backbone.spare(net.backbone.stem(images))
    torch.testing.assert_close(feature, expected.detach())


def test_outputs_are_forgotten_after_the_pass():
    net, branch, point, images = divide(*FAMILIES['like 1'])
    with point.record(net) as tape:
        net(images, None, mode='tensor')
    with pytest.raises(ZeroDivisionError), replay(branch, tape):
        raise ZeroDivisionError
    stand_ins = [m for m in branch.modules() if isinstance(m, StandIn)]
    assert len(stand_ins) == 5 and not any(m.outputs for m in stand_ins)
    # The tape itself can be played once more, for the next branch.
    assert all(len(outputs) == 1 for outputs in tape.outputs.values())
    with pytest.raises(RuntimeError, match='calls backbone.conv1 more often'):
        branch(images, None, mode='tensor')


def test_hooks_are_removed_when_a_pass_fails():
    net, _, point, _ = divide(*FAMILIES['like 1'])
    with pytest.raises(RuntimeError), point.record(net):
        net(torch.zeros(2, 7, 32, 32), None, mode='tensor')
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


@pytest.mark.parametrize(
    'branch_from, message',
    [
        ('layer3', "'layer3' is no module of the architecture; the nearest are backbone.layer3"),
        ('', "branch_from='' is no module"),
        ('backbone.layer5', 'the nearest are backbone.layer'),
        (
            'data_preprocessor',
            'is not called by the architecture; give a module '
            'that its forward pass goes through: backbone.conv1, backbone.bn1',
        ),
    ],
)
def test_wrong_names(branch_from, message):
    with pytest.raises(ValueError, match=message):
        divide(FAMILIES['like 1'][0], branch_from)


def test_images_that_do_not_go_through():
    net = MODELS.build(FAMILIES['like 1'][0])
    with pytest.raises(
        ValueError,
        match=r'input_shape=\(1, 8, 8\) does not go through '
        r'the architecture: .*; set model.input_shape to channels',
    ):
        BranchPoint(net, 'head', torch.zeros(2, 1, 8, 8))
    assert net.training
    assert not any(m._forward_hooks for m in net.modules())


@pytest.mark.parametrize('odd', ['in place', 'never the same'])
def test_networks_that_cannot_be_divided(odd):
    net, branch, point, images = divide(classifier(type='OddNet', odd=odd), 'backbone.layer3')
    with pytest.raises(
        ValueError,
        match='does not divide the architecture '
        'cleanly: a branch with the same weights gives other',
    ):
        point.check(net, branch, images)


def test_a_network_without_logits():
    cfg = build_cifar_classifier_cfg('resnet8', 5)
    del cfg['head'], cfg['neck']
    net, branch, point, images = divide(cfg, 'backbone.layer3')
    with pytest.raises(
        ValueError,
        match=r'gives no logits \(B, classes\) in '
        "mode='tensor', but tuple",
    ):
        point.check(net, branch, images)
