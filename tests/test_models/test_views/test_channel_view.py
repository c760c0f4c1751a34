"""ChannelView: what it picks, and errors."""

import pytest
import torch

from crd_plugin.models import ChannelView


def test_channels_in_the_order_asked_for():
    images = torch.randn(2, 4, 3, 3)
    assert torch.equal(ChannelView([2, 0])(images), torch.stack([images[:, 2], images[:, 0]], 1))
    assert torch.equal(ChannelView([3])(images), images[:, 3:])


@pytest.mark.parametrize('channels', [3, [], [-1], [0.5], [True], 'RGB', None])
def test_wrong_channels(channels):
    with pytest.raises(ValueError, match='^channels is .*, expected numbers from 0 in a list'):
        ChannelView(channels)


def test_channels_that_are_not_there():
    with pytest.raises(ValueError, match=r'asks for channels \[0, 3\], but the images have 3,'):
        ChannelView([0, 3])(torch.zeros(2, 3, 4, 4))
