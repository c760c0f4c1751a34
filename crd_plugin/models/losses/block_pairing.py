"""Choice of the teacher block that a stage of the student is compared with."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from crd_plugin.ops import block_cosines, no_autocast, pad_channels, pool_flat, unit_over_batch

METHODS = ('last', 'smallest', 'largest', 'first', 'random')
POOLS = ('auto', 'avg8', 'global')

# The last map of a stage, or the maps of all its blocks.
Blocks = Tensor | Sequence[Tensor]


class BlockPairing(nn.Module):
    """Pair the last block of each student stage with a block of the same teacher stage.

    Both are divided by their norm over the batch, the student's is padded with channels of zeros
    to the teacher's width, and both are pooled and flattened.

    Source: kaiqi123/CKTF ``distiller_zoo/ST.py`` @ b2bba29; Zhao et al., arXiv:2303.07599.
    Differs: cosines are computed only where the choice depends on them, and the choice is not
    read back from a GPU. Norms and cosines are computed over the batch of one process, as in
    batch norm.

    Args:
        method (str): ``'last'`` or ``'first'`` block of the teacher's stage; the block with the
            ``'smallest'`` or ``'largest'`` cosine similarity to the student's (the later one if
            several are equal); or a ``'random'`` block, drawn by Python's generator. Defaults
            to ``'last'``.
        pool (str): ``'avg8'``: 8x8 windows; ``'global'``: the whole map; ``'auto'``: ``'avg8'``
            for three stages (ResNets and wide ResNets of CIFAR), else ``'global'`` (VGG,
            ResNets of four stages). Defaults to ``'auto'``.

    Raises:
        ValueError: If an argument is not one of the allowed values, or blocks cannot be paired.
    """

    def __init__(self, method: str = 'last', pool: str = 'auto') -> None:
        super().__init__()
        for name, value, allowed in (('method', method, METHODS), ('pool', pool, POOLS)):
            if value not in allowed:
                raise ValueError(f'{name} is {value!r}, expected one of {allowed}.')
        self.method = method
        self.pool = pool

    def forward(
        self, s_blocks: Sequence[Blocks], t_blocks: Sequence[Blocks]
    ) -> list[tuple[Tensor, Tensor]]:
        """Return the features of each stage.

        Args:
            s_blocks (Sequence): For each stage of the student its last map, or the maps of all
                its blocks, of which the last is used.
            t_blocks (Sequence): For each stage of the teacher the maps of all its blocks; the
                last map alone suffices for ``'last'``.

        Returns:
            list[tuple[Tensor, Tensor]]: Features of student and teacher for each stage, both
            ``(B, values)``.
        """
        if len(s_blocks) != len(t_blocks):
            raise ValueError(
                f's_blocks has {len(s_blocks)} stages, t_blocks {len(t_blocks)}: blocks are paired '
                'stage by stage, so both networks need the same number of stages.'
            )
        pool = self.pool_of(len(s_blocks))
        return [
            self._pair(stage, student, teacher, pool)
            for stage, (student, teacher) in enumerate(zip(s_blocks, t_blocks))
        ]

    def pool_of(self, num_stages: int) -> str:
        """Return ``pool``, with ``'auto'`` resolved for a number of stages."""
        if self.pool != 'auto':
            return self.pool
        return 'avg8' if num_stages == 3 else 'global'

    def _pair(
        self, stage: int, student: Blocks, teacher: Blocks, pool: str
    ) -> tuple[Tensor, Tensor]:
        """Return the features of one stage."""
        if isinstance(teacher, Tensor):
            if self.method != 'last':
                raise ValueError(
                    f'method={self.method!r} chooses among the blocks of a stage, but t_blocks '
                    "holds one map per stage; record all of the teacher's blocks: "
                    "dict(type='crd_plugin.BlockOutputs', source='backbone', blocks='all')."
                )
            teacher = (teacher,)
        own = student if isinstance(student, Tensor) else student[-1]
        s_shape, t_shape = tuple(own.shape), tuple(teacher[-1].shape)
        if not len(s_shape) == len(t_shape) == 4:
            raise ValueError(
                f"Stage {stage}: the student's block has shape {s_shape}, the teacher's {t_shape}, "
                'expected (B, C, H, W) of both; record them with crd_plugin.BlockOutputs.'
            )
        if s_shape[2:] != t_shape[2:]:
            raise ValueError(
                f"Stage {stage}: the student's map is {s_shape[2:]} pixels, the teacher's "
                f'{t_shape[2:]}; choose networks whose maps have the same size in each stage.'
            )
        with no_autocast(own):
            own = pad_channels(unit_over_batch(own), t_shape[1])
            return pool_flat(own, pool), self._choose(own, teacher, pool)

    def _choose(self, own: Tensor, teacher: Sequence[Tensor], pool: str) -> Tensor:
        """Return the feature of the teacher block that ``method`` chooses."""
        if self.method in ('smallest', 'largest'):
            units = [unit_over_batch(block) for block in teacher]
            cosines = block_cosines(own, units)
            # Searched from the end, so that the later of equal blocks is taken.
            sign = 1 if self.method == 'smallest' else -1
            index = len(units) - 1 - (sign * cosines).flip(0).argmin()
            feats = torch.stack([pool_flat(unit, pool) for unit in units])
            # Selected on the device: nothing is read back.
            return feats.index_select(0, index.view(1)).squeeze(0)
        chosen = {'last': -1, 'first': 0}.get(self.method)
        if chosen is None:
            chosen = random.randrange(len(teacher))
        return pool_flat(unit_over_batch(teacher[chosen]), pool)

    def extra_repr(self) -> str:
        """Return the settings."""
        return f'method={self.method!r}, pool={self.pool!r}'
