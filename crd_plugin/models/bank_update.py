"""What a step leaves for a memory bank, gathered over the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmengine.dist import all_gather
from torch import Tensor

from .collectives import pack, unpack


class PendingUpdate(NamedTuple):
    """What one forward pass leaves for the bank.

    Attributes:
        sample_idx (Tensor): Row of each sample, ``(B,)`` int64.
        student (Tensor): Student embeddings, ``(B, D)``.
        teacher (Tensor): Teacher embeddings, ``(B, D)``.
        log_z (Tensor, optional): Logarithm of the two partition constants, ``(2,)`` float64, on the
            first step only.
        written (bool): The rows are written already: a captured step does so itself.
    """

    sample_idx: Tensor
    student: Tensor
    teacher: Tensor
    log_z: Tensor | None = None
    written: bool = False


def gather_updates(
    updates: Sequence[PendingUpdate], batch_size: int | None = None
) -> list[PendingUpdate]:
    """Gather staged updates of all ranks, in rank order, in one collective.

    A batch that is shorter than ``batch_size`` is filled by repeating its last entry, which does
    not change what is written.

    Args:
        updates (Sequence[PendingUpdate]): This rank's updates, one per bank.
        batch_size (int, optional): Most samples that any rank has in a step. Defaults to None: the
            ranks exchange their sizes first.

    Returns:
        list[PendingUpdate]: Updates of all ranks.

    Raises:
        RuntimeError: If a batch is larger than ``batch_size``.
    """
    sample_idx = updates[0].sample_idx
    size = sample_idx.numel()
    if batch_size is None:
        sizes = all_gather(sample_idx.new_tensor([size]))
        batch_size = int(torch.cat(sizes).max())
    if size > batch_size:
        raise RuntimeError(
            f"A batch has {size} samples, the data loader's batch_size is {batch_size}; give "
            'each sample of a batch one embedding.'
        )
    embeddings = [e.float() for update in updates for e in (update.student, update.teacher)]
    packed = pack(sample_idx, embeddings)
    packed = torch.cat([packed, packed[-1:].expand(batch_size - size, -1)])
    widths = [embedding.size(1) for embedding in embeddings]
    sample_idx, embeddings = unpack(torch.cat(all_gather(packed)), widths)
    pairs = zip(embeddings[::2], embeddings[1::2], strict=True)
    return [
        PendingUpdate(sample_idx, student, teacher, update.log_z)
        for update, (student, teacher) in zip(updates, pairs, strict=True)
    ]
