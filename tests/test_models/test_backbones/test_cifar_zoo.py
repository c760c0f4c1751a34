"""Every network of the CIFAR tables against numbers of the original code."""

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

# What a recorder calls the stem.
STEMS = {
    'CIFARResNet': 'relu',
    'CIFARFourStageResNet': 'relu',
    'CIFARWideResNet': 'conv1',
    'CIFARVGG': 'relu',
    'CIFARMobileNetV2': 'conv1',
    'CIFARShuffleNetV1': 'relu',
    'CIFARShuffleNetV2': 'relu',
}


def test_all_networks_are_there():
    assert set(CIFAR_ZOO) - set(NAMES) == {'wrn_22_4', 'wrn_28_4'}
    assert set(NAMES) <= set(CIFAR_ZOO) and len(NAMES) == 22


@pytest.mark.parametrize('name', NAMES)
def test_names_shapes_and_number_of_parameters(name):
    model = classifier(name, filled=False)
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


@pytest.mark.parametrize('name', NAMES)
@torch.no_grad()
def test_logits_and_features(name):
    stages = num_stages(name)
    model = classifier(name, out_indices=tuple(range(stages)))
    stem = []
    source = STEMS[type(model.backbone).__name__]
    getattr(model.backbone, source).register_forward_hook(
        lambda module, args, out: stem.append(out.clone())
    )
    features = model.extract_feat(images(), stage='backbone')
    pooled = model.neck(features)

    assert len(stem) == 1
    assert_feature(name, 'feat', 0, stem[0])
    for i in range(stages):
        assert_feature(name, 'feat', i + 1, features[i])
    assert_feature(name, 'feat', stages + 1, pooled[-1])
    assert_logits(name, model.head(pooled))


@pytest.mark.parametrize('name', NAMES)
@torch.no_grad()
def test_pre_activations(name):
    stages = num_stages(name)
    model = classifier(name, out_indices=tuple(range(stages)), pre_activation=True)
    features = model.extract_feat(images(), stage='backbone')

    assert len(features) == stages + 1
    for i in range(stages):
        assert_feature(name, 'preact', i + 1, features[i])
        assert features[i].min() < 0
    pooled = model.neck(features)
    assert_feature(name, 'preact', stages + 1, pooled[-1])
    assert_logits(name, model.head(pooled))


@pytest.mark.parametrize('name', NAMES)
@torch.no_grad()
def test_logits_in_float64(name):
    model = classifier(name).double()
    assert_logits(name, model(images().double(), mode='tensor'))


@pytest.mark.parametrize('name', FAMILIES)
def test_training_is_the_same_with_pre_activations(name):
    """Same output and gradients; batch norm counts each batch once."""
    results = []
    for kwargs in (dict(), dict(pre_activation=True)):
        if kwargs:
            kwargs['out_indices'] = tuple(range(num_stages(name)))
        model = classifier(name, **kwargs)
        model.train()
        logits = model(images(), mode='tensor')
        logits.square().mean().backward()
        results.append(
            (
                logits.detach(),
                dict(model.named_buffers()),
                {key: value.grad for key, value in model.named_parameters()},
            )
        )
    (logits, buffers, grads), (other, other_buffers, other_grads) = results
    torch.testing.assert_close(logits, other)
    torch.testing.assert_close(buffers, other_buffers)
    torch.testing.assert_close(grads, other_grads)
    assert all(value == 1 for key, value in buffers.items() if key.endswith('num_batches_tracked'))


@pytest.mark.parametrize('name', FAMILIES)
def test_gradient_reaches_a_pre_activation(name):
    """No later step in place spoils it; the first weights get a gradient."""
    model = classifier(name, out_indices=tuple(range(num_stages(name))), pre_activation=True)
    model.train()
    features = model.backbone(images())
    sum(feature.square().mean() for feature in features).backward()
    first = next(model.backbone.parameters())
    assert first.grad.abs().sum() > 0


@pytest.mark.parametrize('name', FAMILIES)
def test_initial_weights(name):
    """Kaiming normal, fan-out, save for the ShuffleNets; as the original."""
    model = classifier(name, filled=False)
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
            fan_in = layer.in_channels // layer.groups * size
            expected = (1 / (3 * fan_in)) ** 0.5
        else:
            expected = (2 / (layer.out_channels * size)) ** 0.5
        assert layer.weight.std().item() == pytest.approx(expected, rel=0.06)
        assert layer.bias is None or name.startswith('vgg')
        if layer.bias is not None:
            assert (layer.bias == 0).all()
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            assert (layer.weight == 1).all() and (layer.bias == 0).all()
    weight = model.head.fc.weight
    if name in ('vgg8', 'MobileNetV2'):
        expected = 0.01
    else:
        expected = (1 / (3 * weight.shape[1])) ** 0.5
    assert weight.std().item() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize('name', FAMILIES)
@torch.no_grad()
def test_other_image_sizes(name):
    """64x64, as Tiny-ImageNet has it."""
    model = classifier(name, filled=False)
    assert model(torch.randn(1, 3, 64, 64), mode='tensor').shape == (1, 100)


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


def test_use_in_a_config_file(tmp_path):
    """An empty `_base_` keeps MMEngine's text format in spite of imports."""
    from mmengine.config import Config

    (tmp_path / 'pair.py').write_text(
        '_base_ = []\n'
        'from crd_plugin.models.backbones import build_cifar_classifier_cfg\n'
        "student = build_cifar_classifier_cfg('resnet8', 10)\n"
    )
    (tmp_path / 'leaf.py').write_text("_base_ = ['pair.py']\nmodel = _base_.student\n")
    cfg = Config.fromfile(tmp_path / 'leaf.py')
    assert set(cfg) == {'student', 'model'}
    again = Config.fromstring(cfg.pretty_text, '.py')
    model = MODELS.build(again.model)
    assert sum(p.numel() for p in model.parameters()) == 83892 - 90 * 65


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="'resnet9' .* nearest are resnet"):
        find_cifar_name('resnet9')
    with pytest.raises(ValueError, match="'xyz' .* there are resnet8"):
        find_cifar_name('xyz')
    with pytest.raises(ValueError, match='num_classes must be a positive int'):
        build_cifar_classifier_cfg('resnet8', 0)
