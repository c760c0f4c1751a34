"""CIFARVGG; its numbers are compared in test_cifar_zoo.py."""

import pytest
import torch

from crd_plugin.models.backbones import CIFARVGG


@pytest.mark.parametrize('height, last', [(32, 4), (48, 6), (64, 4)])
@torch.no_grad()
def test_fourth_pool_at_a_height_of_64_alone(height, last):
    net = CIFARVGG(8, out_indices=(0, 1, 2, 3))
    shapes = [tuple(out.shape[1:]) for out in net(torch.randn(1, 3, height, height))]
    half, quarter, eighth = height // 2, height // 4, height // 8
    assert shapes == [
        (128, half, half),
        (256, quarter, quarter),
        (512, eighth, eighth),
        (512, last, last),
    ]


@torch.no_grad()
def test_recorders_reach_both_sides_of_the_last_relu():
    net = CIFARVGG(11, out_indices=(1, 3))
    net.eval()  # mmpretrain's backbones return None here
    image, records = torch.randn(1, 3, 32, 32), {}
    for name in ('block2', 'relu2', 'block4', 'relu4'):
        getattr(net, name).register_forward_hook(
            lambda module, args, out, name=name: records.update({name: out})
        )
    after = net(image)
    assert len(after) == 2
    torch.testing.assert_close(after, (records['relu2'], records['relu4']))
    net.pre_activation = True
    before = net(image)
    torch.testing.assert_close(before, (records['block2'], records['block4'], after[1]))
    torch.testing.assert_close(before[0].relu(), after[0])


@pytest.mark.parametrize('depth, convolutions', [(8, 5), (11, 8), (13, 10), (16, 13), (19, 16)])
def test_depth_counts_convolutions(depth, convolutions):
    with torch.device('meta'):
        net = CIFARVGG(depth, in_channels=1)
    layers = [layer for layer in net.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert len(layers) == convolutions
    assert layers[0].in_channels == 1
