"""ImageNetResNet: torchvision's weights load and give its maps."""

import pytest
import torch
import torchvision

from crd_plugin.models.backbones import ImageNetResNet
from crd_plugin.registry import MODELS


def randomise(net):
    """Statistics and scales that differ, so that a lost one shows."""
    for name, value in net.state_dict().items():
        if 'running' in name or name.endswith('bn1.weight'):
            value.uniform_(0.5, 1.5)


@pytest.mark.parametrize('depth', [18, 50])
@torch.no_grad()
def test_torchvisions_weights_load(depth):
    """Basic blocks and bottlenecks."""
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
    net = MODELS.build(dict(type='crd_plugin.ImageNetResNet', depth=10, num_stages=4))
    second = sum(2 * 9 * c * c + 4 * c for c in (64, 128, 256, 512))
    assert sum(p.numel() for p in net.parameters()) == 11176512 - second
    (last,) = net(torch.randn(2, 3, 64, 64))
    assert last.shape == (2, 512, 2, 2)


def test_depth_that_does_not_exist():
    with pytest.raises(KeyError, match='invalid depth 11'):
        ImageNetResNet(11)
