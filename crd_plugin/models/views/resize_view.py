"""A view of another resolution."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from crd_plugin.models._numbers import count
from crd_plugin.registry import MODELS


@MODELS.register_module()
class ResizeView(nn.Module):
    """Resize the images, bilinearly and with antialiasing as Pillow does.

    Args:
        size (int): Height and width in pixels.

    Raises:
        ValueError: If ``size`` is not a positive integer.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = count('size', size)

    def forward(self, images: Tensor) -> Tensor:
        """Resize images ``(B, C, H, W)``.

        Args:
            images (Tensor): Images of any size.

        Returns:
            Tensor: ``(B, C, size, size)``.
        """
        if images.shape[-2:] == (self.size, self.size):
            return images
        return F.interpolate(images, (self.size, self.size), mode='bilinear', antialias=True)
