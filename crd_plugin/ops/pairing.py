"""Bringing blocks of two networks to one shape and comparing them."""

from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .features import full_precision

__all__ = ['block_cosines', 'pad_channels', 'pool_flat', 'unit_over_batch']

# Below this a norm counts as zero.
_EPS = 1e-12

# Side of the windows of `pool='avg8'`, in pixels.
_WINDOW = 8


def unit_over_batch(blocks: Tensor) -> Tensor:
    """Divide each unit by its L2 norm over the batch.

    Source: kaiqi123/CKTF ``distiller_zoo/ST.py``. Differs: a unit that is
    zero in the whole batch gets no gradient, where there it gets one times
    1e12, which only a ReLU behind it takes away again.

    Args:
        blocks (Tensor): Output of a block, ``(B, C, H, W)`` float.

    Returns:
        Tensor: The same shape, float32 (float64 for float64).
    """
    blocks = full_precision(blocks)  # In float16 the squares overflow.
    # Ten times as fast on a CPU as a norm along the first axis.
    square = blocks.square().sum(0, keepdim=True)
    scale = torch.where(square > _EPS**2, square.clamp_min(_EPS**2).rsqrt(), 0.0)
    return blocks * scale


def pad_channels(blocks: Tensor, channels: int) -> Tensor:
    """Add channels of zeros, as many in front as behind.

    A block with more channels is cut on both sides instead, as in the
    published code.

    Args:
        blocks (Tensor): ``(B, C, H, W)``.
        channels (int): Channels wanted; differs from C by an even number.

    Returns:
        Tensor: ``(B, channels, H, W)``.

    Raises:
        ValueError: If the difference is odd.
    """
    more = channels - blocks.size(1)
    if more % 2:
        raise ValueError(
            f'A block of the student has {blocks.size(1)} channels, the '
            f"teacher's {channels}: zeros are added equally in front and "
            'behind, so the difference must be even; choose another width of '
            'the student.'
        )
    if not more:
        return blocks
    return F.pad(blocks, (0, 0, 0, 0, more // 2, more // 2))


@torch.no_grad()
def block_cosines(student: Tensor, teachers: Sequence[Tensor]) -> Tensor:
    """Cosines between a block of the student and each of the teacher's.

    Each block, the whole batch of it, counts as one vector.

    Args:
        student (Tensor): ``(B, C, H, W)``.
        teachers (Sequence[Tensor]): Of the same shape.

    Returns:
        Tensor: One cosine each, ``(len(teachers),)``, without gradient.
    """
    own = student.flatten()
    norm = own.norm()
    cosines = []
    for teacher in teachers:
        other = teacher.flatten()
        cosines.append(own @ other / (norm * other.norm()).clamp_min(1e-8))
    return torch.stack(cosines)


def pool_flat(blocks: Tensor, pool: str) -> Tensor:
    """Pool a map and flatten what remains.

    Args:
        blocks (Tensor): ``(B, C, H, W)``.
        pool (str): ``'avg8'``: the mean of each 8x8 window, of the whole map
            where a side is shorter; ``'global'``: the mean of the map.

    Returns:
        Tensor: ``(B, C * h * w)`` with h = H // 8 and w = W // 8, at least 1.
    """
    if pool == 'global':
        return blocks.mean(dim=(2, 3))
    window = [min(_WINDOW, side) for side in blocks.shape[2:]]
    return F.avg_pool2d(blocks, window).flatten(1)
