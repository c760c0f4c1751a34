"""CIFARResNet; its numbers are compared in test_cifar_zoo.py."""

import torch

from crd_plugin.models.backbones import CIFARResNet


@torch.no_grad()
def test_a_stage_is_what_recorders_find():
    image = torch.randn(1, 3, 16, 16)
    net = CIFARResNet(14, out_indices=(0, 2))
    net.eval()  # mmpretrain's backbones return None here
    first, last = net(image)
    assert (tuple(first.shape), tuple(last.shape)) == ((1, 16, 16, 16), (1, 64, 4, 4))
    torch.testing.assert_close(first, net.layer1(net.relu(net.bn1(net.conv1(image)))))


@torch.no_grad()
def test_blocks_are_found_with_and_without_pre_activation():
    image = torch.randn(1, 3, 16, 16)
    net = CIFARResNet(14, out_indices=(0, 1, 2))
    net.eval()
    assert net.block_names[1] == ('layer2.0.relu', 'layer2.1.relu')
    records = {}
    for stage in net.block_names:
        net.get_submodule(stage[-1]).register_forward_hook(
            lambda module, args, out, name=stage[-1]: records.update({name: out.clone()})
        )
    stages = net(image)
    torch.testing.assert_close(list(records.values()), list(stages))
    net.pre_activation = True
    net(image)
    torch.testing.assert_close(list(records.values()), list(stages))
