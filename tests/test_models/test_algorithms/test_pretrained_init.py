"""init_cfg of type Pretrained takes weights that fit, and refuses the rest."""

import pytest
import torch
from mmengine.registry import WEIGHT_INITIALIZERS, init_default_scope
from mmpretrain.registry import MODELS

from crd_plugin.models.algorithms.pretrained_init import use_pretrained_init
from tests import small_runs


@pytest.fixture(autouse=True)
def strict():
    """As in a tool."""
    init_default_scope('mmpretrain')
    upstream = WEIGHT_INITIALIZERS.get('Pretrained')
    use_pretrained_init()
    yield
    WEIGHT_INITIALIZERS.register_module(name='Pretrained', module=upstream, force=True)


def resnet(depth, **settings):
    """Config of a network whose depths share their first blocks."""
    backbone = dict(type='crd_plugin.CIFARResNet', depth=depth, **settings)
    head = dict(type='LinearClsHead', num_classes=10, in_channels=64)
    return dict(
        type='ImageClassifier', backbone=backbone, neck=dict(type='GlobalAveragePooling'), head=head
    )


def initialised(cfg, part, path, prefix=None):
    """Build a network whose part starts from a file."""
    target = cfg[part] if part else cfg
    target['init_cfg'] = dict(type='Pretrained', checkpoint=str(path), prefix=prefix)
    net = MODELS.build(cfg)
    net.init_weights()
    return net


@pytest.fixture
def file(tmp_path):
    """Weights of a ResNet-14."""
    torch.manual_seed(11)
    weights = MODELS.build(resnet(14)).state_dict()
    torch.save(dict(state_dict=weights), tmp_path / 'net.pth')
    return tmp_path / 'net.pth'


@pytest.mark.parametrize('part, prefix', [('', None), ('backbone', 'backbone'), ('head', 'head.')])
def test_what_fits_is_loaded(file, part, prefix):
    net = initialised(resnet(14), part, file, prefix)
    weights = small_runs.load(file)['state_dict']
    loaded = {name: v for name, v in net.state_dict().items() if name.startswith(part)}
    assert loaded and all(torch.equal(value, weights[name]) for name, value in loaded.items())


def test_parts_that_are_not_there(file, caplog):
    weights = small_runs.load(file)['state_dict']
    weights = {k.removeprefix('backbone.'): v for k, v in weights.items()}
    bn = weights.pop('bn1.weight')
    torch.save(weights, file)
    net = initialised(resnet(14), 'backbone', file)  # as torchvision's, with a classifier
    assert torch.equal(net.backbone.conv1.weight, weights['conv1.weight'])
    assert net.backbone.bn1.weight.eq(1).all() and bn.numel() == 16


@pytest.mark.parametrize(
    'cfg, part, prefix, message',
    [
        (resnet(8), 'backbone', 'backbone', 'unexpected layer1.1.conv1.weight.*Give the config'),
        (resnet(20), 'backbone', 'backbone', 'CIFARResNet: missing layer1.2.conv1.weight'),
        (resnet(14, base_channels=8), 'backbone', 'backbone', r'shapes .*\(16, .*\) instead of'),
        (resnet(14), 'backbone', None, 'missing conv1.weight.*unexpected none.*prefix='),
        (resnet(14), 'backbone', 'back', "nothing under prefix='back'; .* with backbone, head."),
    ],
)
def test_the_rest_is_refused(file, cfg, part, prefix, message):
    with pytest.raises(ValueError, match=f'^init_cfg.checkpoint={file} .*{message}'):
        initialised(cfg, part, file, prefix)
