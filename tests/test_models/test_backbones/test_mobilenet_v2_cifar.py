"""CIFARMobileNetV2; its numbers are compared in test_cifar_zoo.py."""

import torch

from crd_plugin.models.backbones import CIFARMobileNetV2


@torch.no_grad()
def test_out_indices_choose_the_stages_before_the_last_map():
    net = CIFARMobileNetV2(out_indices=(1, 3))
    net.eval()  # mmpretrain's backbones return None here
    image = torch.randn(1, 3, 32, 32)
    found = net(image)
    assert [tuple(out.shape[1:]) for out in found] == [(16, 8, 8), (160, 2, 2), (1280, 2, 2)]
    torch.testing.assert_close(net.conv2(found[1]), found[2])
    net.out_indices = ()
    (last,) = net(image)
    torch.testing.assert_close(last, found[2])


@torch.no_grad()
def test_width_and_expansion():
    net = CIFARMobileNetV2(widen_factor=1.5, expansion=2, in_channels=1, out_indices=(0, 3))
    shapes = [out.shape[1] for out in net(torch.randn(2, 1, 32, 32))]
    assert shapes == [36, 480, 1920]
    inside = net.blocks[1][0].conv[0]
    assert (inside.in_channels, inside.out_channels) == (24, 48)
    # The first group expands nothing, the last map gets narrower never.
    assert net.blocks[0][0].conv[0].out_channels == 48
    narrow = CIFARMobileNetV2(widen_factor=0.25)
    assert narrow.conv2[0].out_channels == 1280
