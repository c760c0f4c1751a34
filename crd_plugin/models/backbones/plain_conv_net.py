"""A plain stack of convolutions, for images of any modality."""

from __future__ import annotations

from collections.abc import Sequence

from mmpretrain.models.backbones.base_backbone import BaseBackbone
from torch import Tensor, nn

from crd_plugin.models._numbers import count
from crd_plugin.registry import MODELS

from ._common import KAIMING, check_out_indices


@MODELS.register_module()
class PlainConvNet(BaseBackbone):
    """Convolutions of 3x3 with batch norm and ReLU, one after the other.

    A student of five layers on depth stands in the CRD paper, arXiv:1910.10699, table 5; widths and
    strides were not published and are chosen here.

    Args:
        in_channels (int): Image channels. Defaults to 1.
        widths (Sequence[int]): Channels of each layer. Defaults to (64, 128, 256, 512, 512).
        strides (Sequence[int]): Stride of each layer. Defaults to (2, 2, 2, 2, 1).
        out_indices (Sequence[int], optional): Layers to return, ascending, counted from 0. Defaults
            to None: the last.
        init_cfg (dict | list[dict], optional): Initial weights. Defaults to None: Kaiming normal.

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
        out_indices: Sequence[int] | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(KAIMING if init_cfg is None else init_cfg)
        if not widths or len(widths) != len(strides):
            raise ValueError(
                f'widths has {len(widths)} layers and strides {len(strides)}, expected as many, '
                'at least one.'
            )
        last = (len(widths) - 1,)
        self.out_indices = check_out_indices(
            last if out_indices is None else out_indices, len(widths)
        )
        before = count('in_channels', in_channels)
        self.layers = nn.ModuleList()
        for i, (width, stride) in enumerate(zip(widths, strides)):
            width, stride = count(f'widths[{i}]', width), count(f'strides[{i}]', stride)
            convolution = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
            # Not in place: a recorded map must stay as it was.
            self.layers.append(nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU()))
            before = width

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps of the layers in ``out_indices`` from images ``(B, C, H, W)``."""
        outputs = []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i in self.out_indices:
                outputs.append(x)
        return tuple(outputs)
