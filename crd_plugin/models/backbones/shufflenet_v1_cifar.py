"""ShuffleNetV1 for 32x32 images, as distillation papers use it."""

from typing import List, Optional, Sequence, Tuple, Union

import torch
from mmpretrain.models.backbones.base_backbone import BaseBackbone
from torch import Tensor, nn
from torch.nn import functional as F

from crd_plugin.registry import MODELS

from ._common import check_out_indices, check_positive

# Channels of the first stage for each number of groups (paper, table 1). Of
# the others there, 1 is no shuffle, 4 and 8 do not divide the first block.
_CHANNELS = {2: 200, 3: 240}
_BLOCKS = (4, 8, 4)
_STEM_CHANNELS = 24


@MODELS.register_module()
class CIFARShuffleNetV1(BaseBackbone):
    """Grouped 1x1 convolutions with a shuffle of channels between them.

    Source: Zhang et al., arXiv:1707.01083. Behaviour and parameter names
    matched: HobbitLong/RepDistiller, ``models/ShuffleNetv1.py``. Why not
    ``mmpretrain.ShuffleNetV1``: its stem halves the map twice. Differs from
    the paper, as the original does: a ReLU follows the depthwise convolution
    too, and the stem is a 1x1 convolution.

    Recorders reach the stem after its ReLU as ``backbone.relu``, a stage as
    ``backbone.layer1`` to ``backbone.layer3``.

    Args:
        groups (int): Groups of the 1x1 convolutions, 2 or 3, which also sets
            the widths. Defaults to 3: 240, 480, 960 channels.
        in_channels (int): Image channels. Defaults to 3.
        out_indices (Sequence[int]): Stages to return, 0 to 2, in ascending
            order. Defaults to (2, ).
        pre_activation (bool): Return the stages as they are before their last
            ReLU, and append the last stage's map after it, because necks and
            heads read the last entry. ``backbone.layerX`` itself then is not
            called; record ``backbone``. Defaults to False.
        init_cfg (dict or list[dict], optional): Defaults to None: torch's own
            initial weights, which the original keeps.

    Shape:
        Input: (B, in_channels, H, W), H and W even. Output: tuple of maps
        (B, C_i, H_i, W_i), H_i = H / 2, H / 4, H / 8 rounded up.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        groups: int = 3,
        in_channels: int = 3,
        out_indices: Sequence[int] = (2,),
        pre_activation: bool = False,
        init_cfg: Optional[Union[dict, List[dict]]] = None,
    ) -> None:
        if groups not in _CHANNELS:
            raise ValueError(f'groups must be one of {tuple(_CHANNELS)}, but got {groups!r}.')
        check_positive(in_channels=in_channels)
        indices = check_out_indices(out_indices, len(_BLOCKS))
        super().__init__(init_cfg)
        self.groups = groups
        self.out_indices = indices
        self.pre_activation = pre_activation

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

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        """Compute the maps of the stages in ``out_indices``.

        Args:
            x (Tensor): (B, in_channels, H, W), normalised images.

        Returns:
            tuple[Tensor]: One map a stage; with ``pre_activation`` followed
            by the last stage's map after its ReLU.
        """
        x = self.relu(self.bn1(self.conv1(x)))
        outputs = []
        for i, stage in enumerate((self.layer1, self.layer2, self.layer3)):
            if self.pre_activation:
                for block in stage[:-1]:
                    x = block(x)
                out = stage[-1].joined(x)
                x = F.relu(out)
            else:
                out = x = stage(x)
            if i in self.out_indices:
                outputs.append(out)
        if self.pre_activation:
            outputs.append(x)
        return tuple(outputs)


class _Block(nn.Module):
    """Grouped 1x1, shuffle, 3x3 by channel, grouped 1x1."""

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

    def joined(self, x: Tensor) -> Tensor:
        """Both branches, added or side by side, before the last ReLU."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(shuffle(out, self.groups))))
        out = self.bn3(self.conv3(out))
        if self.stride == 1:
            return out + x
        return torch.cat([out, F.avg_pool2d(x, 3, 2, padding=1)], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.joined(x))


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Deal the channels of each group out to all groups.

    Args:
        x (Tensor): (B, C, H, W).
        groups (int): Number of groups g, which must divide C.

    Returns:
        Tensor: (B, C, H, W), in the order 0, C / g, 2 C / g, ..., 1, ...
    """
    batch, channels, height, width = x.shape
    grouped = x.reshape(batch, groups, channels // groups, height, width)
    return grouped.transpose(1, 2).reshape(x.shape)
