"""A plain stack of convolutions, for images of any modality."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from crd_plugin.models._numbers import count
from crd_plugin.registry import MODELS

from ._common import CIFARBackbone, conv_norm


@MODELS.register_module()
class PlainConvNet(CIFARBackbone):
    """Convolutions of 3x3 with batch norm and ReLU, one after the other, each a stage.

    A student of five layers on depth stands in the CRD paper, arXiv:1910.10699, table 5; widths and
    strides were not published and are chosen here.

    Args:
        in_channels (int): Image channels. Defaults to 1.
        widths (Sequence[int]): Channels of each layer. Defaults to (64, 128, 256, 512, 512).
        strides (Sequence[int]): Stride of each layer. Defaults to (2, 2, 2, 2, 1).
        **kwargs (Any): Other arguments of :class:`CIFARBackbone`.

    Shape:
        Input: ``(B, in_channels, H, W)``. Output: a tuple of maps ``(B, widths[i], H_i, W_i)``.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        in_channels: int = 1,
        widths: Sequence[int] = (64, 128, 256, 512, 512),
        strides: Sequence[int] = (2, 2, 2, 2, 1),
        **kwargs: Any,
    ) -> None:
        if not widths or len(widths) != len(strides):
            raise ValueError(
                f'widths has {len(widths)} layers and strides {len(strides)}, expected as many, '
                'at least one.'
            )
        self.num_stages = len(widths)
        super().__init__(in_channels, **kwargs)
        before = self.in_channels
        self.layers = nn.ModuleList()
        for i, (width, stride) in enumerate(zip(widths, strides)):
            width, stride = count(f'widths[{i}]', width), count(f'strides[{i}]', stride)
            # Not in place: a recorded map must stay as it was.
            self.layers.append(
                nn.Sequential(*conv_norm(before, width, 3, stride=stride), nn.ReLU())
            )
            before = width

    def stem(self, x: Tensor) -> Tensor:
        """Return the images: the first layer is a stage."""
        return x

    def run_stage(self, i: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute a layer's map before and after its ReLU."""
        layer: Any = self.layers[i]
        if not self.pre_activation:
            x = layer(x)
            return x, x
        before = layer[:-1](x)
        return before, layer[-1](before)
