"""CIFARWideResNet; its numbers are compared in test_cifar_zoo.py."""

import re

import pytest
import torch
from mmrazor.registry import MODELS as MMRAZOR_MODELS

from crd_plugin.models.backbones import CIFARWideResNet


@pytest.mark.parametrize('depth, factor', [(16, 2), (22, 4), (28, 4)])
@torch.no_grad()
def test_mmrazors_gives_the_same_last_map_and_no_more(depth, factor):
    """Depths 22 and 28, which the original's tables lack, are right too."""
    theirs = MMRAZOR_MODELS.build(
        dict(type='mmrazor.WideResNet', depth=depth, widen_factor=factor)
    ).eval()
    ours = CIFARWideResNet(depth, factor, out_indices=(0, 1, 2))
    ours.eval()  # mmpretrain's backbones return None here
    for value in theirs.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) / 10 + 0.01)
    ours.load_state_dict(
        {
            re.sub(r'layer(\d)\.', r'block\1.layer.', key).replace(
                'downsample', 'convShortcut'
            ): value
            for key, value in theirs.state_dict().items()
        }
    )
    stages = []
    for i in (1, 2, 3):
        theirs.get_submodule(f'layer{i}').register_forward_hook(
            lambda module, args, out: stages.append(out)
        )
    image = torch.randn(1, 3, 32, 32)
    (expected,) = theirs(image)
    torch.testing.assert_close(ours(image), (*stages, expected))


def test_out_indices_choose_the_stages_before_the_last_map():
    image = torch.randn(1, 3, 16, 16)
    net = CIFARWideResNet(16, 2, out_indices=(0, 2))
    net.eval()
    found = net(image)
    assert [tuple(out.shape) for out in found] == [(1, 32, 16, 16), (1, 128, 4, 4), (1, 128, 4, 4)]
    torch.testing.assert_close(found[2], net.bn1(found[1]).relu())
    net.out_indices = ()
    (last,) = net(image)
    torch.testing.assert_close(last, found[2])


def test_drop_rate_acts_in_training_alone():
    torch.manual_seed(0)
    image = torch.randn(2, 3, 16, 16)
    net = CIFARWideResNet(10, drop_rate=0.5)
    net.train()
    assert not torch.equal(net(image)[0], net(image)[0])
    net.eval()
    torch.testing.assert_close(net(image), net(image))
