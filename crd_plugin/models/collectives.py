"""Batches of all ranks as one, with gradients."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dist import all_gather, all_reduce, get_rank, get_world_size
from torch import Tensor


def gather_counts(counts: Sequence[int], device: torch.device) -> list[list[int]]:
    """Gather as many counts of each rank, in rank order, to the host, which waits for them."""
    return torch.stack(all_gather(torch.tensor(counts, device=device))).tolist()


def gather_sizes(size: int, device: torch.device) -> list[int]:
    """Gather the batch size of each rank, in rank order: a sampler may give unequal last ones."""
    if get_world_size() == 1:
        return [size]
    return [size for (size,) in gather_counts([size], device)]


def own_part(sizes: Sequence[int]) -> slice:
    """Return where this rank's samples lie among those of all ranks."""
    start = sum(sizes[: get_rank()])
    return slice(start, start + sizes[get_rank()])


@torch.no_grad()
def gather_rows(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """Concatenate the rows ``(B, ...)`` of all ranks, of these sizes, without gradient."""
    if len(sizes) == 1:
        return rows
    missing = max(sizes) - len(rows)
    if missing:
        rows = torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])])
    ranks = all_gather(rows.contiguous())
    return torch.cat([rank[:size] for rank, size in zip(ranks, sizes, strict=True)])


def pack(ids: Tensor, embeddings: Sequence[Tensor]) -> Tensor:
    """Lay int64 ids ``(B,)`` and embeddings ``(B, D)`` of one type side by side."""
    # Ids keep all their bits: an int64 is carried as one float64 or two float32 numbers, which are
    # copied and never computed with.
    bits = ids[:, None].contiguous().view(embeddings[0].dtype)
    return torch.cat([bits, *embeddings], dim=1)


def unpack(packed: Tensor, widths: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """Undo :func:`pack`: return ids and embeddings of these widths."""
    bits, *embeddings = packed.split([packed.size(1) - sum(widths), *widths], dim=1)
    return bits.detach().contiguous().view(torch.int64).view(-1), embeddings


def gather_batches(
    ids: Tensor, embeddings: Sequence[Tensor], sizes: Sequence[int]
) -> tuple[Tensor, list[Tensor]]:
    """Gather ids and embeddings, as for :func:`pack`, of all ranks, in one collective."""
    if len(sizes) == 1:
        return ids, list(embeddings)
    gathered = _GatherRows.apply(pack(ids, embeddings), sizes)
    return unpack(gathered, [each.size(1) for each in embeddings])


class _GatherRows(torch.autograd.Function):
    """Rows of all ranks. Every rank's loss depends on every row: gradients are summed."""

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
