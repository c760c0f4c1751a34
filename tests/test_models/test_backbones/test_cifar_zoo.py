"""Every network of the CIFAR tables against numbers of the original code."""

import copy
import functools

import pytest
import torch
from mmpretrain.registry import MODELS

from crd_plugin.models.backbones import CIFAR_ZOO, build_cifar_classifier_cfg, find_cifar_name
from tests.repdistiller import (
    FAMILIES,
    NAMES,
    NETS,
    assert_feature,
    assert_logits,
    classifier,
    images,
    num_stages,
)

# What a recorder calls the stem, where it is not ``relu``.
STEMS = {'CIFARWideResNet': 'conv1', 'CIFARMobileNetV2': 'conv1'}


_family = functools.cache(classifier)


@pytest.fixture(scope='module', params=NAMES)
def net(request):
    """A network with the original's weights that returns all stages; tests share it."""
    name = request.param
    return name, _family(name) if name in FAMILIES else classifier(name)


@pytest.fixture(scope='module', params=FAMILIES)
def family(request):
    """The same, one network of each kind; tests that train copy it."""
    return request.param, _family(request.param)


def test_all_networks_are_there():
    assert set(CIFAR_ZOO) - set(NAMES) == {'wrn_22_4', 'wrn_28_4'}
    assert set(NAMES) <= set(CIFAR_ZOO) and len(NAMES) == 22


def test_names_shapes_and_number_of_parameters(net):
    name, model = net
    found = []
    for key, value in model.state_dict().items():
        part, key = key.split('.', 1)
        if name == 'ResNet50':
            key = key.replace('downsample', 'shortcut')
        found.append((part, key, list(value.shape)))
    expected = []
    for key, shape in NETS[name]['state_dict']:
        head = key.split('.')[0] in ('fc', 'linear', 'classifier')
        if head:
            key = f'fc.{key.split(".")[-1]}'
        expected.append(('head' if head else 'backbone', key, shape))
    assert found == expected
    count = sum(p.numel() for p in model.parameters())
    assert count == NETS[name]['num_params']


@torch.no_grad()
def test_logits_and_features(net):
    name, model = net
    stem = []
    source = STEMS.get(type(model.backbone).__name__, 'relu')
    hook = getattr(model.backbone, source).register_forward_hook(
        lambda module, args, out: stem.append(out.clone())
    )
    features = model.extract_feat(images(), stage='backbone')
    hook.remove()
    pooled = model.neck(features)
    assert len(stem) == 1
    assert_feature(name, 'feat', 0, stem[0])
    for i in range(num_stages(name)):
        assert_feature(name, 'feat', i + 1, features[i])
    assert_feature(name, 'feat', num_stages(name) + 1, pooled[-1])
    assert_logits(name, model.head(pooled))


@torch.no_grad()
def test_pre_activations(net, monkeypatch):
    name, model = net
    monkeypatch.setattr(model.backbone, 'pre_activation', True)
    features = model.extract_feat(images(), stage='backbone')
    assert len(features) == num_stages(name) + 1
    for i, feature in enumerate(features[:-1]):
        assert_feature(name, 'preact', i + 1, feature)
        assert feature.min() < 0
    pooled = model.neck(features)
    assert_feature(name, 'preact', num_stages(name) + 1, pooled[-1])
    assert_logits(name, model.head(pooled))


@torch.no_grad()
def test_logits_in_float64(net):
    name, model = net
    assert_logits(name, model.double()(images().double(), mode='tensor'))
    model.float()


@torch.no_grad()
def test_stages_are_chosen_by_out_indices(family, monkeypatch):
    name, model = family
    everything = model.backbone(images())
    monkeypatch.setattr(model.backbone, 'out_indices', (1, num_stages(name) - 1))
    chosen = model.backbone(images())
    torch.testing.assert_close(chosen, (everything[1], *everything[num_stages(name) - 1 :]))
    if getattr(model.backbone, 'tail_names', ()):
        monkeypatch.setattr(model.backbone, 'out_indices', ())
        torch.testing.assert_close(model.backbone(images()), everything[-1:])


def test_training_is_the_same_with_pre_activations(family):
    """Same output and gradients; batch norm counts each batch once; nothing works in place."""
    name, model = family
    results = []
    for pre_activation in (False, True):
        net = copy.deepcopy(model).double()
        net.backbone.pre_activation = pre_activation
        net.train()
        logits = net(images()[..., ::2, ::2].double(), mode='tensor')
        logits.square().mean().backward()
        grads = {key: value.grad for key, value in net.named_parameters()}
        results.append((logits.detach(), dict(net.named_buffers()), grads))
    torch.testing.assert_close(*results)
    sum(feature.square().mean() for feature in net.backbone(images().double())).backward()
    counts = [v for key, v in results[0][1].items() if key.endswith('num_batches_tracked')]
    assert all(value == 1 for value in counts)


@torch.no_grad()
def test_other_image_sizes(family):
    assert family[1](torch.randn(1, 3, 64, 64), mode='tensor').shape == (1, 100)


@pytest.mark.parametrize('name', FAMILIES)
def test_initial_weights(name):
    """Kaiming normal, fan-out, save for the ShuffleNets; as the original."""
    torch.manual_seed(0)
    model = MODELS.build(build_cifar_classifier_cfg(name, 100))
    model.init_weights()
    convolutions = [
        layer
        for layer in model.modules()
        if isinstance(layer, torch.nn.Conv2d) and layer.weight.numel() > 4000
    ]
    assert convolutions
    for layer in convolutions:
        size = layer.kernel_size[0] ** 2
        if name.startswith('Shuffle'):  # torch: uniform by fan-in
            expected = (layer.groups / (3 * layer.in_channels * size)) ** 0.5
        else:
            expected = (2 / (layer.out_channels * size)) ** 0.5
        assert layer.weight.std().item() == pytest.approx(expected, rel=0.06)
        assert layer.weight.mean().item() == pytest.approx(0, abs=expected / 15)
        assert (layer.bias is not None) == name.startswith('vgg')
        assert layer.bias is None or (layer.bias == 0).all()
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            assert (layer.weight == 1).all() and (layer.bias == 0).all()
    weight = model.head.fc.weight
    expected = 0.01 if name in ('vgg8', 'MobileNetV2') else (1 / (3 * weight.shape[1])) ** 0.5
    assert weight.std().item() == pytest.approx(expected, rel=0.05)


def test_config_is_the_callers_own():
    cfg = build_cifar_classifier_cfg('WRN-40-2', 10, out_indices=(0, 1, 2))
    assert cfg['backbone'] == dict(
        type='crd_plugin.CIFARWideResNet', depth=40, widen_factor=2, out_indices=(0, 1, 2)
    )
    assert cfg['head']['in_channels'] == 128
    assert cfg['head']['num_classes'] == 10
    cfg['backbone']['depth'] = 16
    cfg['head']['init_cfg'] = 1
    again = build_cifar_classifier_cfg('wrn_40_2', 10)
    assert again['backbone']['depth'] == 40
    assert again['head']['init_cfg'] is None


def test_bad_names_are_refused():
    with pytest.raises(ValueError, match="'resnet9' .* nearest are resnet"):
        find_cifar_name('resnet9')
    with pytest.raises(ValueError, match="'xyz' .* there are resnet8"):
        find_cifar_name('xyz')
    with pytest.raises(ValueError, match='num_classes is 0, expected at least 1'):
        build_cifar_classifier_cfg('resnet8', 0)
