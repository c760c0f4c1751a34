"""Maths of the memory bank: momentum update and its order across ranks."""

from concurrent.futures import ThreadPoolExecutor
from typing import Iterator, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

__all__ = [
    'initial_pieces',
    'initial_rows',
    'last_occurrence',
    'momentum_rows',
    'pack_update',
    'unpack_update',
]

# Numbers that are drawn at once; a larger bank is drawn in pieces.
_PIECE = 1 << 20


@torch.inference_mode(False)
def initial_rows(num_rows: int, embed_dim: int, generator: torch.Generator) -> Tensor:
    """Rows of a fresh bank: uniform in [-a, a], a = 1 / sqrt(D / 3).

    Their norm is about 1; they are not normalised until first written, as in
    HobbitLong/RepDistiller ``crd/memory.py``.

    A large bank is drawn in pieces, each from a seed of its own that
    ``generator`` gives; on a CPU by as many threads as torch uses. The
    numbers do not depend on how many these are.

    Args:
        num_rows (int): N.
        embed_dim (int): D.
        generator (torch.Generator): Source of randomness; its device is that
            of the rows.

    Returns:
        Tensor: ``(N, D)`` float32.
    """
    rows = torch.empty(num_rows, embed_dim, device=generator.device)
    pieces, seeds = _pieces(num_rows, embed_dim, generator)
    if seeds is None:
        return _uniform(rows, generator)

    def draw(piece: slice, seed: int) -> None:
        _uniform(rows[piece], _seeded(generator.device, seed))

    if rows.device.type != 'cpu':
        # A thread has a stream of its own that nobody waits for.
        for piece, seed in zip(pieces, seeds):
            draw(piece, seed)
        return rows
    # torch draws on one thread, and lets go of Python's lock meanwhile.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for _ in pool.map(draw, pieces, seeds):
            pass
    return rows


def initial_pieces(
    num_rows: int, embed_dim: int, generator: torch.Generator
) -> Iterator[Tuple[slice, Tensor]]:
    """The same rows as of :func:`initial_rows`, a few of them at a time.

    For a bank of which only some rows are kept.

    Args:
        num_rows (int): N.
        embed_dim (int): D.
        generator (torch.Generator): Source of randomness.

    Yields:
        tuple[slice, Tensor]: Which rows, and the rows.
    """
    pieces, seeds = _pieces(num_rows, embed_dim, generator)
    for number, piece in enumerate(pieces):
        rows = torch.empty(piece.stop - piece.start, embed_dim, device=generator.device)
        source = generator
        if seeds is not None:
            source = _seeded(generator.device, seeds[number])
        yield piece, _uniform(rows, source)


def _pieces(
    num_rows: int, embed_dim: int, generator: torch.Generator
) -> Tuple[List[slice], Optional[List[int]]]:
    """Rows that are drawn at once, and seeds if there are several such."""
    size = max(1, _PIECE // embed_dim)
    pieces = [slice(begin, min(begin + size, num_rows)) for begin in range(0, num_rows, size)]
    if len(pieces) == 1:
        return pieces, None
    seeds = torch.randint(1 << 62, (len(pieces),), device=generator.device, generator=generator)
    return pieces, seeds.tolist()


def _seeded(device: torch.device, seed: int) -> torch.Generator:
    """A generator of its own for a piece."""
    return torch.Generator(device).manual_seed(seed)


def _uniform(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Fill rows in place."""
    bound = (rows.size(1) / 3) ** -0.5
    return rows.uniform_(-bound, bound, generator=generator)


def momentum_rows(old: Tensor, embedding: Tensor, momentum: float) -> Tensor:
    """New rows ``unit(m * old + (1 - m) * embedding)``.

    A row whose sum has no length (opposite embeddings, m = 0.5) keeps its
    old value: dividing by its norm, as the public code does, gives NaN.

    Args:
        old (Tensor): Rows in the bank, ``(..., D)`` float.
        embedding (Tensor): New embeddings, ``(..., D)`` float.
        momentum (float): Weight of the OLD row, [0, 1).

    Returns:
        Tensor: ``(..., D)``, in the dtype of ``old``.
    """
    compute = torch.promote_types(old.dtype, torch.float32)
    kept = old.to(compute)
    mixed = (momentum * kept).add_(embedding.to(compute), alpha=1 - momentum)
    norm = torch.linalg.vector_norm(mixed, dim=-1, keepdim=True)
    return torch.where(norm == 0, kept, mixed / norm).to(old.dtype)


def last_occurrence(sample_idx: Tensor) -> Tensor:
    """Position of the last entry that has the same id, for every entry.

    With it, ids that occur twice (a sampler pads its last batch by repeating
    samples) are written with one and the same value, so the result does not
    depend on the order in which a device writes.

    Args:
        sample_idx (Tensor): Ids, ``(B,)`` int64.

    Returns:
        Tensor: Positions, ``(B,)`` int64. For ``[7, 3, 7]``: ``[2, 1, 2]``.
    """
    sorted_idx, order = torch.sort(sample_idx, stable=True)
    end = torch.searchsorted(sorted_idx, sample_idx, right=True) - 1
    return order[end]


def pack_update(sample_idx: Tensor, embeddings: Sequence[Tensor], length: int) -> Tensor:
    """Lay ids and embeddings side by side, for one collective a step.

    Ids keep all their bits: an int64 is carried as two float32. A batch that
    is shorter than ``length`` is filled by repeating its last entry, which
    :func:`last_occurrence` makes harmless.

    Args:
        sample_idx (Tensor): Ids, ``(B,)`` int64.
        embeddings (Sequence[Tensor]): Each ``(B, D)`` float.
        length (int): Entries to fill up to, at least B.

    Returns:
        Tensor: ``(length, 2 + sum of D)`` float32.
    """
    bits = sample_idx.contiguous().view(torch.float32).view(-1, 2)
    packed = torch.cat([bits, *(e.float() for e in embeddings)], dim=1)
    missing = length - packed.size(0)
    if missing:
        packed = torch.cat([packed, packed[-1:].expand(missing, -1)])
    return packed


def unpack_update(packed: Tensor, widths: Sequence[int]) -> Tuple[Tensor, List[Tensor]]:
    """Undo :func:`pack_update`.

    Args:
        packed (Tensor): ``(B, 2 + sum of widths)`` float32.
        widths (Sequence[int]): D of each embedding.

    Returns:
        tuple[Tensor, list[Tensor]]: Ids ``(B,)`` int64 and the embeddings.
    """
    bits, *embeddings = packed.split([2, *widths], dim=1)
    sample_idx = bits.contiguous().view(torch.int64).view(-1)
    return sample_idx, embeddings
