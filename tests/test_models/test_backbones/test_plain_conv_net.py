"""PlainConvNet: layers, sizes and arguments."""

import pytest
import torch

from crd_plugin.registry import MODELS


def build(**kwargs):
    return MODELS.build(dict(type='crd_plugin.PlainConvNet', **kwargs))


def test_five_layers_of_one_channel():
    net = build(out_indices=(1, 2, 3, 4))
    maps = net(torch.randn(2, 1, 48, 64))
    sizes = [(128, 12, 16), (256, 6, 8), (512, 3, 4), (512, 3, 4)]
    assert [tuple(x.shape[1:]) for x in maps] == sizes
    assert all((x >= 0).all() for x in maps)
    # 3x3 weights without bias, and scale and shift of batch norm.
    widths = [1, 64, 128, 256, 512, 512]
    expected = sum(9 * a * b + 2 * b for a, b in zip(widths, widths[1:]))
    assert sum(p.numel() for p in net.parameters()) == expected


def test_layers_follow_one_another():
    net = build(in_channels=2, widths=[4, 6], strides=[1, 2], out_indices=[0, 1])
    net.eval()
    x = torch.randn(1, 2, 5, 5)
    first, second = net(x)
    for layer, given, found in zip(net.layers, (x, first), (first, second)):
        convolution, norm, _ = layer
        torch.testing.assert_close(found, norm(convolution(given)).relu())


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(widths=[4, 4], strides=[1]), 'widths has 2 layers and strides 1'),
        (dict(widths=[4, 0], strides=[1, 1]), r'widths\[1\] is 0, expected at least 1'),
        (dict(strides=[1, 1, 0, 1, 1]), r'strides\[2\] is 0'),
        (dict(in_channels=0), 'in_channels is 0'),
        (dict(out_indices=(5,)), r'ascending stages out of \(0, 1, 2, 3, 4\)'),
        (dict(out_indices=()), 'ascending stages'),
    ],
)
def test_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)
