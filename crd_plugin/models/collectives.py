"""Batches of all ranks as one, with gradients."""

from typing import List, Sequence, Tuple

import torch
from mmengine.dist import all_gather, all_reduce, get_rank, get_world_size
from torch import Tensor


def gather_sizes(size: int, device: torch.device) -> List[int]:
    """Batch size of each rank, in rank order; a collective if there are many.

    The sizes are read back to the host: collectives need equal shapes, and a
    sampler may give ranks last batches of different sizes.

    Args:
        size (int): Of this rank.
        device (torch.device): Where collectives take place.

    Returns:
        list[int]: One a rank.
    """
    if get_world_size() == 1:
        return [size]
    sizes = all_gather(torch.tensor([size], device=device))
    return torch.cat(sizes).tolist()


def own_part(sizes: Sequence[int]) -> slice:
    """Where this rank's samples lie among those of all ranks.

    Args:
        sizes (Sequence[int]): From :func:`gather_sizes`.

    Returns:
        slice: Of the concatenated batches.
    """
    begin = sum(sizes[: get_rank()])
    return slice(begin, begin + sizes[get_rank()])


def gather_batches(
    sample_key: Tensor, embeddings: Sequence[Tensor], sizes: Sequence[int]
) -> Tuple[Tensor, List[Tensor]]:
    """Ids and embeddings of all ranks, in rank order, in one collective.

    The gradient of a gathered embedding is summed over the ranks and goes to
    the rank that it came from.

    Args:
        sample_key (Tensor): An id or class of each sample, ``(B,)`` int64.
        embeddings (Sequence[Tensor]): Each ``(B, D)``, all float32 or all
            float64.
        sizes (Sequence[int]): Batch size of each rank.

    Returns:
        tuple[Tensor, list[Tensor]]: Ids ``(sum of sizes,)`` and embeddings
        ``(sum of sizes, D)``.
    """
    if len(sizes) == 1:
        return sample_key, list(embeddings)
    # Bits of an int64 as one float64 or two float32: copied, never computed
    # with.
    bits = sample_key.contiguous().view(embeddings[0].dtype)
    bits = bits.view(sample_key.numel(), -1)
    widths = [bits.size(1), *(each.size(1) for each in embeddings)]
    packed = _GatherRows.apply(torch.cat([bits, *embeddings], 1), sizes)
    bits, *gathered = packed.split(widths, dim=1)
    keys = bits.detach().contiguous().view(torch.int64).view(-1)
    return keys, gathered


@torch.no_grad()
def gather_rows(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """Rows of all ranks, in rank order, without gradient.

    Args:
        rows (Tensor): Of this rank, ``(B, ...)``, any type.
        sizes (Sequence[int]): Batch size of each rank.

    Returns:
        Tensor: ``(sum of sizes, ...)``.
    """
    missing = max(sizes) - len(rows)
    if missing:
        rows = torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])])
    ranks = all_gather(rows.contiguous())
    return torch.cat([rank[:size] for rank, size in zip(ranks, sizes)])


class _GatherRows(torch.autograd.Function):
    """Rows of all ranks; backward sums over ranks.

    Source: the gradient of a concatenation, of which each rank holds a part.
    Every rank's loss depends on every row, hence the sum.
    """

    @staticmethod
    def forward(ctx, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        ctx.sizes = sizes
        return gather_rows(rows, sizes)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> Tuple[Tensor, None]:
        grad = grad.contiguous().clone()
        all_reduce(grad)
        return grad[own_part(ctx.sizes)], None
