"""Three-stage ResNet for 32x32 images, as distillation papers use it."""

from typing import List, Optional, Sequence, Tuple, Union

from mmpretrain.models.backbones.base_backbone import BaseBackbone
from torch import Tensor, nn

from crd_plugin.registry import MODELS

from ._common import check_out_indices, check_positive

_NUM_STAGES = 3


@MODELS.register_module()
class CIFARResNet(BaseBackbone):
    """ResNet-8 to ResNet-110 of the CIFAR tables, thin or four times as wide.

    A 3x3 stem of stride 1, then three stages of (depth - 2) / 6 basic blocks
    each, whose widths double and whose maps halve from stage to stage. Where
    stride or width changes the shortcut is a 1x1 convolution with batch norm.

    Source: He et al., arXiv:1512.03385, section 4.2. Behaviour and parameter
    names matched: HobbitLong/RepDistiller, ``models/resnet.py``, so that its
    public checkpoints fit (prefix their keys by ``backbone.``, ``fc`` by
    ``head.``). mmpretrain's ``ResNet_CIFAR`` is another net: four stages, 64
    channels, depth 18 and up; none of the pairs in the tables can be built
    from it. Differs: no classifier inside; end it with the neck
    ``GlobalAveragePooling`` and the head ``LinearClsHead``.

    Recorders reach a stage as ``backbone.layer1`` to ``backbone.layer3``, the
    stem after its ReLU as ``backbone.relu``.

    Args:
        depth (int): Convolutions and classifier counted, 6 n + 2: 8, 14, 20,
            32, 44, 56, 110 in the literature.
        in_channels (int): Image channels. Defaults to 3.
        stem_channels (int): Width of the stem. Defaults to 16; 32 in the
            ``x4`` nets.
        base_channels (int): Width of the first stage; the others have twice
            and four times as many. Defaults to 16; 64 in the ``x4`` nets.
        out_indices (Sequence[int]): Stages to return, 0 to 2, in ascending
            order. Defaults to (2, ).
        pre_activation (bool): Return the stages as they are before their last
            ReLU, and append the last stage's map after it, because necks and
            heads read the last entry. ``backbone.layerX`` itself then is not
            called; record ``backbone``. Defaults to False.
        init_cfg (dict or list[dict], optional): Defaults to the original's:
            Kaiming normal, fan-out, for convolutions; 1 and 0 for batch norm.

    Shape:
        Input: (B, in_channels, H, W). Output: tuple of maps (B, C_i, H_i,
        W_i), H_i = H, H / 2, H / 4 rounded up.

    Raises:
        ValueError: If ``depth``, a width or ``out_indices`` is out of range.
    """

    def __init__(
        self,
        depth: int,
        in_channels: int = 3,
        stem_channels: int = 16,
        base_channels: int = 16,
        out_indices: Sequence[int] = (2,),
        pre_activation: bool = False,
        init_cfg: Optional[Union[dict, List[dict]]] = None,
    ) -> None:
        if not isinstance(depth, int) or depth < 8 or (depth - 2) % 6:
            raise ValueError(
                f'depth must be 6 n + 2 (8, 14, 20, 32, 44, 56, 110, ...), but got {depth!r}.'
            )
        check_positive(
            in_channels=in_channels, stem_channels=stem_channels, base_channels=base_channels
        )
        indices = check_out_indices(out_indices, _NUM_STAGES)
        if init_cfg is None:
            init_cfg = [
                dict(
                    type='Kaiming',
                    layer='Conv2d',
                    mode='fan_out',
                    nonlinearity='relu',
                    distribution='normal',
                ),
                dict(type='Constant', layer='_BatchNorm', val=1, bias=0),
            ]
        super().__init__(init_cfg)
        self.depth = depth
        self.out_indices = indices
        self.pre_activation = pre_activation

        num_blocks = (depth - 2) // 6
        width1, width2, width3 = (base_channels * 2**i for i in range(3))
        self.conv1 = _conv3x3(in_channels, stem_channels)
        self.bn1 = nn.BatchNorm2d(stem_channels)
        self.relu = nn.ReLU()
        self.layer1 = _make_stage(stem_channels, width1, num_blocks, stride=1)
        self.layer2 = _make_stage(width1, width2, num_blocks, stride=2)
        self.layer3 = _make_stage(width2, width3, num_blocks, stride=2)

    @property
    def block_names(self) -> Tuple[Tuple[str, ...], ...]:
        """tuple[tuple[str]]: For each stage the modules whose last output in
        a forward pass is a block's, ``pre_activation`` or not."""
        stages = dict(layer1=self.layer1, layer2=self.layer2, layer3=self.layer3)
        return tuple(
            tuple(f'{name}.{i}.relu' for i in range(len(stage))) for name, stage in stages.items()
        )

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
                out = stage[-1].residual_sum(x)
                x = stage[-1].relu(out)
            else:
                out = x = stage(x)
            if i in self.out_indices:
                outputs.append(out)
        if self.pre_activation:
            outputs.append(x)
        return tuple(outputs)


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.conv2 = _conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def residual_sum(self, x: Tensor) -> Tensor:
        """Both branches added, before the last ReLU."""
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return out + (x if self.downsample is None else self.downsample(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.residual_sum(x))


def _conv3x3(in_channels: int, channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)


def _make_stage(in_channels: int, channels: int, num_blocks: int, stride: int) -> nn.Sequential:
    first = _BasicBlock(in_channels, channels, stride)
    rest = [_BasicBlock(channels, channels, 1) for _ in range(num_blocks - 1)]
    return nn.Sequential(first, *rest)
