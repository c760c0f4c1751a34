"""ShuffleNetV1 and ShuffleNetV2 for 32x32 images, as distillation papers use them."""

from typing import Any

import torch
from mmpretrain.models.utils import channel_shuffle
from torch import Tensor, nn
from torch.nn import functional as F

from crd_plugin.models._numbers import one_of
from crd_plugin.registry import MODELS

from ._common import CIFARBackbone, conv_norm

# Channels of the first stage for each number of groups (paper, table 1). The paper's other numbers
# are missing: 1 is no shuffle, 4 and 8 do not divide the first block.
_V1_CHANNELS = {2: 200, 3: 240}
# Channels of the stages and of the last convolution (paper, table 5).
_V2_CHANNELS = {
    0.5: (48, 96, 192, 1024),
    1.0: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2.0: (244, 488, 976, 2048),
}
_BLOCKS = (4, 8, 4)
_STEM_CHANNELS = 24


class _Convolutions(nn.Module):
    """Convolutions ``conv1``, ``conv2``, ..., each with its batch norm ``bn1``, ``bn2``, ..."""

    def __init__(self, *layers: list[nn.Module]) -> None:
        super().__init__()
        for i, (convolution, norm) in enumerate(layers, 1):
            self.add_module(f'conv{i}', convolution)
            self.add_module(f'bn{i}', norm)

    def run(self, i: int, x: Tensor) -> Tensor:
        return getattr(self, f'bn{i}')(getattr(self, f'conv{i}')(x))


@MODELS.register_module()
class CIFARShuffleNetV1(CIFARBackbone):
    """Grouped 1x1 convolutions with a shuffle of channels between them.

    Source: Zhang et al., arXiv:1707.01083. Behaviour and parameter names matched:
    HobbitLong/RepDistiller, ``models/ShuffleNetv1.py``. Why not ``mmpretrain.ShuffleNetV1``: its
    stem halves the map twice. Differs from the paper, as the original does: a ReLU follows the
    depthwise convolution too, and the stem is a 1x1 convolution.

    Recorders reach the stem as ``backbone.relu``, a stage as ``backbone.layer1`` to ``layer3``.

    Args:
        groups (int): Groups of the 1x1 convolutions, 2 or 3, which also sets the widths. Defaults
            to 3: 240, 480, 960 channels.
        **kwargs (Any): Arguments of :class:`CIFARBackbone`; ``out_indices`` are 0 to 2, by
            default the last.

    Shape:
        Input: height H and width even. Output: maps of height H / 2, H / 4, H / 8 rounded up.

    Raises:
        ValueError: If an argument is out of range.
    """

    default_init_cfg = None

    def __init__(self, groups: int = 3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.groups = one_of('groups', groups, _V1_CHANNELS)
        width = _STEM_CHANNELS
        self.conv1, self.bn1 = conv_norm(self.in_channels, width)
        self.relu = nn.ReLU()
        for i, number in enumerate(_BLOCKS):
            channels = _V1_CHANNELS[groups] * 2**i
            # The pooled input makes up the rest of the first block's output.
            first = _V1Block(width, channels - width, 2, groups)
            rest = (_V1Block(channels, channels, 1, groups) for _ in range(number - 1))
            self.add_module(f'layer{i + 1}', nn.Sequential(first, *rest))
            width = channels


class _V1Block(_Convolutions):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1."""

    def __init__(self, in_channels: int, channels: int, stride: int, groups: int) -> None:
        width = channels // 4
        self.stride = stride
        # The stem's 24 channels are too few to be grouped.
        self.groups = 1 if in_channels == _STEM_CHANNELS else groups
        super().__init__(
            conv_norm(in_channels, width, groups=self.groups),
            conv_norm(width, width, 3, stride=stride, groups=width),
            conv_norm(width, channels, groups=groups),
        )
        self.relu = nn.ReLU()

    def before_relu(self, x: Tensor) -> Tensor:
        """Add both branches, or put them side by side where the map is halved."""
        out = channel_shuffle(self.relu(self.run(1, x)), self.groups)
        out = self.run(3, self.relu(self.run(2, out)))
        if self.stride == 1:
            return out + x
        return torch.cat([out, F.avg_pool2d(x, 3, 2, padding=1)], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.before_relu(x))


@MODELS.register_module()
class CIFARShuffleNetV2(CIFARBackbone):
    """Half of the channels pass through, the others are convolved.

    Source: Ma et al., arXiv:1807.11164. Behaviour and parameter names matched:
    HobbitLong/RepDistiller, ``models/ShuffleNetv2.py``. Why not ``mmpretrain.ShuffleNetV2``: its
    stem halves the map twice.

    The map of the last 1x1 convolution, which the head reads, always comes last. Recorders reach
    the stem as ``backbone.relu``, a stage as ``backbone.layer1`` to ``layer3``.

    Args:
        widen_factor (float): 0.5, 1, 1.5 or 2. Defaults to 1: stages of 116, 232, 464 channels,
            1024 at the end.
        **kwargs (Any): Arguments of :class:`CIFARBackbone`; ``out_indices`` are 0 to 2, by
            default none. With ``pre_activation`` a stage is the map before the shuffle too: first
            the half that passed through, which is after its ReLU, then the convolved one.

    Shape:
        Output: maps of height H / 2, H / 4, H / 8 rounded up; then the last map, H / 8.

    Raises:
        ValueError: If an argument is out of range.
    """

    default_init_cfg = None
    tail_names = ('conv2', 'bn2')

    def __init__(self, widen_factor: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.widen_factor = one_of('widen_factor', widen_factor, _V2_CHANNELS)
        width = _STEM_CHANNELS
        *widths, last = _V2_CHANNELS[widen_factor]
        self.conv1, self.bn1 = conv_norm(self.in_channels, width)
        self.relu = nn.ReLU()
        for i, (number, channels) in enumerate(zip(_BLOCKS, widths)):
            rest = (_V2Block(channels) for _ in range(number - 1))
            self.add_module(f'layer{i + 1}', nn.Sequential(_V2DownBlock(width, channels), *rest))
            width = channels
        self.conv2, self.bn2 = conv_norm(width, last)

    def tail(self, x: Tensor) -> Tensor:
        """Compute the map for the head."""
        return F.relu(self.bn2(self.conv2(x)))


class _V2Block(_Convolutions):
    """Half of the channels kept, the other convolved."""

    def __init__(self, channels: int) -> None:
        half = channels // 2
        super().__init__(
            conv_norm(half, half), conv_norm(half, half, 3, groups=half), conv_norm(half, half)
        )

    def before_relu(self, x: Tensor) -> Tensor:
        """Put the half that is kept and the convolved one side by side."""
        return torch.cat(self._halves(x), dim=1)

    def relu(self, x: Tensor) -> Tensor:
        """Apply the last ReLU, to the convolved half, and the shuffle."""
        return _join(*x.chunk(2, dim=1))

    def forward(self, x: Tensor) -> Tensor:
        return _join(*self._halves(x))

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the half that is kept and the convolved one before its last ReLU."""
        kept, out = x.chunk(2, dim=1)
        return kept, self.run(3, self.run(2, F.relu(self.run(1, out))))


class _V2DownBlock(_Convolutions):
    """Two branches that both halve the map."""

    def __init__(self, in_channels: int, channels: int) -> None:
        half = channels // 2
        super().__init__(
            conv_norm(in_channels, in_channels, 3, stride=2, groups=in_channels),
            conv_norm(in_channels, half),
            conv_norm(in_channels, half),
            conv_norm(half, half, 3, stride=2, groups=half),
            conv_norm(half, half),
        )

    def forward(self, x: Tensor) -> Tensor:
        left = F.relu(self.run(2, self.run(1, x)))
        right = self.run(4, F.relu(self.run(3, x)))
        return _join(left, self.run(5, right))


def _join(kept: Tensor, convolved: Tensor) -> Tensor:
    """Apply the last ReLU to the convolved half and shuffle both halves."""
    return channel_shuffle(torch.cat([kept, F.relu(convolved)], dim=1), 2)
