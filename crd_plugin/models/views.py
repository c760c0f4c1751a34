"""Views: what a network is given of the images of a batch."""

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from crd_plugin.ops.lab import rgb_to_lab
from crd_plugin.registry import MODELS

from ._numbers import count

__all__ = ['ChannelView', 'LabView', 'ResizeView']


@MODELS.register_module()
class ChannelView(nn.Module):
    """Pick channels of the images, such as those of one of several stacked modalities.

    Args:
        channels (Sequence[int]): Their numbers from 0, in the order that the network expects.

    Raises:
        ValueError: If they are not such numbers, or images do not have them.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        given = channels if isinstance(channels, (list, tuple)) else ()
        if not given or any(type(channel) is not int or channel < 0 for channel in given):
            raise ValueError(
                f'channels is {channels!r}, expected numbers from 0 in a list, such as [0, 1, 2].'
            )
        self.channels = list(channels)

    def forward(self, images: Tensor) -> Tensor:
        """Pick from images ``(B, C, H, W)``."""
        if max(self.channels) >= images.size(1):
            raise ValueError(
                f'ChannelView asks for channels {self.channels}, but the images have '
                f'{images.size(1)}, numbered from 0; correct channels, stack what is missing in '
                'the pipeline, or set model.input_shape to the size of the stacked images.'
            )
        return images[:, self.channels]


@MODELS.register_module()
class LabView(nn.Module):
    """Convert RGB images to the Lab colour space and pick luminance or chrominance.

    It is given pixels from 0 to 255, however ``data_preprocessor`` normalises them. The network's
    own ``data_preprocessor`` follows; without one L is from 0 to 100, a and b about from -110 to
    110.

    Args:
        channels (str): ``'L'``, one channel, or ``'ab'``, two.

    Raises:
        ValueError: If ``channels`` is another word, or images do not have three channels.
    """

    takes_pixels = True

    def __init__(self, channels: Literal['L', 'ab']) -> None:
        super().__init__()
        if channels not in ('L', 'ab'):
            raise ValueError(f"channels is {channels!r}, expected 'L' or 'ab'.")
        self.channels = channels

    def forward(self, images: Tensor) -> Tensor:
        """Convert images ``(B, 3, H, W)``, RGB from 0 to 255, of any floating type."""
        if images.size(1) != 3:
            raise ValueError(
                f'LabView is given images of {images.size(1)} channels, expected 3, which are red, '
                'green and blue; of stacked modalities, pick them in a module of your own.'
            )
        # Half floats cannot tell dark colours apart.
        lab = rgb_to_lab(images.float() / 255)
        return (lab[:, :1] if self.channels == 'L' else lab[:, 1:]).to(images.dtype)


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
        """Resize images ``(B, C, H, W)`` to ``(B, C, size, size)``."""
        if images.shape[-2:] == (self.size, self.size):
            return images
        return F.interpolate(images, (self.size, self.size), mode='bilinear', antialias=True)
