"""A view of luminance or chrominance."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from crd_plugin.ops.lab import rgb_to_lab
from crd_plugin.registry import MODELS

_CHANNELS = dict(L=slice(0, 1), ab=slice(1, 3))


@MODELS.register_module()
class LabView(nn.Module):
    """Convert RGB images to the Lab colour space and pick luminance or chrominance.

    It is given pixels from 0 to 255, in whatever way ``data_preprocessor`` normalises them. Behind
    it counts the ``data_preprocessor`` of the network; without one L is from 0 to 100, a and b
    about from -110 to 110.

    Args:
        channels (str): ``'L'``, one channel, or ``'ab'``, two.

    Raises:
        ValueError: If ``channels`` is another word.
    """

    takes_pixels = True

    def __init__(self, channels: Literal['L', 'ab']) -> None:
        super().__init__()
        if channels not in _CHANNELS:
            raise ValueError(f"channels is {channels!r}, expected 'L' or 'ab'.")
        self.channels = channels

    def forward(self, images: Tensor) -> Tensor:
        """Convert images ``(B, 3, H, W)``, RGB from 0 to 255.

        Args:
            images (Tensor): Images, floating point.

        Returns:
            Tensor: ``(B, 1, H, W)`` or ``(B, 2, H, W)`` of the same type.

        Raises:
            ValueError: If the images do not have three channels.
        """
        if images.size(1) != 3:
            raise ValueError(
                f'LabView is given images of {images.size(1)} channels, expected 3, which are red, '
                'green and blue; of stacked modalities, pick them in a module of your own.'
            )
        # Half floats cannot tell dark colours apart.
        lab = rgb_to_lab(images.float() / 255)
        return lab[:, _CHANNELS[self.channels]].to(images.dtype)
