"""CIFARResNet, CIFARFourStageResNet and ImageNetResNet against mmpretrain and torchvision.

The numbers of the networks of the CIFAR tables are in test_cifar_zoo.py.
"""

import pytest
import torch
import torchvision
from mmpretrain.models.backbones import ResNet_CIFAR

from crd_plugin.models.backbones import CIFARFourStageResNet, CIFARResNet, ImageNetResNet


@torch.no_grad()
def test_blocks_and_stages_are_what_recorders_find():
    image = torch.randn(1, 3, 16, 16)
    net = CIFARResNet(14, out_indices=(0, 1, 2))
    net.eval()  # mmpretrain's backbones return None here
    assert net.block_names[1] == ('layer2.0.relu', 'layer2.1.relu')
    records = {}
    for stage in net.block_names:
        net.get_submodule(stage[-1]).register_forward_hook(
            lambda module, args, out, name=stage[-1]: records.update({name: out.clone()})
        )
    stages = net(image)
    assert [tuple(x.shape[1:]) for x in stages] == [(16, 16, 16), (32, 8, 8), (64, 4, 4)]
    torch.testing.assert_close(stages[0], net.layer1(net.relu(net.bn1(net.conv1(image)))))
    for pre_activation in (False, True):
        net.pre_activation = pre_activation
        net(image)
        torch.testing.assert_close(list(records.values()), list(stages))


@pytest.mark.parametrize('depth', [18, 50])
@torch.no_grad()
def test_both_options_agree_with_mmpretrain(depth):
    """Basic blocks and bottlenecks; residual branches that are not zero."""
    kwargs = dict(out_indices=(1, 3), drop_path_rate=0.1, stem_channels=8, base_channels=8)
    parent = ResNet_CIFAR(depth, **kwargs)
    net = CIFARFourStageResNet(depth, **kwargs)
    net.load_state_dict(parent.state_dict())
    parent.eval()
    net.eval()
    image = torch.randn(1, 3, 16, 16)
    expected = parent(image)
    torch.testing.assert_close(net(image), expected)
    net.pre_activation = True
    middle, before, last = net(image)
    assert middle.min() < 0 and before.min() < 0
    torch.testing.assert_close((middle.relu(), last), expected)
    torch.testing.assert_close(before.relu(), last)


def randomise(net):
    """Statistics and scales that differ, so that a lost one shows."""
    for name, value in net.state_dict().items():
        if 'running' in name or name.endswith('bn1.weight'):
            value.uniform_(0.5, 1.5)


@pytest.mark.parametrize('depth', [18, 50])
@torch.no_grad()
def test_torchvisions_weights_load(depth):
    theirs = getattr(torchvision.models, f'resnet{depth}')(weights=None)
    randomise(theirs)
    theirs.eval()
    ours = ImageNetResNet(depth, out_indices=(0, 1, 2, 3))
    ours.eval()
    loaded = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert loaded.missing_keys == []
    assert loaded.unexpected_keys == ['fc.weight', 'fc.bias']
    image = torch.randn(1, 3, 64, 64)
    x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
    for stage, found in enumerate(ours(image), 1):
        x = getattr(theirs, f'layer{stage}')(x)
        torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-5)


def test_depth_10():
    """ResNet-18's 11,176,512 without the second block of each stage."""
    net = ImageNetResNet(10)
    second = sum(2 * 9 * c * c + 4 * c for c in (64, 128, 256, 512))
    assert sum(p.numel() for p in net.parameters()) == 11176512 - second
    (last,) = net(torch.randn(2, 3, 64, 64))
    assert last.shape == (2, 512, 2, 2)
