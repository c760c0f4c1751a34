"""MobileNetV2 for 32x32 images, as distillation papers use it."""

from typing import Any

from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from crd_plugin.registry import MODELS

from ._common import CIFARBackbone

# Expansion, channels, blocks and stride of each group.
_GROUPS = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
# Groups of each stage.
_STAGES = (slice(0, 2), slice(2, 3), slice(3, 5), slice(5, 7))
_LAST_CHANNELS = 1280


@MODELS.register_module()
class CIFARMobileNetV2(CIFARBackbone):
    """Inverted residual blocks with linear bottlenecks, half as wide.

    Source: Sandler et al., arXiv:1801.04381. Behaviour and parameter names matched:
    HobbitLong/RepDistiller, ``models/mobilenetv2.py``. Why not ``mmpretrain.MobileNetV2``: there,
    the first group has no expansion, the second halves the map, widths are rounded to multiples of
    8, and ReLU is capped at 6.

    The stages are linear; the map of the last 1x1 convolution, which the head reads, always comes
    last. Recorders reach the stem as ``backbone.conv1``, that last map as ``backbone.conv2``.

    Args:
        widen_factor (float): Width relative to the paper's, rounded down; that of the last
            convolution never gets less. Defaults to 0.5.
        **kwargs (Any): Arguments of :class:`CIFARBackbone`; ``out_indices`` are 0 to 3, by
            default none. ``pre_activation`` changes nothing, as no stage ends with a ReLU.

    Shape:
        Output: maps of 12, 16, 48, 160 channels at half width and of height H / 2, H / 4, H / 8,
        H / 16 rounded up; then the last map, 1280 channels, H / 16.

    Raises:
        ValueError: If an argument is out of range.
    """

    num_stages = len(_STAGES)
    stem_name = 'conv1'
    tail_names = ('conv2',)

    def __init__(self, widen_factor: float = 0.5, **kwargs: Any) -> None:
        if not isinstance(widen_factor, (int, float)) or widen_factor < 0.1:
            raise ValueError(
                f'widen_factor must be a number of at least 0.1, but got {widen_factor!r}.'
            )
        super().__init__(**kwargs)
        self.widen_factor = widen_factor
        width = int(32 * widen_factor)
        self.conv1 = Conv2dNormActivation(self.in_channels, width, 3, stride=2, inplace=False)
        self.blocks = nn.ModuleList()
        for expansion, channels, number, stride in _GROUPS:
            channels = int(channels * widen_factor)
            group = nn.Sequential()
            for i in range(number):
                stride = 1 if i else stride
                group.append(_InvertedResidual(width, channels, stride, expansion))
                width = channels
            self.blocks.append(group)
        last = int(_LAST_CHANNELS * max(1, widen_factor))
        self.conv2 = Conv2dNormActivation(width, last, 1, inplace=False)

    def stem(self, x: Tensor) -> Tensor:
        """Compute the map before the first stage."""
        return self.conv1(x)

    def run_stage(self, i: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute a stage's map, which no ReLU follows."""
        for group in self.blocks[_STAGES[i]]:
            x = group(x)
        return x, x

    def tail(self, x: Tensor) -> Tensor:
        """Compute the map for the head."""
        return self.conv2(x)


class _InvertedResidual(nn.Module):
    """1x1 to more channels, depthwise 3x3, 1x1 back without activation."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = in_channels * expansion
        self.shortcut = stride == 1 and in_channels == channels
        self.conv = nn.Sequential(
            *Conv2dNormActivation(in_channels, width, 1),
            *Conv2dNormActivation(width, width, 3, stride, groups=width),
            *Conv2dNormActivation(width, channels, 1, activation_layer=None),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.shortcut else self.conv(x)
