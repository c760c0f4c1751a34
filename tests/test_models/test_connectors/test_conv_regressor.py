"""ConvRegressor: which convolution, and its shapes."""

import pytest
import torch
from torch import nn

from crd_plugin.models.connectors import ConvRegressor
from crd_plugin.registry import MODELS

KINDS = [
    ((3, 8, 8), (5, 4, 4), nn.Conv2d, (3, 3), (2, 2)),
    ((3, 7, 8), (5, 7, 8), nn.Conv2d, (1, 1), (1, 1)),
    ((3, 4, 4), (5, 8, 8), nn.ConvTranspose2d, (4, 4), (2, 2)),
    ((3, 8, 8), (5, 5, 6), nn.Conv2d, (4, 3), (1, 1)),
    ((3, 2, 3), (5, 1, 2), nn.Conv2d, (3, 3), (2, 2)),
]


@pytest.mark.parametrize('in_shape, out_shape, kind, kernel, stride', KINDS)
def test_heights_choose_the_convolution(in_shape, out_shape, kind, kernel, stride):
    layer = MODELS.build(
        dict(type='crd_plugin.ConvRegressor', in_shape=in_shape, out_shape=out_shape)
    )
    assert type(layer.conv) is kind and layer.conv.bias is not None
    assert (layer.conv.kernel_size, layer.conv.stride) == (kernel, stride)
    y = layer(torch.randn(2, *in_shape))
    assert y.shape == (2, *out_shape) and y.min() == 0


def test_relu_is_optional():
    layer = ConvRegressor((3, 4, 4), (5, 4, 4), relu=False)
    x = torch.randn(2, 3, 4, 4)
    y = layer(x)
    assert y.min() < 0
    layer.relu = True
    assert torch.equal(layer(x), y.relu())


@pytest.mark.parametrize(
    'in_shape, out_shape, text',
    [
        ((3, 8), (5, 8, 8), 'in_shape is .3, 8., expected channels'),
        ((3, 8, 8), (5, 8.0, 8), 'out_shape is .*three positive integers'),
        ((0, 8, 8), (5, 8, 8), 'in_shape is .0, 8, 8.'),
        (8, (5, 8, 8), 'in_shape is 8'),
        ((3, 4, 4), (5, 7, 7), r'in_shape \(3, 4, 4\) cannot be brought to'),
        ((3, 8, 4), (5, 4, 4), 'cannot be brought'),
        ((3, 4, 8), (5, 8, 8), 'cannot be brought'),
        ((3, 8, 4), (5, 7, 5), 'choose another stage with data_idx'),
    ],
)
def test_shapes_that_do_not_work(in_shape, out_shape, text):
    with pytest.raises(ValueError, match=text):
        ConvRegressor(in_shape, out_shape)
