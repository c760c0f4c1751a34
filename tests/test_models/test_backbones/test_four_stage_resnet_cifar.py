"""CIFARFourStageResNet against mmpretrain's ResNet_CIFAR; its numbers are in test_cifar_zoo.py."""

import pytest
import torch
from mmpretrain.models.backbones import ResNet_CIFAR

from crd_plugin.models.backbones import CIFARFourStageResNet

NARROW = dict(stem_channels=8, base_channels=8)


@pytest.mark.parametrize('depth', [18, 50])
@torch.no_grad()
def test_both_options_agree_with_mmpretrain(depth):
    """Basic blocks and bottlenecks; residual branches that are not zero."""
    kwargs = dict(out_indices=(1, 3), drop_path_rate=0.1, **NARROW)
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


@torch.no_grad()
def test_resnet10_has_one_basic_block_per_stage():
    net = CIFARFourStageResNet(10, out_indices=(0, 1, 2, 3))
    net.eval()
    assert [len(getattr(net, name)) for name in net.res_layers] == [1] * 4
    assert 10 not in ResNet_CIFAR.arch_settings
    image = torch.randn(1, 3, 16, 16)
    features = net(image)
    assert [tuple(feature.shape[1:]) for feature in features] == [
        (64, 16, 16),
        (128, 8, 8),
        (256, 4, 4),
        (512, 2, 2),
    ]
    net.pre_activation = True
    *before, last = net(image)
    torch.testing.assert_close([x.relu() for x in before], list(features))
    torch.testing.assert_close(last, features[-1])
