"""CIFARFourStageResNet, and mmpretrain's ResNet_CIFAR under it."""

import pytest
import torch
from mmpretrain.models.backbones import ResNet_CIFAR

from crd_plugin.models.backbones import CIFARFourStageResNet
from tests.repdistiller import assert_feature, assert_logits, classifier, images


@torch.no_grad()
def test_mmpretrains_resnet50_is_the_originals():
    model = classifier('ResNet50')
    parent = ResNet_CIFAR(50, out_indices=(0, 1, 2, 3))
    parent.load_state_dict(model.backbone.state_dict())
    parent.eval()  # mmpretrain's backbones return None here
    features = parent(images())
    for i, feature in enumerate(features):
        assert_feature('ResNet50', 'feat', i + 1, feature)
    assert_logits('ResNet50', model.head(model.neck(features)))


@pytest.mark.parametrize('depth', [18, 50])
@torch.no_grad()
def test_both_options_agree_with_mmpretrain(depth):
    """Basic blocks and bottlenecks; residual branches that are not zero."""
    kwargs = dict(out_indices=(1, 3), drop_path_rate=0.1)
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
def test_resnet10_has_one_basic_block_a_stage():
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
    for map_before, feature in zip(before, features, strict=True):
        torch.testing.assert_close(map_before.relu(), feature)
    torch.testing.assert_close(last, features[-1])
