"""ShuffleNetV2 for 32x32 images, as distillation papers use it."""

from typing import List, Optional, Sequence, Tuple, Union

import torch
from mmpretrain.models.backbones.base_backbone import BaseBackbone
from torch import Tensor, nn
from torch.nn import functional as F

from crd_plugin.registry import MODELS

from ._common import check_out_indices, check_positive
from .shufflenet_v1_cifar import shuffle

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
class CIFARShuffleNetV2(BaseBackbone):
    """Half of the channels pass through, the others are convolved.

    Source: Ma et al., arXiv:1807.11164. Behaviour and parameter names
    matched: HobbitLong/RepDistiller, ``models/ShuffleNetv2.py``. Why not
    ``mmpretrain.ShuffleNetV2``: its stem halves the map twice.

    The map of the last 1x1 convolution, which the head reads, always comes
    last. Recorders reach the stem after its ReLU as ``backbone.relu``, a
    stage as ``backbone.layer1`` to ``backbone.layer3``.

    Args:
        widen_factor (float): 0.5, 1, 1.5 or 2. Defaults to 1: stages of 116,
            232, 464 channels, 1024 at the end.
        in_channels (int): Image channels. Defaults to 3.
        out_indices (Sequence[int]): Stages to return before the last map, 0
            to 2, ascending. Defaults to (): the last map alone.
        pre_activation (bool): Return the stages as they are before the last
            ReLU and before the shuffle: first the half that passed through
            (which is after its ReLU), then the convolved one. Defaults to
            False.
        init_cfg (dict or list[dict], optional): Defaults to None: torch's own
            initial weights, which the original keeps.

    Shape:
        Input: (B, in_channels, H, W). Output: tuple of maps (B, C_i, H_i,
        W_i), H_i = H / 2, H / 4, H / 8 rounded up; then the last map, H / 8.

    Raises:
        ValueError: If an argument is out of range.
    """

    # What lies behind the last stage; only the head needs it.
    tail_names = ('conv2', 'bn2')

    def __init__(
        self,
        widen_factor: float = 1.0,
        in_channels: int = 3,
        out_indices: Sequence[int] = (),
        pre_activation: bool = False,
        init_cfg: Optional[Union[dict, List[dict]]] = None,
    ) -> None:
        if widen_factor not in _CHANNELS:
            raise ValueError(
                f'widen_factor must be one of {tuple(_CHANNELS)}, but got {widen_factor!r}.'
            )
        check_positive(in_channels=in_channels)
        indices = check_out_indices(out_indices, len(_BLOCKS), needed=False)
        super().__init__(init_cfg)
        self.widen_factor = widen_factor
        self.out_indices = indices
        self.pre_activation = pre_activation

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

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        """Compute the stages in ``out_indices`` and the last map.

        Args:
            x (Tensor): (B, in_channels, H, W), normalised images.

        Returns:
            tuple[Tensor]: One map a stage, then the one for the head.
        """
        x = self.relu(self.bn1(self.conv1(x)))
        outputs = []
        for i, stage in enumerate((self.layer1, self.layer2, self.layer3)):
            if self.pre_activation and i in self.out_indices:
                for block in stage[:-1]:
                    x = block(x)
                kept, convolved = stage[-1].halves(x)
                outputs.append(torch.cat([kept, convolved], dim=1))
                x = _join(kept, convolved)
            else:
                x = stage(x)
                if i in self.out_indices:
                    outputs.append(x)
        return (*outputs, F.relu(self.bn2(self.conv2(x))))


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

    def halves(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        """The half kept, and the convolved one before its last ReLU."""
        kept, out = x.chunk(2, dim=1)
        out = F.relu(self.bn1(self.conv1(out)))
        out = self.bn2(self.conv2(out))
        return kept, self.bn3(self.conv3(out))

    def forward(self, x: Tensor) -> Tensor:
        return _join(*self.halves(x))


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
        left = self.bn1(self.conv1(x))
        left = F.relu(self.bn2(self.conv2(left)))
        right = F.relu(self.bn3(self.conv3(x)))
        right = self.bn4(self.conv4(right))
        return _join(left, self.bn5(self.conv5(right)))


def _halving(channels: int) -> nn.Conv2d:
    """3x3 convolution of each channel, stride 2."""
    return nn.Conv2d(channels, channels, 3, 2, padding=1, groups=channels, bias=False)


def _join(kept: Tensor, convolved: Tensor) -> Tensor:
    """Last ReLU of the convolved half; both halves, shuffled."""
    return shuffle(torch.cat([kept, F.relu(convolved)], dim=1), groups=2)
