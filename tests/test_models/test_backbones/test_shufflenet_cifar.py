"""CIFARShuffleNetV1 and V2; their numbers are compared in test_cifar_zoo.py."""

import pytest
import torch
from torch.nn.functional import channel_shuffle

from crd_plugin.models.backbones import CIFARShuffleNetV1, CIFARShuffleNetV2


@pytest.mark.parametrize('groups, width', [(2, 200), (3, 240)])
@torch.no_grad()
def test_groups_set_the_widths(groups, width):
    net = CIFARShuffleNetV1(groups, out_indices=(0, 2))
    shapes = [tuple(out.shape[1:]) for out in net(torch.randn(2, 3, 32, 32))]
    assert shapes == [(width, 16, 16), (4 * width, 4, 4)]


@torch.no_grad()
def test_pre_activation_of_v1_is_before_the_relu():
    net = CIFARShuffleNetV1(out_indices=(1, 2), pre_activation=True)
    net.eval()  # mmpretrain's backbones return None here
    image = torch.randn(1, 3, 32, 32)
    middle, before, last = net(image)
    torch.testing.assert_close(before.relu(), last)
    net.pre_activation = False
    torch.testing.assert_close(net(image), (middle.relu(), last))


@pytest.mark.parametrize(
    'factor, widths',
    [(0.5, (48, 192, 1024)), (1, (116, 464, 1024)), (1.5, (176, 704, 1024)), (2, (244, 976, 2048))],
)
@torch.no_grad()
def test_factor_sets_the_widths(factor, widths):
    net = CIFARShuffleNetV2(factor, out_indices=(0, 2))
    shapes = [tuple(out.shape[1:]) for out in net(torch.randn(2, 3, 32, 32))]
    assert shapes == [(widths[0], 16, 16), (widths[1], 4, 4), (widths[2], 4, 4)]


@torch.no_grad()
def test_pre_activation_of_v2_is_before_relu_and_shuffle():
    net = CIFARShuffleNetV2(out_indices=(1,), pre_activation=True)
    net.eval()  # mmpretrain's backbones return None here
    image = torch.randn(1, 3, 32, 32)
    before, last = net(image)
    assert before[:, :116].min() >= 0 > before[:, 116:].min()
    net.pre_activation = False
    torch.testing.assert_close(net(image), (channel_shuffle(before.relu(), 2), last))
