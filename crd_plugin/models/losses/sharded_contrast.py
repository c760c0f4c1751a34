"""Contrast of a batch with a memory bank that is split over the ranks."""

import math
from typing import Optional, Sequence, Tuple

import torch
from mmengine.dist import all_reduce
from torch import Tensor

from crd_plugin.ops import (
    ContrastResult,
    ShardNegatives,
    draw_shard,
    full_precision,
    given_shard,
    info_nce_of_sums,
    log_partition_of_sums,
    merge_softmax,
    nce_of_sums,
    shard_nce,
    shard_softmax,
)

from ..collectives import gather_rows, gather_sizes, own_part
from ..sharded_bank import ShardedBank


@torch.no_grad()
def draw_from_shards(
    bank: ShardedBank,
    sample_idx: Tensor,
    contrast_idx: Optional[Tensor],
    num_negatives: int,
    rule: str,
    exclude: str,
    dtype: torch.dtype,
) -> ShardNegatives:
    """Negatives of all ranks' batches on this rank's rows.

    Collective: every rank must call it.

    Args:
        bank (ShardedBank): The bank.
        sample_idx (Tensor): Row of each sample of this rank, ``(b,)`` int64.
        contrast_idx (Tensor, optional): Given rows, ``(b, 1 + K)``.
        num_negatives (int): K.
        rule (str): ``'sampled'``, ``'shared'`` or ``'all'``.
        exclude (str): ``'class'`` or ``'instance'``.
        dtype (torch.dtype): Of the embeddings.

    Returns:
        ShardNegatives: For :func:`contrast_with_shards`.
    """
    sizes = gather_sizes(sample_idx.numel(), sample_idx.device)
    if contrast_idx is not None:
        return given_shard(bank.shard('instance'), gather_rows(contrast_idx, sizes), sizes, dtype)
    ids = gather_rows(sample_idx, sizes)
    labels = bank.labels[ids] if exclude == 'class' else None
    return draw_shard(bank.shard(exclude), ids, sizes, num_negatives, rule, labels)


def contrast_with_shards(
    anchors: Tensor,
    bank: ShardedBank,
    negatives: ShardNegatives,
    objective: str,
    temperature: float,
) -> Tuple[ContrastResult, Optional[Tensor]]:
    """Both directions of the objective for this rank's anchors.

    Collective: every rank must call it. The anchors of all ranks are gathered
    and scored against the own rows; loss and anchor gradient are summed over
    the ranks.

    Args:
        anchors (Tensor): Embeddings of student and teacher, ``(2, b, D)``.
        bank (ShardedBank): The bank.
        negatives (ShardNegatives): From :func:`draw_from_shards`.
        objective (str): ``'nce'`` or ``'infonce'``.
        temperature (float): tau.

    Returns:
        tuple[ContrastResult, Tensor | None]: Of student's and teacher's
        anchors, and ``(2,)`` log of Z if it has to be set.
    """
    own, width = own_part(negatives.sizes), anchors.size(2)
    # Side by side, for one collective.
    gathered = gather_rows(
        full_precision(anchors.detach()).transpose(0, 1).flatten(1), negatives.sizes
    )
    every = gathered.view(-1, 2, width).transpose(0, 1)
    rows = (bank.teacher, bank.student)
    if objective == 'infonce':
        sums, largest = _softmax_sums(every, rows, negatives, temperature)
        result = info_nce_of_sums(anchors, sums[:, own], largest[:, own], temperature)
        return result, None
    log_z, new_log_z = bank.log_z, None
    if not bank.has_z:
        sums, largest = _softmax_sums(every, rows, negatives, temperature)
        log_z = new_log_z = math.log(bank.num_samples) + log_partition_of_sums(
            sums, largest, negatives.num_negatives
        )
    sums = shard_nce(every, rows, negatives, log_z, temperature)
    all_reduce(sums)
    return nce_of_sums(anchors, sums[:, own], negatives, temperature), new_log_z


def _softmax_sums(
    every: Tensor, rows: Sequence[Tensor], negatives: ShardNegatives, temperature: float
) -> Tuple[Tensor, Tensor]:
    """Parts of all shards summed, ``(2, B, ...)``, and their scale."""
    log_sum, part = shard_softmax(every, rows, negatives, temperature)
    largest = log_sum.clone()
    all_reduce(largest, 'max')
    sums = merge_softmax(log_sum, largest, part)
    all_reduce(sums)
    return sums, largest
