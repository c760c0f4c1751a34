"""``mmpretrain.ResNet_CIFAR`` with its stages before the last ReLU."""

from __future__ import annotations

from typing import Any

from mmpretrain.models.backbones import ResNet_CIFAR
from mmpretrain.models.backbones.resnet import BasicBlock
from torch import Tensor, nn

from crd_plugin.registry import MODELS


@MODELS.register_module()
class CIFARFourStageResNet(ResNet_CIFAR):
    """ResNet-10 to ResNet-152 for 32x32 images, with access to pre-activations.

    Weights, names and everything else are those of ``mmpretrain.ResNet_CIFAR``, which at depth 50
    is HobbitLong/RepDistiller's ``models/resnetv2.py`` numerically; its checkpoints need
    ``shortcut`` renamed to ``downsample``. The parent alone suffices unless a method reads
    pre-activations: its last ReLU overwrites them in place.

    Recorders reach the stem after its ReLU as ``backbone.relu``, a stage as ``backbone.layer1`` to
    ``backbone.layer4``.

    Args:
        depth (int): 10 (as in kaiqi123/CKTF, one basic block per stage; missing in mmpretrain), 18,
            34, 50, 101 or 152.
        pre_activation (bool): Return the stages before their last ReLU, then the last one's map
            after it for the head. ``layerX`` is then not called; record ``backbone``. Defaults to
            False.
        **kwargs (Any): Arguments of ``mmpretrain.ResNet_CIFAR``: ``out_indices`` (stages 0 to 3, by
            default the last), ``zero_init_residual`` (True by default, False in RepDistiller) ...

    Shape:
        Input: (B, in_channels, H, W). Output: tuple of maps (B, C_i, H_i, W_i), H_i = H, H / 2,
        H / 4, H / 8 rounded up.
    """

    arch_settings = {10: (BasicBlock, (1, 1, 1, 1)), **ResNet_CIFAR.arch_settings}

    def __init__(self, depth: int, pre_activation: bool = False, **kwargs: Any) -> None:
        super().__init__(depth, **kwargs)
        self.pre_activation = pre_activation
        for name in self.res_layers:
            # The parent's ReLU would overwrite the map before it.
            getattr(self, name)[-1].relu = nn.ReLU()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps of the stages in ``out_indices``.

        Args:
            x (Tensor): Normalised images, ``(B, in_channels, H, W)``.

        Returns:
            tuple[Tensor]: One map per stage; with ``pre_activation`` followed by the last stage's
            map after its ReLU.
        """
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


def _residual_sum(block: Any, x: Tensor) -> Tensor:
    """Add both branches of mmpretrain's block, before the last ReLU."""
    out = block.relu(block.norm1(block.conv1(x)))
    out = block.norm2(block.conv2(out))
    if hasattr(block, 'conv3'):
        out = block.norm3(block.conv3(block.relu(out)))
    identity = x if block.downsample is None else block.downsample(x)
    return block.drop_path(out) + identity
