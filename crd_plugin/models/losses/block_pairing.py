"""Which block of the teacher a stage of the student is compared with."""

import random
from typing import List, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

from crd_plugin.ops import block_cosines, no_autocast, pad_channels, pool_flat, unit_over_batch

METHODS = ('last', 'smallest', 'largest', 'first', 'random')
POOLS = ('auto', 'avg8', 'global')

# One map, or those of all blocks of a stage.
Blocks = Union[Tensor, Sequence[Tensor]]


class BlockPairing(nn.Module):
    """Pair the last block of each stage with a block of the teacher's stage.

    Both are divided by their norm over the batch, the student's is padded by
    channels of zeros to the teacher's width, and both are pooled and
    flattened.

    Source: kaiqi123/CKTF ``distiller_zoo/ST.py`` @ b2bba29; Zhao et al.,
    arXiv:2303.07599. Differs: cosines are computed only where the
    choice depends on them, and the choice is not read back from a GPU. The
    norm and the cosines are those of the batch of one process, as with batch
    norm.

    Args:
        method (str): ``'last'`` or ``'first'`` block of the teacher's stage;
            the one with the ``'smallest'`` or ``'largest'`` cosine to the
            student's, the later one of equals; or ``'random'``, by Python's
            generator. Defaults to ``'last'``.
        pool (str): ``'avg8'``: windows of 8x8; ``'global'``: the whole map;
            ``'auto'``: ``'avg8'`` for three stages (ResNets and wide ResNets
            of CIFAR), else ``'global'`` (VGG, ResNets of four stages).
            Defaults to ``'auto'``.

    Raises:
        ValueError: If a word is another, or blocks cannot be paired.
    """

    def __init__(self, method: str = 'last', pool: str = 'auto') -> None:
        super().__init__()
        for name, value, words in (('method', method, METHODS), ('pool', pool, POOLS)):
            if value not in words:
                raise ValueError(f'{name} is {value!r}, expected one of {words}.')
        self.method = method
        self.pool = pool

    def forward(
        self, s_blocks: Sequence[Blocks], t_blocks: Sequence[Blocks]
    ) -> List[Tuple[Tensor, Tensor]]:
        """Features of each stage.

        Args:
            s_blocks (Sequence): For each stage of the student its last map,
                or the maps of all blocks, of which the last is taken.
            t_blocks (Sequence): For each stage of the teacher the maps of all
                blocks; the last map alone suffices for ``'last'``.

        Returns:
            list[tuple[Tensor, Tensor]]: Student's and teacher's feature of
            each stage, ``(B, values)`` both.
        """
        if len(s_blocks) != len(t_blocks):
            raise ValueError(
                f's_blocks has {len(s_blocks)} stages, t_blocks '
                f'{len(t_blocks)}: blocks are paired stage by stage, so both '
                'networks need equally many.'
            )
        pool = self.pool_of(len(s_blocks))
        return [
            self._pair(stage, student, teacher, pool)
            for stage, (student, teacher) in enumerate(zip(s_blocks, t_blocks))
        ]

    def pool_of(self, num_stages: int) -> str:
        """The kind of pooling, ``'auto'`` resolved."""
        if self.pool != 'auto':
            return self.pool
        return 'avg8' if num_stages == 3 else 'global'

    def _pair(
        self, stage: int, student: Blocks, teacher: Blocks, pool: str
    ) -> Tuple[Tensor, Tensor]:
        """Features of one stage."""
        if isinstance(teacher, Tensor):
            if self.method != 'last':
                raise ValueError(
                    f'method={self.method!r} chooses among the blocks of a '
                    'stage, but t_blocks holds one map a stage; record all '
                    "of the teacher's: dict(type='crd_plugin.BlockOutputs', "
                    "source='backbone', blocks='all')."
                )
            teacher = (teacher,)
        own = student if isinstance(student, Tensor) else student[-1]
        shape = teacher[-1].shape
        if own.dim() != 4 or len(shape) != 4:
            raise ValueError(
                f"Stage {stage}: the student's block has shape "
                f"{tuple(own.shape)}, the teacher's {tuple(shape)}, expected "
                '(B, C, H, W) of both; record them with '
                'crd_plugin.BlockOutputs.'
            )
        if own.shape[2:] != shape[2:]:
            raise ValueError(
                f"Stage {stage}: the student's map is "
                f"{tuple(own.shape[2:])} pixels, the teacher's "
                f'{tuple(shape[2:])}; blocks are paired where both networks '
                'have maps of one size.'
            )
        with no_autocast(own):
            own = pad_channels(unit_over_batch(own), shape[1])
            return pool_flat(own, pool), self._chosen(own, teacher, pool)

    def _chosen(self, own: Tensor, teacher: Sequence[Tensor], pool: str) -> Tensor:
        """The teacher's feature, by ``method``."""
        if self.method in ('smallest', 'largest'):
            units = [unit_over_batch(block) for block in teacher]
            cosines = block_cosines(own, units)
            # From behind: of equals the later one is taken.
            sign = 1 if self.method == 'smallest' else -1
            index = len(units) - 1 - (sign * cosines).flip(0).argmin()
            feats = torch.stack([pool_flat(unit, pool) for unit in units])
            # Taken on the device: nothing is read back.
            return feats.index_select(0, index.view(1)).squeeze(0)
        index = {'last': -1, 'first': 0}.get(self.method)
        if index is None:
            index = random.randrange(len(teacher))
        return pool_flat(unit_over_batch(teacher[index]), pool)

    def extra_repr(self) -> str:
        """Settings."""
        return f'method={self.method!r}, pool={self.pool!r}'
