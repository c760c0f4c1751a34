"""The Lab colour space."""

import torch
from torch import Tensor

# sRGB to XYZ over the white of D65 as seen from 2 degrees, numbers as in scikit-image.
_TO_XYZ = (
    (0.412453 / 0.95047, 0.357580 / 0.95047, 0.180423 / 0.95047),
    (0.212671, 0.715160, 0.072169),
    (0.019334 / 1.08883, 0.119193 / 1.08883, 0.950227 / 1.08883),
)


def rgb_to_lab(images: Tensor) -> Tensor:
    """Convert sRGB ``(B, 3, H, W)``, 0 to 1, to CIE Lab as OpenCV does: L from 0 to 100, a, b."""
    linear = torch.where(
        images > 0.04045, ((images + 0.055) / 1.055).clamp(min=0) ** 2.4, images / 12.92
    )
    r, g, b = linear.unbind(1)
    # Not a matrix product, which autocast would round to half floats.
    xyz = torch.stack([m[0] * r + m[1] * g + m[2] * b for m in _TO_XYZ], dim=1)
    f = torch.where(xyz > 0.008856, xyz.clamp(min=0.008856) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = f.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)
