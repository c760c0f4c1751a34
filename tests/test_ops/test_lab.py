"""Lab conversion: numbers of scikit-image and OpenCV, gradients and half floats."""

import cv2
import numpy as np
import pytest
import torch

from crd_plugin.ops import rgb_to_lab

# sRGB of 8 bits, and what skimage.color.rgb2lab of scikit-image 0.26.0 makes of it.
KNOWN = [
    ((255, 255, 255), (100.0, -0.0025, 0.0047)),
    ((0, 0, 0), (0.0, 0.0, 0.0)),
    ((172, 47, 117), (41.3593, 56.1869, -10.9516)),
    ((192, 67, 251), (54.2242, 75.5709, -68.9250)),
    ((195, 103, 9), (53.3041, 31.6061, 59.5477)),
    ((211, 21, 242), (52.7276, 88.0603, -66.1787)),
]


@pytest.mark.parametrize('rgb, lab', KNOWN)
def test_known_colours(rgb, lab):
    image = torch.tensor(rgb).view(1, 3, 1, 1) / 255
    torch.testing.assert_close(rgb_to_lab(image).flatten(), torch.tensor(lab), atol=2e-4, rtol=0)


def test_every_colour_is_opencvs():
    """Within 0.35, the error of the tables in which OpenCV interpolates floats."""
    values = np.linspace(0, 1, 18, dtype=np.float32)
    image = np.stack(np.meshgrid(values, values, values), axis=-1).reshape(-1, 18, 3)
    expected = cv2.cvtColor(image, cv2.COLOR_RGB2Lab)
    found = rgb_to_lab(torch.from_numpy(image).permute(2, 0, 1)[None])
    torch.testing.assert_close(
        found[0].permute(1, 2, 0), torch.from_numpy(expected), atol=0.35, rtol=0
    )


def test_dark_pixels_and_those_outside_the_range_have_a_gradient():
    image = torch.tensor([-0.01, 0.0, 0.001, 0.5, 1.0, 1.1]).repeat(1, 3, 1, 1).requires_grad_()
    found = rgb_to_lab(image)
    found.sum().backward()
    assert found.isfinite().all() and image.grad.isfinite().all()
    assert (found[0, 0, 0].diff() > 0).all()


def test_autocast_does_not_round():
    image = torch.rand(1, 3, 4, 4)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(rgb_to_lab(image), rgb_to_lab(image.clone()).float())
        inside = rgb_to_lab(image)
    torch.testing.assert_close(inside, rgb_to_lab(image), rtol=0, atol=1e-4)
