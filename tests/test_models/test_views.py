"""Views: what they pick or make of images, and errors."""

import numpy as np
import pytest
import torch
from PIL import Image

from crd_plugin.models import ChannelView, LabView, ResizeView
from crd_plugin.ops import rgb_to_lab


def test_channels_in_the_order_asked_for():
    images = torch.randn(2, 4, 3, 3)
    assert torch.equal(ChannelView([2, 0])(images), torch.stack([images[:, 2], images[:, 0]], 1))


def test_luminance_and_chrominance():
    images = torch.randint(0, 256, (2, 3, 4, 4)).float()
    lab = rgb_to_lab(images / 255)
    assert torch.equal(LabView('L')(images), lab[:, :1])
    assert torch.equal(LabView('ab')(images), lab[:, 1:])
    half = LabView('ab')(images.half())  # exact up to 2048
    assert half.dtype == torch.half
    torch.testing.assert_close(half.float(), lab[:, 1:], atol=0.05, rtol=1e-3)


@pytest.mark.parametrize('size', [4, 8, 12])
def test_resized_images_are_those_of_pillow(size):
    image = np.random.RandomState(0).rand(8, 8).astype(np.float32)
    expected = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
    found = ResizeView(size)(torch.from_numpy(image)[None, None])
    np.testing.assert_allclose(found[0, 0], np.asarray(expected), atol=1e-5)


@pytest.mark.parametrize('channels', [3, [], [-1], [0.5], [True], 'RGB', None])
def test_wrong_channels(channels):
    with pytest.raises(ValueError, match='^channels is .*, expected numbers from 0 in a list'):
        ChannelView(channels)


def test_other_errors():
    for size in (0, 2.5, (4, 4)):
        with pytest.raises(ValueError, match='^size is .*, expected'):
            ResizeView(size)
    with pytest.raises(ValueError, match="^channels is 'a', expected 'L' or 'ab'.$"):
        LabView('a')
    with pytest.raises(ValueError, match='^LabView is given images of 6 channels, expected 3,'):
        LabView('L')(torch.zeros(2, 6, 4, 4))
    with pytest.raises(ValueError, match=r'asks for channels \[0, 3\], but the images have 3,'):
        ChannelView([0, 3])(torch.zeros(2, 3, 4, 4))
