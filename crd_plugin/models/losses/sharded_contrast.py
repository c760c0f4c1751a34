"""Contrast of a batch with a memory bank that is split over the ranks."""
import math
from typing import Optional, Tuple

import torch
from mmengine.dist import all_reduce
from torch import Tensor

from crd_plugin.ops import (ContrastResult, ShardNegatives, draw_shard,
                            full_precision, given_shard, info_nce_of_sums,
                            log_partition_of_sums, merge_softmax, nce_of_sums,
                            shard_nce, shard_softmax)

from ..collectives import gather_rows, gather_sizes, own_part
from ..sharded_bank import ShardedBank


@torch.no_grad()
def draw_from_shards(bank: ShardedBank, sample_idx: Tensor,
                     contrast_idx: Optional[Tensor], num_negatives: int,
                     rule: str, exclude: str,
                     dtype: torch.dtype) -> ShardNegatives:
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
        return given_shard(
            bank.shard('instance'), gather_rows(contrast_idx, sizes), sizes,
            dtype)
    ids = gather_rows(sample_idx, sizes)
    labels = bank.labels[ids] if exclude == 'class' else None
    return draw_shard(
        bank.shard(exclude), ids, sizes, num_negatives, rule, labels)


def contrast_with_shards(
    s_feats: Tensor, t_feats: Tensor, bank: ShardedBank,
    negatives: ShardNegatives, objective: str, temperature: float
) -> Tuple[ContrastResult, ContrastResult, Optional[Tensor]]:
    """Both directions of the objective for this rank's anchors.

    Collective: every rank must call it. The anchors of all ranks are gathered
    and scored against the own rows; loss and anchor gradient are summed over
    the ranks.

    Args:
        s_feats (Tensor): Student embeddings, ``(b, D)``.
        t_feats (Tensor): Teacher embeddings, ``(b, D)``.
        bank (ShardedBank): The bank.
        negatives (ShardNegatives): From :func:`draw_from_shards`.
        objective (str): ``'nce'`` or ``'infonce'``.
        temperature (float): tau.

    Returns:
        tuple: Results of student's and teacher's anchors, and ``(2,)`` log of
        Z if it has to be set, else None.
    """
    own, width = own_part(negatives.sizes), s_feats.size(1)
    feats = [full_precision(side.detach()) for side in (s_feats, t_feats)]
    gathered = gather_rows(torch.cat(feats, 1), negatives.sizes)
    sides = tuple(
        zip((s_feats, t_feats), gathered.split(width, 1),
            (bank.teacher, bank.student)))
    # Of a side: anchors of this rank, anchors of all, rows to score.
    if objective == 'infonce':
        sums, largest = _softmax_sums(sides, negatives, temperature)
        student, teacher = (info_nce_of_sums(anchor, total[own], top[own],
                                             temperature)
                            for (anchor, _,
                                 _), total, top in zip(sides, sums, largest))
        return student, teacher, None
    log_z = new_log_z = None
    if bank.has_z:
        log_z = (bank.log_z_student, bank.log_z_teacher)
    else:
        sums, largest = _softmax_sums(sides, negatives, temperature)
        log_z = new_log_z = torch.stack([
            log_partition_of_sums(total, top, negatives.num_negatives)
            for total, top in zip(sums, largest)
        ]) + math.log(bank.num_samples)
    sums = torch.stack([
        shard_nce(every, rows, negatives, z, temperature)
        for (_, every, rows), z in zip(sides, log_z)
    ])
    all_reduce(sums)
    student, teacher = (nce_of_sums(anchor, total[own], negatives, temperature)
                        for (anchor, _, _), total in zip(sides, sums))
    return student, teacher, new_log_z


def _softmax_sums(sides, negatives: ShardNegatives,
                  temperature: float) -> Tuple[Tensor, Tensor]:
    """Parts of all shards summed, ``(2, B, ...)``, and their scale."""
    log_sums, parts = zip(*(shard_softmax(every, rows, negatives, temperature)
                            for _, every, rows in sides))
    largest = torch.stack(log_sums)
    all_reduce(largest, 'max')
    sums = torch.stack([
        merge_softmax(log_sum, top, part)
        for log_sum, top, part in zip(log_sums, largest, parts)
    ])
    all_reduce(sums)
    return sums, largest
