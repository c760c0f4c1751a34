"""ResNets: what mmpretrain lacks, and those of the CIFAR tables."""

from collections.abc import Sequence
from typing import Any

from mmpretrain.models.backbones import ResNet, ResNet_CIFAR
from mmpretrain.models.backbones.resnet import BasicBlock
from torch import Tensor, nn

from crd_plugin.models._numbers import count
from crd_plugin.registry import MODELS

from ._common import KAIMING, check_out_indices


@MODELS.register_module()
class CIFARFourStageResNet(ResNet_CIFAR):
    """ResNet-10 to ResNet-152 for 32x32 images, with access to pre-activations.

    Weights and names are those of ``mmpretrain.ResNet_CIFAR``, which at depth 50 is numerically
    HobbitLong/RepDistiller's ``models/resnetv2.py``. The parent suffices unless a method reads
    pre-activations: its last ReLU overwrites them. Recorders reach the stem as ``backbone.relu``, a
    stage as ``backbone.layer1`` to ``layer4``.

    Args:
        depth (int): 10 (one basic block per stage), 18, 34, 50, 101 or 152.
        pre_activation (bool): As for :class:`CIFARBackbone`. Defaults to False.
        **kwargs (Any): Arguments of ``mmpretrain.ResNet_CIFAR``: ``out_indices`` (stages 0 to 3, by
            default the last), ``zero_init_residual`` (True by default, False in RepDistiller) ...

    Shape:
        Output: maps of height H, H / 2, H / 4, H / 8 rounded up.
    """

    arch_settings = {10: (BasicBlock, (1, 1, 1, 1)), **ResNet_CIFAR.arch_settings}

    def __init__(self, depth: int, pre_activation: bool = False, **kwargs: Any) -> None:
        super().__init__(depth, **kwargs)
        self.pre_activation = pre_activation
        for name in self.res_layers:
            # The parent's ReLU would overwrite the map before it.
            getattr(self, name)[-1].relu = nn.ReLU()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """As for :class:`CIFARBackbone`."""
        if not self.pre_activation:
            return super().forward(x)
        x = self.relu(self.norm1(self.conv1(x)))
        outputs = []
        for i, name in enumerate(self.res_layers):
            *blocks, last = getattr(self, name)
            for block in blocks:
                x = block(x)
            before = _residual_sum(last, x)
            x = last.relu(before)
            if i in self.out_indices:
                outputs.append(before)
        return (*outputs, x)


@MODELS.register_module()
class CIFARResNet(CIFARFourStageResNet):
    """ResNet-8 to ResNet-110 of the CIFAR tables, thin or four times as wide.

    Source: He et al., arXiv:1512.03385, section 4.2. Behaviour and parameter names matched:
    HobbitLong/RepDistiller, ``models/resnet.py``, so its public checkpoints fit (prefix their keys
    by ``backbone.``, ``fc`` by ``head.``). Recorders reach the stem as ``backbone.relu``, a stage
    as ``backbone.layer1`` to ``layer3``.

    Args:
        depth (int): Convolutions and classifier counted, 6 n + 2, at most 1202.
        stem_channels (int): Width of the stem. Defaults to 16; 32 in the ``x4`` networks.
        base_channels (int): Width of the first of three stages. Defaults to 16; 64 in the ``x4``
            networks.
        out_indices (Sequence[int]): Stages to return, 0 to 2, ascending. Defaults to (2, ).
        in_channels (int): Image channels. Defaults to 3.
        pre_activation (bool): As for :class:`CIFARFourStageResNet`. Defaults to False.
        init_cfg (dict | list[dict], optional): Defaults to None: Kaiming normal, as the original.

    Shape:
        Output: maps of height H, H / 2, H / 4 rounded up.

    Raises:
        ValueError: If ``depth``, a width or ``out_indices`` is out of range.
    """

    arch_settings = {6 * n + 2: (BasicBlock, (n, n, n)) for n in range(1, 201)}

    def __init__(
        self,
        depth: int,
        in_channels: int = 3,
        stem_channels: int = 16,
        base_channels: int = 16,
        out_indices: Sequence[int] = (2,),
        pre_activation: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        if depth not in self.arch_settings:
            raise ValueError(
                f'depth must be 6 n + 2 (8, 14, 20, 32, 44, 56, 110, ..., 1202), but got {depth!r}.'
            )
        super().__init__(
            depth,
            pre_activation,
            in_channels=count('in_channels', in_channels),
            stem_channels=count('stem_channels', stem_channels),
            base_channels=count('base_channels', base_channels),
            num_stages=3,
            strides=(1, 2, 2),
            dilations=(1, 1, 1),
            out_indices=check_out_indices(out_indices, num_stages=3),
            zero_init_residual=False,
            init_cfg=KAIMING if init_cfg is None else init_cfg,
        )

    @property
    def block_names(self) -> tuple[tuple[str, ...], ...]:
        """tuple[tuple[str]]: For each stage, the modules whose last output is a block's."""
        num_blocks = len(self.layer1)
        return tuple(
            tuple(f'{stage}.{i}.relu' for i in range(num_blocks)) for stage in self.res_layers
        )


@MODELS.register_module()
class ImageNetResNet(ResNet):
    """ResNet-10 to ResNet-152 for ImageNet.

    All of ``mmpretrain.ResNet``, whose weights are torchvision's, and depth 10, one basic block per
    stage. For depths 18 and more the parent alone suffices.

    Args:
        depth (int): 10, 18, 34, 50, 101 or 152.
        **kwargs (Any): Arguments of ``mmpretrain.ResNet``.
    """

    arch_settings = {10: (BasicBlock, (1, 1, 1, 1)), **ResNet.arch_settings}


def _residual_sum(block: Any, x: Tensor) -> Tensor:
    """Add both branches of mmpretrain's block, before the last ReLU."""
    out = block.relu(block.norm1(block.conv1(x)))
    out = block.norm2(block.conv2(out))
    if hasattr(block, 'conv3'):
        out = block.norm3(block.conv3(block.relu(out)))
    identity = x if block.downsample is None else block.downsample(x)
    return block.drop_path(out) + identity
