"""Tests of networks by name, module, function or file."""

import re

import pytest
import torch
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS
from torch import nn

from crd_plugin.cli.networks import network_cfg
from crd_plugin.models import LogitsRecorder, PenultimateFeatureRecorder
from tests import small_runs


class Small(nn.Module):
    """A network of one's own."""

    def __init__(self, num_classes=10, width=6):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, width, 3), nn.Linear(width, num_classes)

    def forward(self, x):
        return self.fc(self.conv(x).relu().mean((2, 3)))


class Larger(Small):
    """What it registers last is not its classifier."""

    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.unused = nn.Linear(6, 3)


def without_classes():
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def build(cfg):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg)
    model.init_weights()
    return model.eval()


@pytest.mark.parametrize(
    'network, layer',
    [
        ('timm/resnet10t', 'backbone.fc'),
        ('cifar/ResNet8', 'head.fc'),
        ('mobilenet-v3-small-050_3rdparty_in1k', 'head.layers.1.fc'),
        ('tests.test_cli.test_networks.Larger', 'backbone.fc'),
        (Small, 'backbone.fc'),
        ('torchvision.models.shufflenet_v2_x0_5', 'backbone.fc'),
        (dict(small_runs.net(6), head=dict(small_runs.net(6)['head'], num_classes=7)), 'head.fc'),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_logits_and_feature_of_any_network(network, layer):
    cfg = network_cfg(network, num_classes=7)
    assert network_cfg(network, 7) == cfg  # what is given is not used up
    model = build(cfg)
    recorders = LogitsRecorder(), PenultimateFeatureRecorder()
    for recorder in recorders:
        recorder.initialize(model)
        recorder.__enter__()
    logits = model(torch.randn(2, 3, 32, 32))
    recorded, feature = (recorder.get_record_data() for recorder in recorders)
    assert logits.shape == (2, 7) and torch.equal(recorded, logits)
    torch.testing.assert_close(model.get_submodule(layer)(feature), logits)


class SelfInitialised(nn.Sequential):
    """As models of MMPretrain and timm, it has init_weights."""

    def init_weights(self):
        for weight in self.parameters():
            nn.init.zeros_(weight)


@pytest.mark.parametrize(
    'given',
    [
        without_classes(),
        SelfInitialised(nn.Flatten(), nn.Linear(3, 2)),
        MODELS.build(
            dict(
                type='mmpretrain.ResNet_CIFAR',
                depth=18,
                num_stages=1,
                out_indices=(0,),
                strides=(1,),
                dilations=(1,),
            )
        ),
    ],
    ids=lambda module: type(module).__name__,
)
def test_module_is_copied_with_its_weights(given):
    cfg = network_cfg(given)
    first, second = build(cfg), build(cfg)
    assert first.backbone is not given and first.backbone is not second.backbone
    for key, value in given.state_dict().items():
        assert torch.equal(first.backbone.state_dict()[key], value)
    cfg['backbone']['source'] = 'given.other'
    with pytest.raises(ValueError, match=r"'given.other' cannot be imported.* that process only"):
        build(cfg)


def test_pretrained():
    one = network_cfg('resnet18_8xb32_in1k', None, pretrained=True)
    assert one['head']['num_classes'] == 1000
    assert one['init_cfg']['checkpoint'].endswith('resnet18_8xb32_in1k_20210831-fbbb1da6.pth')
    assert one['data_preprocessor']['mean'] == [123.675, 116.28, 103.53]
    name = 'vit_small_patch14_dinov2.lvd142m'  # it has no classes
    timm = network_cfg(f'timm/{name}', None, pretrained=True)
    assert timm == dict(type='crd_plugin.TimmTeacher', model_name=name, pretrained=True)
    timm = network_cfg('timm/resnet10t', None, pretrained=True)
    assert timm['backbone']['pretrained'] is True and timm['head']['num_classes'] == 1000
    assert timm['data_preprocessor']['std'] == [58.395, 57.12, 57.375]


def test_mmengine_leaves_the_weights_of_a_transformer_alone():
    """Timm's have an `init_weights`, which would replace pretrained ones."""
    cfg = network_cfg('timm/test_vit', 7)
    model = MODELS.build(cfg)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert hasattr(model.backbone, 'init_weights')
    model.init_weights()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_own_loss_is_cross_entropy():
    """Others belong to mixed images, or to another number of classes."""
    cfg = network_cfg('deit-tiny_4xb256_in1k', 7)
    assert 'train_cfg' not in cfg
    assert cfg['head']['loss'] == dict(type='mmpretrain.CrossEntropyLoss', loss_weight=1.0)


def test_config_and_checkpoint_name_their_network(tmp_path):
    path = small_runs.write_config(tmp_path / 'crd.py', tmp_path)
    cfg = network_cfg(str(path), 7)
    assert cfg['backbone'] == dict(type='mmpretrain.TinyNet', width=6, dropout=0.2)
    assert cfg['head']['num_classes'] == 7
    plain = small_runs.config(tmp_path, model=dict(small_runs.net(6), _delete_=True))
    weights = build(plain.model).state_dict()
    file = tmp_path / 'net.pth'
    torch.save(dict(meta=dict(cfg=plain.pretty_text), state_dict=weights), file)
    model = build(network_cfg(file))
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert model.data_preprocessor.mean.flatten().tolist() == [78.0] * 3
    torch.save(weights, file)
    with pytest.raises(ValueError, match='net.pth does not say which network it holds; name'):
        network_cfg(file)


@pytest.mark.parametrize(
    'network, pretrained, message',
    [
        ('resnet18', False, "no network 'resnet18'; the nearest are .*resnet18_8xb32_in1k.*timm/"),
        ('timm/resnet_18', False, 'the nearest are timm/resnet18,'),
        ('cifar/resnet9', False, "'resnet9' is not in the zoo; the nearest are resnet8"),
        ('cifar/resnet8', True, 'nobody publishes weights of cifar/resnet8; give the file'),
        ('timm/test_vit4', True, 'timm has no weights of test_vit4'),
        ('none.py', False, 'config none.py does not exist'),
        ('imagenet', False, 'A name is one of mmpretrain.list_models'),
    ],
)
def test_network_that_does_not_exist(network, pretrained, message):
    with pytest.raises(ValueError, match=message):
        network_cfg(network, 7, pretrained)


def several():
    net = nn.Identity()
    net.forward = lambda x: [[x]]
    return net


@pytest.mark.parametrize(
    'source, message',
    [
        (
            'tests.test_cli.test_networks.without_classes',
            'returns (2, 5), expected logits of shape',
        ),
        ('tests.test_cli.test_networks.several', 'returns list, expected logits'),
        ('os.getcwd', 'os.getcwd returns str, expected an nn.Module'),
        ('no.such.function', "'no.such.function' cannot be imported; give the import path of a"),
        (lambda: None, "<lambda>' cannot be imported; give"),
    ],
)
def test_network_that_cannot_classify(source, message):
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        build(network_cfg(source, 7))(torch.zeros(2, 3, 8, 8))


def test_network_without_a_number_of_classes():
    cfg = network_cfg(without_classes)
    assert build(cfg)(torch.zeros(2, 3, 8, 8)).shape == (2, 5)
