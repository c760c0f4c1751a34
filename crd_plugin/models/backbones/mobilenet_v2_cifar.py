"""MobileNetV2 for 32x32 images, as distillation papers use it."""

from typing import List, Optional, Sequence, Tuple, Union

from mmpretrain.models.backbones.base_backbone import BaseBackbone
from torch import Tensor, nn

from crd_plugin.registry import MODELS

from ._common import check_out_indices, check_positive, kaiming_init

# Expansion (None: `expansion`), channels, blocks and stride of each group.
_GROUPS = (
    (1, 16, 1, 1),
    (None, 24, 2, 1),
    (None, 32, 3, 2),
    (None, 64, 4, 2),
    (None, 96, 3, 1),
    (None, 160, 3, 2),
    (None, 320, 1, 1),
)
# A stage ends with this group.
_STAGE_ENDS = (1, 2, 4, 6)
_LAST_CHANNELS = 1280


@MODELS.register_module()
class CIFARMobileNetV2(BaseBackbone):
    """Inverted residual blocks with linear bottlenecks, half as wide.

    Source: Sandler et al., arXiv:1801.04381. Behaviour and parameter names
    matched: HobbitLong/RepDistiller, ``models/mobilenetv2.py``. Why not
    ``mmpretrain.MobileNetV2``: there, the first group has no expansion, the
    second halves the map, widths are rounded to multiples of 8, and ReLU is
    capped at 6.

    The stages are linear, so the map of the last 1x1 convolution, which the
    head reads, always comes last. Recorders reach the stem as
    ``backbone.conv1``, that last map as ``backbone.conv2``, groups of blocks
    as ``backbone.blocks.0`` to ``backbone.blocks.6``.

    Args:
        widen_factor (float): Width, relative to the paper's; channels are
            rounded down. The last convolution gets narrower never, wider if
            above 1. Defaults to 0.5.
        expansion (int): Width inside a block, relative to its input's.
            Defaults to 6.
        in_channels (int): Image channels. Defaults to 3.
        out_indices (Sequence[int]): Stages to return before the last map, 0
            to 3, ascending. Defaults to (): the last map alone.
        pre_activation (bool): As in the other backbones, so that one config
            of a method serves every pair; no stage here ends with a ReLU, so
            both give the same. Defaults to False.
        init_cfg (dict or list[dict], optional): Defaults to the original's:
            Kaiming normal, fan-out, for convolutions; 1 and 0 for batch norm.

    Shape:
        Input: (B, in_channels, H, W). Output: tuple of maps (B, C_i, H_i,
        W_i), C_i = 12, 16, 48, 160 at half width, H_i = H / 2, H / 4, H / 8,
        H / 16 rounded up; then the last map, 1280 channels, H / 16.

    Raises:
        ValueError: If an argument is out of range.
    """

    # Where ``StageOutputsRecorder`` finds the map before the first stage.
    stem_name = 'conv1'
    # What lies behind the last stage; only the head needs it.
    tail_names = ('conv2',)

    def __init__(
        self,
        widen_factor: float = 0.5,
        expansion: int = 6,
        in_channels: int = 3,
        out_indices: Sequence[int] = (),
        pre_activation: bool = False,
        init_cfg: Optional[Union[dict, List[dict]]] = None,
    ) -> None:
        if not isinstance(widen_factor, (int, float)) or widen_factor < 0.1:
            raise ValueError(
                f'widen_factor must be a number of at least 0.1, but got {widen_factor!r}.'
            )
        check_positive(expansion=expansion, in_channels=in_channels)
        indices = check_out_indices(out_indices, len(_STAGE_ENDS), needed=False)
        super().__init__(kaiming_init() if init_cfg is None else init_cfg)
        self.widen_factor = widen_factor
        self.out_indices = indices
        self.pre_activation = pre_activation

        width = int(32 * widen_factor)
        self.conv1 = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, 2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        self.blocks = nn.ModuleList()
        for factor, channels, number, stride in _GROUPS:
            channels = int(channels * widen_factor)
            blocks = []
            for i in range(number):
                blocks.append(
                    _InvertedResidual(
                        width, channels, 1 if i else stride, expansion if factor is None else factor
                    )
                )
                width = channels
            self.blocks.append(nn.Sequential(*blocks))
        last = int(_LAST_CHANNELS * max(1, widen_factor))
        self.conv2 = nn.Sequential(
            nn.Conv2d(width, last, 1, bias=False), nn.BatchNorm2d(last), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        """Compute the stages in ``out_indices`` and the last map.

        Args:
            x (Tensor): (B, in_channels, H, W), normalised images.

        Returns:
            tuple[Tensor]: One map a stage, then the one for the head.
        """
        x = self.conv1(x)
        ends = [_STAGE_ENDS[i] for i in self.out_indices]
        outputs = []
        for i, group in enumerate(self.blocks):
            x = group(x)
            if i in ends:
                outputs.append(x)
        return (*outputs, self.conv2(x))


class _InvertedResidual(nn.Module):
    """1x1 to more channels, 3x3 by channel, 1x1 back without activation."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = in_channels * expansion
        self.shortcut = stride == 1 and in_channels == channels
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, stride, padding=1, groups=width, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.shortcut else self.conv(x)
