"""Three-stage ResNet for 32x32 images, as distillation papers use it."""

from __future__ import annotations

from collections.abc import Sequence

from mmpretrain.models.backbones.resnet import BasicBlock

from crd_plugin.registry import MODELS

from ._common import KAIMING, check_out_indices, check_positive
from .four_stage_resnet_cifar import CIFARFourStageResNet


@MODELS.register_module()
class CIFARResNet(CIFARFourStageResNet):
    """ResNet-8 to ResNet-110 of the CIFAR tables, thin or four times as wide.

    A 3x3 stem of stride 1, then three stages of (depth - 2) / 6 basic blocks each, whose widths
    double and whose maps halve from stage to stage. Where stride or width changes, the shortcut is
    a 1x1 convolution with batch norm.

    Source: He et al., arXiv:1512.03385, section 4.2. Behaviour and parameter names matched:
    HobbitLong/RepDistiller, ``models/resnet.py``, so its public checkpoints fit (prefix their keys
    by ``backbone.``, ``fc`` by ``head.``). Differs: no classifier inside; add the neck
    ``GlobalAveragePooling`` and the head ``LinearClsHead``.

    Recorders reach a stage as ``backbone.layer1`` to ``backbone.layer3``, the stem after its ReLU
    as ``backbone.relu``.

    Args:
        depth (int): Convolutions and classifier counted, 6 n + 2: 8, 14, 20, 32, 44, 56, 110 in the
            literature, at most 1202.
        in_channels (int): Image channels. Defaults to 3.
        stem_channels (int): Width of the stem. Defaults to 16; 32 in the ``x4`` networks.
        base_channels (int): Width of the first stage; the others have twice and four times as many.
            Defaults to 16; 64 in the ``x4`` networks.
        out_indices (Sequence[int]): Stages to return, 0 to 2, ascending. Defaults to (2, ).
        pre_activation (bool): Return the stages before their last ReLU, then the last one's map
            after it for the head. ``layerX`` is then not called; record ``backbone``. Defaults to
            False.
        init_cfg (dict | list[dict], optional): Defaults to None: Kaiming normal, fan-out, as in the
            original.

    Shape:
        Input: (B, in_channels, H, W). Output: tuple of maps (B, C_i, H_i, W_i), H_i = H, H / 2,
        H / 4 rounded up.

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
        check_positive(
            in_channels=in_channels, stem_channels=stem_channels, base_channels=base_channels
        )
        super().__init__(
            depth,
            pre_activation,
            in_channels=in_channels,
            stem_channels=stem_channels,
            base_channels=base_channels,
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
