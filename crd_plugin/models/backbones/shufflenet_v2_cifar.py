"""ShuffleNetV2 for 32x32 images, as distillation papers use it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmpretrain.models.utils import channel_shuffle
from torch import Tensor, nn
from torch.nn import functional as F

from crd_plugin.registry import MODELS

from ._common import CIFARBackbone, check_positive

# Channels of the stages and of the last convolution (paper, table 5).
_CHANNELS = {
    0.5: (48, 96, 192, 1024),
    1.0: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2.0: (244, 488, 976, 2048),
}
_BLOCKS = (4, 8, 4)
_STEM_CHANNELS = 24


@MODELS.register_module()
class CIFARShuffleNetV2(CIFARBackbone):
    """Half of the channels pass through, the others are convolved.

    Source: Ma et al., arXiv:1807.11164. Behaviour and parameter names matched:
    HobbitLong/RepDistiller, ``models/ShuffleNetv2.py``. Why not ``mmpretrain.ShuffleNetV2``: its
    stem halves the map twice.

    The map of the last 1x1 convolution, which the head reads, always comes last. Recorders reach
    the stem after its ReLU as ``backbone.relu``, a stage as ``backbone.layer1`` to
    ``backbone.layer3``.

    Args:
        widen_factor (float): 0.5, 1, 1.5 or 2. Defaults to 1: stages of 116, 232, 464 channels,
            1024 at the end.
        in_channels (int): Image channels. Defaults to 3.
        out_indices (Sequence[int]): Stages to return before the last map, 0 to 2, ascending.
            Defaults to (): the last map alone.
        pre_activation (bool): Return the stages before the last ReLU and before the shuffle: first
            the half that passed through (which is after its ReLU), then the convolved one.
            ``backbone.layerX`` is then not called; record ``backbone``. Defaults to False.
        init_cfg (dict | list[dict], optional): Defaults to None: torch's own initial weights, as in
            the original.

    Shape:
        Input: (B, in_channels, H, W). Output: tuple of maps (B, C_i, H_i, W_i), H_i = H / 2,
        H / 4, H / 8 rounded up; then the last map, H / 8.

    Raises:
        ValueError: If an argument is out of range.
    """

    default_init_cfg = None
    tail_names = ('conv2', 'bn2')

    def __init__(
        self,
        widen_factor: float = 1.0,
        in_channels: int = 3,
        out_indices: Sequence[int] = (),
        pre_activation: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        if widen_factor not in _CHANNELS:
            raise ValueError(
                f'widen_factor must be one of {tuple(_CHANNELS)}, but got {widen_factor!r}.'
            )
        check_positive(in_channels=in_channels)
        super().__init__(out_indices, pre_activation, init_cfg)
        self.widen_factor = widen_factor
        width = _STEM_CHANNELS
        *widths, last = _CHANNELS[widen_factor]
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        for i, (number, channels) in enumerate(zip(_BLOCKS, widths)):
            rest = (_Block(channels) for _ in range(number - 1))
            self.add_module(f'layer{i + 1}', nn.Sequential(_DownBlock(width, channels), *rest))
            width = channels
        self.conv2 = nn.Conv2d(width, last, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(last)

    def tail(self, x: Tensor) -> Tensor:
        """Compute the map for the head."""
        return F.relu(self.bn2(self.conv2(x)))


class _Block(nn.Module):
    """Half of the channels kept, the other convolved."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)

    def before_relu(self, x: Tensor) -> Tensor:
        """Put the half that is kept and the convolved one side by side."""
        return torch.cat(self._halves(x), dim=1)

    def relu(self, x: Tensor) -> Tensor:
        """Apply the last ReLU, to the convolved half, and the shuffle."""
        return _join(*x.chunk(2, dim=1))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block's map."""
        return _join(*self._halves(x))

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the half that is kept and the convolved one before its last ReLU."""
        kept, out = x.chunk(2, dim=1)
        out = F.relu(self.bn1(self.conv1(out)))
        out = self.bn2(self.conv2(out))
        return kept, self.bn3(self.conv3(out))


class _DownBlock(nn.Module):
    """Two branches that both halve the map."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = _halving(in_channels)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = nn.Conv2d(in_channels, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(in_channels, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = _halving(half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block's map."""
        left = self.bn1(self.conv1(x))
        left = F.relu(self.bn2(self.conv2(left)))
        right = F.relu(self.bn3(self.conv3(x)))
        right = self.bn4(self.conv4(right))
        return _join(left, self.bn5(self.conv5(right)))


def _halving(channels: int) -> nn.Conv2d:
    """Make a depthwise 3x3 convolution of stride 2."""
    return nn.Conv2d(channels, channels, 3, 2, padding=1, groups=channels, bias=False)


def _join(kept: Tensor, convolved: Tensor) -> Tensor:
    """Apply the last ReLU to the convolved half and shuffle both halves."""
    return channel_shuffle(torch.cat([kept, F.relu(convolved)], dim=1), 2)
