"""CIFARResNet against numbers from the original code.

The arrays in ``tests/data/backbones`` were made by running
HobbitLong/RepDistiller (``models/resnet.py``) on a CPU with weights and input
that the rule in ``_fill`` gives.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS

import crd_plugin  # noqa: F401
from crd_plugin.models.backbones import CIFARResNet

DATA = Path(__file__).parents[2] / 'data' / 'backbones'
FACTS = json.loads((DATA / 'resnet_cifar.json').read_text())
WIDE = dict(stem_channels=32, base_channels=64)
NETS = {
    'resnet8': dict(depth=8),
    'resnet14': dict(depth=14),
    'resnet20': dict(depth=20),
    'resnet32': dict(depth=32),
    'resnet44': dict(depth=44),
    'resnet56': dict(depth=56),
    'resnet110': dict(depth=110),
    'resnet8x4': dict(depth=8, **WIDE),
    'resnet32x4': dict(depth=32, **WIDE),
}
WITH_ARRAYS = sorted(FACTS['state_dict'])


def _classifier(name, **kwargs):
    width = 256 if name.endswith('x4') else 64
    return MMPRETRAIN_MODELS.build(
        dict(
            type='mmpretrain.ImageClassifier',
            backbone=dict(type='crd_plugin.CIFARResNet', **NETS[name], **kwargs),
            neck=dict(type='mmpretrain.GlobalAveragePooling'),
            head=dict(
                type='mmpretrain.LinearClsHead', num_classes=FACTS['num_classes'], in_channels=width
            ),
        )
    ).eval()


def _fill(name):
    shapes = dict(FACTS['state_dict'][name])
    state = {}
    for key, shape in shapes.items():
        generator = np.random.RandomState(zlib.crc32(key.encode()))
        value = generator.standard_normal(shape) * 0.05
        value = torch.from_numpy(np.asarray(value, dtype=np.float32))
        mean_key = key[: -len('weight')] + 'running_mean'
        if key.endswith('running_var'):
            value = value.abs() + 1
        elif key.endswith('num_batches_tracked'):
            value = torch.zeros((), dtype=torch.int64)
        elif key.endswith('weight') and mean_key in shapes:
            value = value + 1
        prefix = 'head.' if key.startswith('fc.') else 'backbone.'
        state[prefix + key] = value
    return state


def _image():
    generator = np.random.RandomState(0)
    return torch.from_numpy(generator.standard_normal((2, 3, 32, 32)).astype(np.float32))


def _assert_summary(value, golden, prefix):
    assert list(value.shape) == golden[f'{prefix}_shape'].tolist()
    double = value.double().numpy()
    atol = 1e-5 * np.abs(double).max()
    for name, found in (
        ('mean', double.mean()),
        ('std', double.std()),
        ('first8', double.ravel()[:8]),
    ):
        np.testing.assert_allclose(found, golden[f'{prefix}_{name}'], rtol=1e-4, atol=atol)


@pytest.mark.parametrize('name', sorted(NETS))
def test_parameter_count(name):
    count = sum(p.numel() for p in _classifier(name).parameters())
    assert count == FACTS['num_params'][name]


@pytest.mark.parametrize('name', WITH_ARRAYS)
def test_names_and_order_of_the_state_are_the_originals(name):
    found = [
        (key.split('.', 1)[1], list(value.shape))
        for key, value in _classifier(name).state_dict().items()
    ]
    assert found == [tuple(entry) for entry in FACTS['state_dict'][name]]


@pytest.mark.parametrize('name', WITH_ARRAYS)
@torch.no_grad()
def test_logits_and_features_match(name):
    golden = np.load(DATA / f'{name}.npz')
    model = _classifier(name, out_indices=(0, 1, 2))
    model.load_state_dict(_fill(name))
    stem = []
    model.backbone.relu.register_forward_hook(lambda module, args, out: stem.append(out))
    features = model.extract_feat(_image(), stage='backbone')
    pooled = model.neck(features)
    logits = model.head(pooled)

    assert golden['featn'] == 5 and len(stem) == 1
    _assert_summary(stem[0], golden, 'feat0')
    for i, feature in enumerate(features):
        _assert_summary(feature, golden, f'feat{i + 1}')
    _assert_summary(pooled[-1], golden, 'feat4')
    np.testing.assert_allclose(
        logits.numpy(), golden['logits'], rtol=1e-4, atol=1e-5 * np.abs(golden['logits']).max()
    )


@pytest.mark.parametrize('name', WITH_ARRAYS)
@torch.no_grad()
def test_pre_activations_match_and_leave_the_logits_alone(name):
    golden = np.load(DATA / f'{name}.npz')
    model = _classifier(name, out_indices=(0, 1, 2), pre_activation=True)
    model.load_state_dict(_fill(name))
    features = model.extract_feat(_image(), stage='backbone')

    assert len(features) == 4
    for i, feature in enumerate(features[:3]):
        _assert_summary(feature, golden, f'preact{i + 1}')
        assert feature.min() < 0
    torch.testing.assert_close(features[3], features[2].relu())
    np.testing.assert_allclose(
        model.head(model.neck(features)).numpy(),
        golden['logits'],
        rtol=1e-4,
        atol=1e-5 * np.abs(golden['logits']).max(),
    )


@pytest.mark.parametrize('name', WITH_ARRAYS)
@torch.no_grad()
def test_logits_match_in_float64(name):
    golden = np.load(DATA / f'{name}.npz')
    model = _classifier(name)
    model.load_state_dict(_fill(name))
    logits = model.double()(_image().double(), mode='tensor')
    np.testing.assert_allclose(logits.numpy(), golden['logits_f64'], rtol=1e-9)


def test_out_indices_choose_the_stages():
    image = torch.randn(1, 3, 16, 16)
    net = CIFARResNet(14, out_indices=(0, 2))
    net.eval()  # mmpretrain's backbones return None here
    shapes = [tuple(out.shape) for out in net(image)]
    assert shapes == [(1, 16, 16, 16), (1, 64, 4, 4)]
    torch.testing.assert_close(net(image)[0], net.layer1(net.relu(net.bn1(net.conv1(image)))))


def test_initial_weights_follow_the_original():
    net = CIFARResNet(8, stem_channels=64, base_channels=64)
    net.init_weights()
    weight = net.layer1[0].conv1.weight
    expected = (2 / (64 * 9)) ** 0.5  # Kaiming normal, fan-out, ReLU
    assert weight.std().item() == pytest.approx(expected, rel=0.03)
    assert weight.mean().item() == pytest.approx(0, abs=expected / 50)
    assert (net.bn1.weight == 1).all() and (net.bn1.bias == 0).all()


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(depth=10), r'depth must be 6 n \+ 2 .* but got 10'),
        (dict(depth=2), 'but got 2'),
        (dict(depth=8, out_indices=(3,)), r'out_indices .* but got \(3,\)'),
        (dict(depth=8, out_indices=()), 'out_indices'),
        (dict(depth=8, out_indices=2), 'out_indices must be .* but got 2'),
        (dict(depth=8, out_indices=(1, 0)), 'ascending'),
        (dict(depth=8, base_channels=0), 'base_channels must be a positive int'),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        CIFARResNet(**kwargs)
