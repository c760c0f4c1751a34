"""Three-stage wide ResNet for 32x32 images: WRN-d-w."""

from typing import Any

from torch import Tensor, nn

from crd_plugin.models._numbers import count
from crd_plugin.registry import MODELS

from ._common import CIFARBackbone, conv_norm


@MODELS.register_module()
class CIFARWideResNet(CIFARBackbone):
    """Wide ResNet with (depth - 4) / 6 pre-activation blocks per stage.

    Source: Zagoruyko and Komodakis, arXiv:1605.07146. Behaviour and parameter names matched:
    HobbitLong/RepDistiller, ``models/wrn.py``. Why not ``mmrazor.WideResNet``: its logits are the
    same, but it returns the last map alone, no stage, and nothing before an activation.

    The stages are raw residual sums; the map after the last batch norm and ReLU, which the head
    reads, always comes last. Recorders reach the stem as ``backbone.conv1``, a stage as
    ``backbone.block1`` to ``backbone.block3``.

    Args:
        depth (int): 6 n + 4: 16, 22, 28, 40 in the literature.
        widen_factor (int): Width of the stages in units of 16, 32, 64. Defaults to 1.
        **kwargs (Any): Arguments of :class:`CIFARBackbone`; ``out_indices`` are 0 to 2, by
            default none. With ``pre_activation`` a stage is the map after the batch norm that
            follows it, before its ReLU.

    Shape:
        Output: maps of height H, H / 2, H / 4 rounded up; then the last map, shaped as stage 2.

    Raises:
        ValueError: If an argument is out of range.
    """

    stem_name = 'conv1'
    tail_names = ('bn1',)

    def __init__(self, depth: int, widen_factor: int = 1, **kwargs: Any) -> None:
        if not isinstance(depth, int) or depth < 10 or (depth - 4) % 6:
            raise ValueError(f'depth must be 6 n + 4 (16, 22, 28, 40, ...), but got {depth!r}.')
        count('widen_factor', widen_factor)
        super().__init__(**kwargs)
        self.depth = depth
        self.widen_factor = widen_factor
        num_blocks, width = (depth - 4) // 6, 16 * widen_factor
        self.conv1 = nn.Conv2d(self.in_channels, 16, 3, padding=1, bias=False)
        self.block1 = _Stage(num_blocks, 16, width, 1)
        self.block2 = _Stage(num_blocks, width, 2 * width, 2)
        self.block3 = _Stage(num_blocks, 2 * width, 4 * width, 2)
        self.bn1 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU()

    @property
    def block_names(self) -> tuple[tuple[str, ...], ...]:
        """tuple[tuple[str]]: For each stage, the modules whose output is a block's residual sum."""
        num_blocks = len(self.block1.layer)
        return tuple(
            tuple(f'block{stage}.layer.{i}' for i in range(num_blocks)) for stage in (1, 2, 3)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """As for :class:`CIFARBackbone`."""
        stages = (self.block1, self.block2, self.block3)
        # The batch norm that follows each stage; two of them are in the next stage's first block.
        norms = (*(stage.get_submodule('layer.0.bn1') for stage in stages[1:]), self.bn1)
        x, normed = self.conv1(x), None
        outputs = []
        for i, (stage, norm) in enumerate(zip(stages, norms)):
            x = stage(x, normed)
            normed = norm(x)
            if i in self.out_indices:
                outputs.append(normed if self.pre_activation else x)
        return (*outputs, self.relu(normed))


class _Stage(nn.Module):
    """Blocks of one width."""

    def __init__(self, num_blocks: int, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        first = _Block(in_channels, channels, stride)
        rest = (_Block(channels, channels, 1) for _ in range(num_blocks - 1))
        self.layer = nn.Sequential(first, *rest)

    def forward(self, x: Tensor, normed: Tensor | None = None) -> Tensor:
        """Compute the residual sum; ``normed`` is the first batch norm of ``x``, if computed."""
        for block in self.layer:
            x, normed = block(x, normed), None
        return x


class _Block(nn.Module):
    """Batch norm and ReLU before each of two 3x3 convolutions."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1, self.bn2 = conv_norm(in_channels, channels, 3, stride=stride)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.convShortcut = None
        if in_channels != channels:
            self.convShortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: Tensor, normed: Tensor | None = None) -> Tensor:
        """Compute the residual sum; ``normed`` is the first batch norm of ``x``, if computed."""
        active = self.relu(self.bn1(x) if normed is None else normed)
        out = self.relu(self.bn2(self.conv1(active)))
        return self.conv2(out) + (x if self.convShortcut is None else self.convShortcut(active))
