"""LabView: channels, types and errors."""

import pytest
import torch

from crd_plugin.models import LabView
from crd_plugin.ops import rgb_to_lab


def test_luminance_and_chrominance():
    images = torch.randint(0, 256, (2, 3, 4, 4)).float()
    lab = rgb_to_lab(images / 255)
    assert torch.equal(LabView('L')(images), lab[:, :1])
    assert torch.equal(LabView('ab')(images), lab[:, 1:])


def test_half_floats_are_converted_in_full_precision():
    images = torch.randint(0, 256, (2, 3, 4, 4)).half()  # exact up to 2048
    found = LabView('ab')(images)
    assert found.dtype == torch.half
    torch.testing.assert_close(found.float(), LabView('ab')(images.float()), atol=0.05, rtol=1e-3)


def test_other_channels_are_refused():
    with pytest.raises(ValueError, match="^channels is 'a', expected 'L' or 'ab'.$"):
        LabView('a')
    with pytest.raises(ValueError, match='^LabView is given images of 6 channels, expected 3,'):
        LabView('L')(torch.zeros(2, 6, 4, 4))
