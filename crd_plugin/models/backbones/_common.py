"""What the backbones for 32x32 images share: arguments, initial weights and the forward pass."""

from collections.abc import Sequence
from typing import Any

from mmpretrain.models.backbones.base_backbone import BaseBackbone
from torch import Tensor, nn

from crd_plugin.models._numbers import count

# Initial weights of most networks of HobbitLong/RepDistiller.
KAIMING: list[dict] = [
    dict(
        type='Kaiming', layer='Conv2d', mode='fan_out', nonlinearity='relu', distribution='normal'
    ),
    dict(type='Constant', layer='_BatchNorm', val=1, bias=0),
]


class CIFARBackbone(BaseBackbone):
    """Base of networks with a stem, stages and, in some, a tail that the head reads.

    A subclass makes a stem (``conv1``, ``bn1``, ``relu``) and stages (``layer1``, ``layer2``, ...),
    whose last block has ``before_relu(x)`` and ``relu(x)``. Other networks override :meth:`stem`,
    :meth:`run_stage` and :meth:`tail`, or :meth:`forward`.

    Args:
        in_channels (int): Image channels. Defaults to 3.
        out_indices (Sequence[int], optional): Stages to return, ascending, counted from 0; may be
            empty if there is a tail. Defaults to None: the last stage, or with a tail none.
        pre_activation (bool): Return the stages before their last ReLU, then the last one's map
            after it for the head. The module of a stage may then not be called; record
            ``backbone``. Defaults to False.
        init_cfg (dict | list[dict], optional): Initial weights. Defaults to None:
            ``default_init_cfg``, as in the original.

    Raises:
        ValueError: If an argument is out of range.
    """

    num_stages = 3
    default_init_cfg: list[dict] | None = KAIMING  # None: as torch
    # The module whose output is the map before the first stage.
    stem_name = 'relu'
    # Modules behind the last stage, which only the head needs.
    tail_names: tuple[str, ...] = ()

    def __init__(
        self,
        in_channels: int = 3,
        out_indices: Sequence[int] | None = None,
        pre_activation: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(self.default_init_cfg if init_cfg is None else init_cfg)
        self.in_channels = count('in_channels', in_channels)
        if out_indices is None:
            out_indices = () if self.tail_names else (self.num_stages - 1,)
        self.out_indices = check_out_indices(out_indices, self.num_stages, bool(self.tail_names))
        self.pre_activation = pre_activation

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps of the stages in ``out_indices``.

        Args:
            x (Tensor): Normalised images, ``(B, in_channels, H, W)``.

        Returns:
            tuple[Tensor]: One map per stage. Where the last of them is not what the head reads,
            with a tail or with ``pre_activation``, the map for the head follows.
        """
        x = self.stem(x)
        outputs = []
        for i in range(self.num_stages):
            before, x = self.run_stage(i, x)
            if i in self.out_indices:
                outputs.append(before if self.pre_activation else x)
        if self.tail_names or self.pre_activation:
            outputs.append(self.tail(x))
        return tuple(outputs)

    def stem(self, x: Tensor) -> Tensor:
        """Compute the map before the first stage."""
        return self.relu(self.bn1(self.conv1(x)))

    def run_stage(self, i: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute a stage's map before its last ReLU, needed with ``pre_activation``, and after."""
        stage = getattr(self, f'layer{i + 1}')
        if not self.pre_activation:
            x = stage(x)
            return x, x
        before = stage[-1].before_relu(stage[:-1](x))
        return before, stage[-1].relu(before)

    def tail(self, x: Tensor) -> Tensor:
        """Compute the map for the head from that of the last stage."""
        return x


def conv_norm(in_channels: int, channels: int, kernel: int = 1, **kwargs: Any) -> list[nn.Module]:
    """Make a convolution without bias that keeps the size at stride 1, and its batch norm."""
    layer = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=False, **kwargs)
    return [layer, nn.BatchNorm2d(channels)]


def check_out_indices(
    out_indices: Sequence[int], num_stages: int, may_be_empty: bool = False
) -> tuple[int, ...]:
    """Return a choice of stages as a tuple; raise a ValueError for stages that do not exist."""
    stages = tuple(range(num_stages))
    chosen = tuple(out_indices) if isinstance(out_indices, Sequence) else (None,)
    if chosen != tuple(i for i in stages if i in chosen) or not (chosen or may_be_empty):
        raise ValueError(
            f'out_indices must be ascending stages out of {stages}, but got {out_indices!r}.'
        )
    return chosen
