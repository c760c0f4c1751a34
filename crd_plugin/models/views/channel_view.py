"""A view of some channels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from crd_plugin.registry import MODELS


@MODELS.register_module()
class ChannelView(nn.Module):
    """Pick channels of the images, such as those of one of several stacked modalities.

    Args:
        channels (Sequence[int]): Their numbers from 0, in the order that the network expects.

    Raises:
        ValueError: If they are not such numbers.
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
        """Pick from images ``(B, C, H, W)``.

        Args:
            images (Tensor): Images with all channels.

        Returns:
            Tensor: ``(B, len(channels), H, W)``.

        Raises:
            ValueError: If the images do not have the channels.
        """
        if max(self.channels) >= images.size(1):
            raise ValueError(
                f'ChannelView asks for channels {self.channels}, but the images have '
                f'{images.size(1)}, numbered from 0; correct channels, stack what is missing in '
                'the pipeline, or set model.input_shape to the size of the stacked images.'
            )
        return images[:, self.channels]
