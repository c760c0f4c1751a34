"""Feature maps of two networks: one shape, cosine similarity, pooling."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .features import full_precision

__all__ = ['block_cosines', 'pad_channels', 'pool_flat', 'unit_over_batch']

# Norms below this are treated as zero.
_EPS = 1e-12

# Side of the pooling windows of `pool='avg8'`, in pixels.
_WINDOW = 8


def unit_over_batch(blocks: Tensor) -> Tensor:
    """Divide each unit by its L2 norm over the batch.

    Source: kaiqi123/CKTF ``distiller_zoo/ST.py``. Differs: a unit that is zero for the whole
    batch gets zero gradient; there it gets a gradient multiplied by 1e12.

    Args:
        blocks (Tensor): Output of a block, ``(B, C, H, W)`` float.

    Returns:
        Tensor: The same shape, float32 (float64 for float64).
    """
    blocks = full_precision(blocks)  # The squares overflow in float16.
    # On a CPU ten times as fast as a norm along the first axis.
    square = blocks.square().sum(0, keepdim=True)
    scale = torch.where(square > _EPS**2, square.clamp_min(_EPS**2).rsqrt(), 0.0)
    return blocks * scale


def pad_channels(blocks: Tensor, channels: int) -> Tensor:
    """Pad with channels of zeros, as many in front as behind.

    A block with more channels is cropped on both sides, as in the published code.

    Args:
        blocks (Tensor): ``(B, C, H, W)``.
        channels (int): Number of channels of the result; differs from C by an even number.

    Returns:
        Tensor: ``(B, channels, H, W)``.

    Raises:
        ValueError: If the difference is odd.
    """
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
    """Return the cosine similarity of a student block with each of several teacher blocks.

    Each block is compared as one vector that holds the whole batch.

    Args:
        student (Tensor): ``(B, C, H, W)``.
        teachers (Sequence[Tensor]): Teacher blocks of the same shape.

    Returns:
        Tensor: ``(len(teachers),)`` without gradient; 0 for a block of zeros.
    """
    own, *others = (F.normalize(x.flatten(), dim=0, eps=1e-8) for x in (student, *teachers))
    return torch.stack([own @ other for other in others])


def pool_flat(blocks: Tensor, pool: str) -> Tensor:
    """Average-pool a map and flatten the result.

    Args:
        blocks (Tensor): ``(B, C, H, W)``.
        pool (str): ``'avg8'``: the mean of each 8x8 window, of the whole map along a side shorter
            than 8; ``'global'``: the mean of the map.

    Returns:
        Tensor: ``(B, C * h * w)`` with h = H // 8 and w = W // 8, at least 1.
    """
    if pool == 'global':
        return blocks.mean(dim=(2, 3))
    window = [min(_WINDOW, side) for side in blocks.shape[2:]]
    return F.avg_pool2d(blocks, window).flatten(1)
