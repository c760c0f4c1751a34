"""CIFARShuffleNetV1; its numbers are compared in test_cifar_zoo.py."""

import pytest
import torch

from crd_plugin.models.backbones import CIFARShuffleNetV1


@pytest.mark.parametrize('groups, width', [(2, 200), (3, 240)])
@torch.no_grad()
def test_groups_set_the_widths(groups, width):
    net = CIFARShuffleNetV1(groups, out_indices=(0, 2))
    shapes = [tuple(out.shape[1:]) for out in net(torch.randn(2, 3, 32, 32))]
    assert shapes == [(width, 16, 16), (4 * width, 4, 4)]


@torch.no_grad()
def test_pre_activation_is_before_the_relu():
    net = CIFARShuffleNetV1(out_indices=(1, 2), pre_activation=True)
    net.eval()  # mmpretrain's backbones return None here
    image = torch.randn(1, 3, 32, 32)
    middle, before, last = net(image)
    torch.testing.assert_close(before.relu(), last)
    net.pre_activation = False
    torch.testing.assert_close(net(image), (middle.relu(), last))
