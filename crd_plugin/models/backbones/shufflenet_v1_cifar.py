"""ShuffleNetV1 for 32x32 images, as distillation papers use it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmpretrain.models.utils import channel_shuffle
from torch import Tensor, nn
from torch.nn import functional as F

from crd_plugin.registry import MODELS

from ._common import CIFARBackbone, check_positive

# Channels of the first stage for each number of groups (paper, table 1). The paper's other numbers
# are missing: 1 is no shuffle, 4 and 8 do not divide the first block.
_CHANNELS = {2: 200, 3: 240}
_BLOCKS = (4, 8, 4)
_STEM_CHANNELS = 24


@MODELS.register_module()
class CIFARShuffleNetV1(CIFARBackbone):
    """Grouped 1x1 convolutions with a shuffle of channels between them.

    Source: Zhang et al., arXiv:1707.01083. Behaviour and parameter names matched:
    HobbitLong/RepDistiller, ``models/ShuffleNetv1.py``. Why not ``mmpretrain.ShuffleNetV1``: its
    stem halves the map twice. Differs from the paper, as the original does: a ReLU follows the
    depthwise convolution too, and the stem is a 1x1 convolution.

    Recorders reach the stem after its ReLU as ``backbone.relu``, a stage as ``backbone.layer1`` to
    ``backbone.layer3``.

    Args:
        groups (int): Groups of the 1x1 convolutions, 2 or 3, which also sets the widths. Defaults
            to 3: 240, 480, 960 channels.
        in_channels (int): Image channels. Defaults to 3.
        out_indices (Sequence[int]): Stages to return, 0 to 2, ascending. Defaults to (2, ).
        pre_activation (bool): Return the stages before their last ReLU, then the last one's map
            after it for the head. ``layerX`` is then not called; record ``backbone``. Defaults to
            False.
        init_cfg (dict | list[dict], optional): Defaults to None: torch's own initial weights, as in
            the original.

    Shape:
        Input: (B, in_channels, H, W), H and W even. Output: tuple of maps (B, C_i, H_i, W_i),
        H_i = H / 2, H / 4, H / 8 rounded up.

    Raises:
        ValueError: If an argument is out of range.
    """

    default_init_cfg = None

    def __init__(
        self,
        groups: int = 3,
        in_channels: int = 3,
        out_indices: Sequence[int] = (2,),
        pre_activation: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        if groups not in _CHANNELS:
            raise ValueError(f'groups must be one of {tuple(_CHANNELS)}, but got {groups!r}.')
        check_positive(in_channels=in_channels)
        super().__init__(out_indices, pre_activation, init_cfg)
        self.groups = groups
        width = _STEM_CHANNELS
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        for i, number in enumerate(_BLOCKS):
            channels = _CHANNELS[groups] * 2**i
            # The pooled input makes up the rest of the first block's output.
            first = _Block(width, channels - width, 2, groups)
            rest = (_Block(channels, channels, 1, groups) for _ in range(number - 1))
            self.add_module(f'layer{i + 1}', nn.Sequential(first, *rest))
            width = channels


class _Block(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1."""

    def __init__(self, in_channels: int, channels: int, stride: int, groups: int) -> None:
        super().__init__()
        width = channels // 4
        self.stride = stride
        # The stem's 24 channels are too few to be grouped.
        self.groups = 1 if in_channels == _STEM_CHANNELS else groups
        self.conv1 = nn.Conv2d(in_channels, width, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, groups=width, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, channels, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def before_relu(self, x: Tensor) -> Tensor:
        """Add both branches, or put them side by side where the map is halved."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(channel_shuffle(out, self.groups))))
        out = self.bn3(self.conv3(out))
        if self.stride == 1:
            return out + x
        return torch.cat([out, F.avg_pool2d(x, 3, 2, padding=1)], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block's map."""
        return self.relu(self.before_relu(x))
