"""Maths of the memory bank: initial rows, momentum update, its order over ranks."""

from collections.abc import Iterator

import torch
from torch import Tensor

# Rows that are drawn at once, so that a rank that keeps some of them needs little memory for the
# others.
_ROWS_AT_ONCE = 1 << 16


def initial_rows(
    num_rows: int, embed_dim: int, generator: torch.Generator
) -> Iterator[tuple[int, Tensor]]:
    """Draw the rows of a new bank: uniform in [-a, a], a = 1 / sqrt(D / 3); norm about 1.

    Source: HobbitLong/RepDistiller ``crd/memory.py``.

    Args:
        num_rows (int): Rows N.
        embed_dim (int): Width D of a row.
        generator (torch.Generator): Source of randomness, on the CPU wherever the bank is.

    Yields:
        tuple[int, Tensor]: First row and rows ``(n, D)`` float32 of a part.
    """
    bound = (embed_dim / 3) ** -0.5
    for start in range(0, num_rows, _ROWS_AT_ONCE):
        rows = torch.empty(min(_ROWS_AT_ONCE, num_rows - start), embed_dim)
        yield start, rows.uniform_(-bound, bound, generator=generator)


def momentum_rows(old: Tensor, embedding: Tensor, momentum: float) -> Tensor:
    """Return the new rows ``unit(m * old + (1 - m) * embedding)`` in the type of the old."""
    kept = old.to(torch.promote_types(old.dtype, torch.float32))
    mixed = momentum * kept + (1 - momentum) * embedding.to(kept.dtype)
    norm = torch.linalg.vector_norm(mixed, dim=-1, keepdim=True)
    # Opposite embeddings cancel at m = 0.5: then the row keeps its old value.
    return torch.where(norm == 0, kept, mixed / norm).to(old.dtype)


def last_occurrence(sample_idx: Tensor) -> Tensor:
    """Return, for every id ``(B,)``, the last position: ``[2, 1, 2]`` for ``[7, 3, 7]``."""
    # So ids that occur twice are written with one value, in whatever order a device writes.
    sorted_idx, order = torch.sort(sample_idx, stable=True)
    end = torch.searchsorted(sorted_idx, sample_idx, right=True) - 1
    return order[end]
