"""Batches of all ranks as one, with gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dist import all_gather, all_reduce, get_rank, get_world_size
from torch import Tensor


def gather_sizes(size: int, device: torch.device) -> list[int]:
    """Gather the batch size of each rank, in rank order.

    The sizes are read back to the host: collectives need equal shapes, and a sampler may give ranks
    last batches of different sizes.

    Args:
        size (int): Batch size of this rank.
        device (torch.device): Where collectives take place.

    Returns:
        list[int]: One per rank.
    """
    if get_world_size() == 1:
        return [size]
    sizes = all_gather(torch.tensor([size], device=device))
    return torch.cat(sizes).tolist()


def own_part(sizes: Sequence[int]) -> slice:
    """Return where this rank's samples lie among those of all ranks.

    Args:
        sizes (Sequence[int]): From :func:`gather_sizes`.

    Returns:
        slice: Of the concatenated batches.
    """
    start = sum(sizes[: get_rank()])
    return slice(start, start + sizes[get_rank()])


@torch.no_grad()
def gather_rows(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """Concatenate the rows of all ranks, in rank order, without gradient.

    Args:
        rows (Tensor): Rows of this rank, ``(B, ...)``, any type.
        sizes (Sequence[int]): Batch size of each rank.

    Returns:
        Tensor: ``(sum of sizes, ...)``.
    """
    if len(sizes) == 1:
        return rows
    missing = max(sizes) - len(rows)
    if missing:
        rows = torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])])
    ranks = all_gather(rows.contiguous())
    return torch.cat([rank[:size] for rank, size in zip(ranks, sizes, strict=True)])


def pack(ids: Tensor, embeddings: Sequence[Tensor]) -> Tensor:
    """Lay ids and embeddings side by side, for one collective.

    Ids keep all their bits: an int64 is carried as one float64 or two float32 numbers, which are
    copied and never computed with.

    Args:
        ids (Tensor): An id or class of each sample, ``(B,)`` int64.
        embeddings (Sequence[Tensor]): Each ``(B, D)``, all float32 or all float64.

    Returns:
        Tensor: ``(B, 1 or 2 + sum of D)``.
    """
    bits = ids.contiguous().view(embeddings[0].dtype).view(len(ids), -1)
    return torch.cat([bits, *embeddings], dim=1)


def unpack(packed: Tensor, widths: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """Undo :func:`pack`.

    Args:
        packed (Tensor): From :func:`pack`.
        widths (Sequence[int]): Width D of each embedding.

    Returns:
        tuple[Tensor, list[Tensor]]: Ids ``(B,)`` int64 and the embeddings.
    """
    bits, *embeddings = packed.split([packed.size(1) - sum(widths), *widths], dim=1)
    return bits.detach().contiguous().view(torch.int64).view(-1), embeddings


def gather_batches(
    ids: Tensor, embeddings: Sequence[Tensor], sizes: Sequence[int]
) -> tuple[Tensor, list[Tensor]]:
    """Gather ids and embeddings of all ranks, in rank order, in one collective.

    The gradient of a gathered embedding is summed over the ranks and goes to the rank that it came
    from.

    Args:
        ids (Tensor): An id or class of each sample, ``(B,)`` int64.
        embeddings (Sequence[Tensor]): Each ``(B, D)``, all float32 or all float64.
        sizes (Sequence[int]): Batch size of each rank.

    Returns:
        tuple[Tensor, list[Tensor]]: Ids ``(sum of sizes,)`` and embeddings ``(sum of sizes, D)``.
    """
    if len(sizes) == 1:
        return ids, list(embeddings)
    gathered = _GatherRows.apply(pack(ids, embeddings), sizes)
    return unpack(gathered, [each.size(1) for each in embeddings])


class _GatherRows(torch.autograd.Function):
    """Rows of all ranks; backward sums over ranks.

    Every rank's loss depends on every row, hence the sum.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        ctx.sizes = sizes
        return gather_rows(rows, sizes)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.contiguous().clone()
        all_reduce(grad)
        return grad[own_part(ctx.sizes)], None
