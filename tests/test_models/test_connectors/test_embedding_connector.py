"""EmbeddingConnector against numbers from the original code.

``embed_*`` are of HobbitLong/RepDistiller (``crd/criterion.py``),
``cktf_heads`` of kaiqi123/CKTF.
"""

import pytest
import torch

from crd_plugin.models.connectors import DenseEmbeddingConnector, EmbeddingConnector
from crd_plugin.registry import MODELS
from tests import golden

HEADS = ('linear', 'mlp', 'pad')


def _loaded(weights, in_channels, embed_dim, head):
    connector = EmbeddingConnector(in_channels, embed_dim, head)
    connector.load_state_dict(weights)  # strict: the names are the original's
    return connector


@pytest.mark.parametrize('case', ['embed_vector', 'embed_map'])
def test_linear_head_equals_the_original(case):
    data = golden.load(case)
    weights = {f'linear.{name}': data[name] for name in ('weight', 'bias')}
    embed_dim, in_channels = data['weight'].shape
    connector = _loaded(weights, in_channels, embed_dim, 'linear')
    x = data['x'].requires_grad_()
    y = connector(x)
    golden.assert_value(y, data['y'])
    (y * data['cotangent']).sum().backward()
    golden.assert_grad(x.grad, data['grad_x'])
    golden.assert_grad(connector.linear.weight.grad, data['grad_weight'])
    golden.assert_grad(connector.linear.bias.grad, data['grad_bias'])


@pytest.mark.parametrize('head', HEADS)
def test_heads_equal_the_original(head):
    data = golden.load('cktf_heads')
    weights = {
        key[len(head) + 1 :]: value
        for key, value in data.items()
        if key.startswith(f'{head}.linear')
    }
    assert len(weights) == dict(linear=2, mlp=4, pad=0)[head]
    connector = _loaded(weights, 10, 24, head)
    x = data['x'].requires_grad_()
    y = connector(x)
    golden.assert_value(y, data[f'{head}.y'])
    (y * data['cotangent']).sum().backward()
    golden.assert_grad(x.grad, data[f'{head}.grad_x'])


def test_pad_crops_a_wide_input_on_both_sides():
    data = golden.load('cktf_heads')
    connector = EmbeddingConnector(10, int(data['pad_crop.dim_out']), 'pad')
    golden.assert_value(connector(data['x']), data['pad_crop.y'])


@pytest.mark.parametrize('head', HEADS)
def test_zero_feature_gives_zero_and_a_gradient_of_ordinary_size(head):
    connector = EmbeddingConnector(4, 6, head)
    for name, parameter in connector.named_parameters():
        if name.endswith('bias'):
            torch.nn.init.zeros_(parameter)
    x = torch.zeros(3, 4)
    x[1] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    x.requires_grad_()
    embedding = connector(x)
    assert torch.equal(embedding[[0, 2]], torch.zeros(2, 6))
    embedding.sum().backward()
    assert x.grad.abs().max() < 10
    assert all(parameter.grad.abs().max() < 10 for parameter in connector.parameters())


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('head', HEADS)
def test_half_precision_without_autocast(head, dtype):
    connector = EmbeddingConnector(6, 4, head)
    x = torch.randn(3, 6)
    if head == 'pad':
        x = x.sign() * 3e4  # The sum of squares passes 65504, the largest float16.
    x = x.to(dtype).requires_grad_()
    embedding = connector(x)
    assert embedding.dtype == torch.float32
    torch.testing.assert_close(embedding, connector(x.float()))
    embedding.sum().backward()
    assert x.grad.dtype == dtype and x.grad.isfinite().all()
    assert connector.double()(x.double()).dtype == torch.float64


@pytest.mark.parametrize('head', HEADS)
def test_width_is_taken_from_a_feature(head):
    connector = EmbeddingConnector(embed_dim=6, head=head)
    assert connector.needs_width and not list(connector.parameters())
    feature = torch.randn(3, 5, 2, 2)
    connector.infer_width((feature,))
    explicit = EmbeddingConnector(20, 6, head)
    assert not connector.needs_width and connector.in_channels == 20
    connector.load_state_dict(explicit.state_dict())
    assert torch.equal(connector(feature), explicit((feature.flatten(1),)))


@pytest.mark.parametrize('head', HEADS)
def test_every_location_is_embedded_alone(head):
    dense = DenseEmbeddingConnector(embed_dim=8, head=head).double()
    feature = torch.randn(2, 6, 3, 4, dtype=torch.float64, requires_grad=True)
    assert dense.needs_width
    dense.infer_width((feature,))
    dense.double()
    plain = EmbeddingConnector(6, 8, head).double()
    plain.load_state_dict(dense.state_dict())
    embedding = dense(feature)
    assert embedding.shape == (2, 8, 3, 4)
    expected = torch.stack(
        [torch.stack([plain(feature[..., y, x]) for x in range(4)], -1) for y in range(3)], -2
    )
    torch.testing.assert_close(embedding, expected)
    weight = torch.randn_like(embedding)
    (grad,) = torch.autograd.grad((embedding * weight).sum(), feature)
    (other,) = torch.autograd.grad((expected * weight).sum(), feature)
    torch.testing.assert_close(grad, other)
    tokens = feature.flatten(2).transpose(1, 2)
    torch.testing.assert_close(dense(tokens), embedding.flatten(2).transpose(1, 2))


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(head='conv'), "head is 'conv', expected one of .'linear', 'mlp', 'pad'"),
        (
            dict(in_channels=7, embed_dim=10, head='pad'),
            "7 values to embed_dim=10: the difference must be even; use embed_dim=11 or head='lin",
        ),
    ],
)
def test_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build(dict(type='crd_plugin.EmbeddingConnector', **kwargs))


@pytest.mark.parametrize(
    'connector, feature, message',
    [
        (
            EmbeddingConnector(4),
            torch.ones(2, 5),
            'has 5 values per sample, EmbeddingConnector has in_channels=4; set in_channels=5, or',
        ),
        (
            EmbeddingConnector(head='pad'),
            torch.ones(2, 5),
            'in_channels of EmbeddingConnector is not known: give it in the config, or use',
        ),
        (EmbeddingConnector(3), (torch.ones(2, 3),) * 2, 'a sequence of 2 tensors.*data_idx'),
        (EmbeddingConnector(3), torch.ones(3), r'has shape \(3,\), expected \(B'),
        (
            DenseEmbeddingConnector(6),
            torch.ones(2, 6),
            r'shape \(2, 6\), expected a map .*EmbeddingConnector',
        ),
        (
            DenseEmbeddingConnector(6),
            torch.ones(2, 5, 2, 2),
            'has 5 values per sample, EmbeddingConnector has in_channels=6',
        ),
    ],
)
def test_features_that_do_not_fit(connector, feature, message):
    with pytest.raises(ValueError, match=message):
        connector(feature)
