"""Features of two networks, block by block: one shape, choice of a block, pooling."""

import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .features import full_precision, no_autocast

METHODS = ('last', 'smallest', 'largest', 'first', 'random')
POOLS = ('auto', 'avg8', 'global')

# The last map of a stage, or the maps of all its blocks.
Blocks = Tensor | Sequence[Tensor]

# Norms below this are treated as zero.
_EPS = 1e-12


def pair_blocks(
    s_blocks: Sequence[Blocks], t_blocks: Sequence[Blocks], method: str = 'last', pool: str = 'auto'
) -> list[tuple[Tensor, Tensor]]:
    """Pair the last block of each student stage with a block of the same teacher stage.

    Both are divided by their norm over the batch, the student's is padded with channels of zeros
    to the teacher's width, and both are pooled and flattened.

    Source: kaiqi123/CKTF ``distiller_zoo/ST.py`` @ b2bba29; Zhao et al., arXiv:2303.07599.
    Differs: the choice is not read back from a GPU; a unit that is zero for the whole batch gets
    zero gradient. Norms and cosines are those of the batch of one process, as in batch norm.

    Args:
        s_blocks (Sequence): For each stage of the student its last map, ``(B, C, H, W)`` float,
            or the maps of all its blocks, of which the last is used.
        t_blocks (Sequence): The same of the teacher; all blocks unless ``method`` is ``'last'``.
        method (str): One of ``METHODS``, see :class:`CKTFLoss`; of blocks with equal cosines the
            later one, a random block by Python's generator.
        pool (str): One of ``POOLS``, see there.

    Returns:
        list[tuple[Tensor, Tensor]]: Features of student and teacher for each stage, both
        ``(B, values)``, float32 (float64 for float64).

    Raises:
        ValueError: If the blocks cannot be paired.
    """
    if len(s_blocks) != len(t_blocks):
        raise ValueError(
            f's_blocks has {len(s_blocks)} stages, t_blocks {len(t_blocks)}: blocks are paired '
            'stage by stage, so both networks need the same number of stages.'
        )
    pool = resolve_pool(pool, len(s_blocks))
    pairs = []
    for stage, (student, teacher) in enumerate(zip(s_blocks, t_blocks)):
        if isinstance(teacher, Tensor):
            if method != 'last':
                raise ValueError(
                    f'method={method!r} chooses among the blocks of a stage, but t_blocks holds '
                    "one map per stage; record all of the teacher's blocks: "
                    "dict(type='crd_plugin.BlockOutputs', source='backbone', blocks='all')."
                )
            teacher = (teacher,)
        own = student if isinstance(student, Tensor) else student[-1]
        _check_shapes(stage, tuple(own.shape), tuple(teacher[-1].shape))
        with no_autocast(own):
            own = pad_channels(unit_over_batch(own), teacher[-1].size(1))
            pairs.append((pool_flat(own, pool), _choose(own, teacher, method, pool)))
    return pairs


def resolve_pool(pool: str, num_stages: int) -> str:
    """Return a kind of pooling, with ``'auto'`` resolved for a number of stages."""
    if pool != 'auto':
        return pool
    return 'avg8' if num_stages == 3 else 'global'


def pool_flat(blocks: Tensor, pool: str) -> Tensor:
    """Average a map ``(B, C, H, W)`` and flatten the result; windows of 8x8 fit small maps."""
    if pool == 'global':
        return blocks.mean(dim=(2, 3))
    window = [min(8, side) for side in blocks.shape[2:]]
    return F.avg_pool2d(blocks, window).flatten(1)


def unit_over_batch(blocks: Tensor) -> Tensor:
    """Divide each unit of ``(B, C, H, W)`` by its L2 norm over the batch; zero stays zero."""
    blocks = full_precision(blocks)  # The squares overflow in float16.
    # On a CPU ten times as fast as a norm along the first axis.
    square = blocks.square().sum(0, keepdim=True)
    scale = torch.where(square > _EPS**2, square.clamp_min(_EPS**2).rsqrt(), 0.0)
    return blocks * scale


def pad_channels(blocks: Tensor, channels: int) -> Tensor:
    """Pad (or crop) the channels of a map equally in front and behind, as published."""
    missing = channels - blocks.size(1)
    if missing % 2:
        raise ValueError(
            f"A block of the student has {blocks.size(1)} channels, the teacher's {channels}: "
            'zeros are added equally in front and behind, so the difference must be even; choose '
            'another width of the student.'
        )
    return F.pad(blocks, (0, 0, 0, 0, missing // 2, missing // 2)) if missing else blocks


@torch.no_grad()
def block_cosines(student: Tensor, teachers: Sequence[Tensor]) -> Tensor:
    """Return the cosines of one map with others, each seen as one vector with its whole batch."""
    own, *others = (F.normalize(x.flatten(), dim=0, eps=1e-8) for x in (student, *teachers))
    return torch.stack([own @ other for other in others])


def _choose(own: Tensor, teacher: Sequence[Tensor], method: str, pool: str) -> Tensor:
    """Return the feature of the teacher's block that the method chooses."""
    if method in ('smallest', 'largest'):
        units = [unit_over_batch(block) for block in teacher]
        cosines = block_cosines(own, units)
        distances = cosines if method == 'smallest' else -cosines
        # Searched from the end, so that the later of equal blocks is taken.
        index = len(units) - 1 - distances.flip(0).argmin()
        feats = torch.stack([pool_flat(unit, pool) for unit in units])
        # Selected on the device: nothing is read back.
        return feats.index_select(0, index.view(1)).squeeze(0)
    chosen = {'first': 0, 'last': -1}.get(method)
    if chosen is None:
        chosen = random.randrange(len(teacher))
    return pool_flat(unit_over_batch(teacher[chosen]), pool)


def _check_shapes(stage: int, student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    if not len(student) == len(teacher) == 4:
        raise ValueError(
            f"Stage {stage}: the student's block has shape {student}, the teacher's {teacher}, "
            'expected (B, C, H, W) of both; record them with crd_plugin.BlockOutputs.'
        )
    if student[2:] != teacher[2:]:
        raise ValueError(
            f"Stage {stage}: the student's map is {student[2:]} pixels, the teacher's "
            f'{teacher[2:]}; choose networks whose maps have the same size in each stage.'
        )
