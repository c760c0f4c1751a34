"""The contrastive objectives of CRD against a memory bank.

Loss and anchor gradient come out of one pass over the scored rows: scores are made a piece at a
time, added to the sums of their anchors and dropped, so memory does not grow with the number of
negatives. Rows of the bank need no gradient. Everything is computed in float32 (float64 for float64
embeddings) whatever autocast says, because exp(1 / 0.07) overflows float16.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from .features import full_precision, no_autocast
from .negatives import Negatives

# Added to K / N in the denominators of the public code.
EPS = 1e-7

# softplus(x) = x from here on: exp(-40) vanishes in float64 too.
_LINEAR = 40.0


class ContrastResult(NamedTuple):
    """What an objective returns for E directions and B anchors."""

    loss: Tensor  # Mean over the anchors, (E,), differentiable with respect to them.
    positive_loss: Tensor  # -log h of each positive pair, h the critic, (E, B), without gradient.


def nce(
    anchor: Tensor,
    banks: Sequence[Tensor],
    negatives: Negatives,
    log_z: Tensor,
    temperature: float,
    kernel: str = 'torch',
) -> ContrastResult:
    """Noise-contrastive objective of CRD.

    With ``s = <g, v> / tau``, ``P = e^s / Z`` and ``c = K / N`` the loss of an anchor is ``-log h``
    of its positive, ``h = P / (P + c + eps)``, minus the sum of ``log (c / (P + c + eps))`` over
    its negatives.

    Source: Tian et al., arXiv:1910.10699, eq. 17-18; numbers of HobbitLong/RepDistiller
    ``crd/criterion.py``, including its ``eps``, which the paper does not have.

    Args:
        anchor (Tensor): Embeddings g of E directions, ``(E, B, D)`` float.
        banks (Sequence[Tensor]): Rows that each direction is scored against, E of ``(N, D)`` float;
            of a sharded bank the rows of this rank.
        negatives (Negatives): Positive and negatives of each anchor.
        log_z (Tensor): Logarithm of the partition constants Z, ``(E,)``.
        temperature (float): tau.
        kernel (str): ``'torch'``, or ``'triton'`` for float32 embeddings and drawn negatives.

    Returns:
        ContrastResult: Loss of each direction, ``-log h`` of each positive.
    """
    num_negatives = negatives.num_negatives
    noise = num_negatives / negatives.num_rows
    with torch.no_grad(), no_autocast(anchor):
        query = full_precision(anchor.detach()) / temperature
        # P / (c + eps) = exp(s - shift), so both logarithms are softplus of it.
        shift = (log_z + math.log(noise + EPS)).to(query.dtype)
        slots = negatives.shards.gather(query)[:, negatives.anchors]
        if kernel == 'triton' and slots.dtype == torch.float32 and negatives.counts is None:
            from .triton_contrast import scored_pass
        else:
            scored_pass = _scored_pass
        loss, grad, left_out = scored_pass(slots, banks, negatives, shift)
        loss, grad = negatives.collect(loss).sum(2), negatives.collect(grad).sum(2)
        weight, loss, grad, positive = _sum_shards(banks, negatives, left_out, loss, grad)
        loss, grad = loss * weight, grad * weight[..., None]
        below = shift[:, None] - (query * positive).sum(-1)
        positive_loss = F.softplus(below, threshold=_LINEAR)
        grad -= positive * torch.sigmoid(below)[..., None]
        # The last term is c / (c + eps), the numerator of the negatives.
        losses = loss + positive_loss + num_negatives * math.log1p(EPS / noise)
    losses = KnownGradient.apply(anchor, losses, grad / temperature)
    return ContrastResult(losses.mean(-1), positive_loss)


def info_nce(
    anchor: Tensor, banks: Sequence[Tensor], negatives: Negatives, temperature: float
) -> ContrastResult:
    """Softmax cross-entropy of the positive against the negatives; arguments as for :func:`nce`.

    The ablation of the CRD paper (section 4.4, "InfoNCE"): no partition constant and no noise rate.

    Returns:
        ContrastResult: Loss of each direction, and minus the log-probability of each positive.
    """
    with torch.no_grad(), no_autocast(anchor):
        query = full_precision(anchor.detach()) / temperature
        log_sum, mean_row, positive = _softmax_sums(query, banks, negatives)
        score = (query * positive).sum(-1)
        total = torch.logaddexp(score, log_sum)
        grad = (log_sum - total).exp()[..., None] * (mean_row - positive)
        losses = total - score
    found = KnownGradient.apply(anchor, losses, grad / temperature)
    return ContrastResult(found.mean(-1), losses)


@torch.no_grad()
def partition_sums(
    anchor: Tensor, banks: Sequence[Tensor], negatives: Negatives, temperature: float
) -> tuple[Tensor, Tensor]:
    """Sum exp(s), whose mean is Z / N, over the positive and K negatives of each anchor.

    An anchor whose draw holds no negative is left out. Arguments as for :func:`nce`. Source:
    HobbitLong/RepDistiller ``crd/memory.py``, which sets ``Z = N * mean(exp(s))`` on the first
    batch and keeps it.

    Returns:
        tuple[Tensor, Tensor]: Logarithm of the sum, and the number of its terms, both ``(E,)``
        float64.
    """
    with no_autocast(anchor):
        query = full_precision(anchor) / temperature
        log_sum, _, positive = _softmax_sums(query, banks, negatives)
        total = torch.logaddexp((query * positive).sum(-1), log_sum).double()
    counted = log_sum != -math.inf
    log_sum = total.masked_fill(~counted, -math.inf).logsumexp(-1)
    return log_sum, counted.sum(-1).double() * (1 + negatives.num_negatives)


def critic_loss(
    score: Tensor, positive: Tensor, weight: Tensor, log_mean: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Objective of anchors against a batch as the bank, N = M rows and K = M - 1, by autograd.

    Args:
        score (Tensor): Anchors against the batch, ``(A, M)`` float32 or float64, divided by the
            temperature; M at least 2.
        positive (Tensor): Column of each anchor's positive, ``(A,)`` int64.
        weight (Tensor): How often each sample counts as a negative, ``(A, M)``.
        log_mean (Tensor, optional): Logarithm of Z / N for the objective of :func:`nce`; None for
            that of :func:`info_nce`.

    Returns:
        tuple[Tensor, Tensor]: Loss of each anchor, and ``log h`` of its positive without gradient,
        both ``(A,)``.
    """
    column = positive[:, None]
    own = score.gather(1, column).squeeze(1)
    if log_mean is None:
        loss = torch.logsumexp(score + weight.scatter(1, column, 1).log(), 1) - own
        return loss, -loss.detach()
    num_rows = score.size(1)
    num_negatives = num_rows - 1
    noise = num_negatives / num_rows
    shift = (log_mean + math.log(num_rows) + math.log(noise + EPS)).to(score.dtype)
    positive_loss = F.softplus(shift - own, threshold=_LINEAR)
    negative_loss = (F.softplus(score - shift, threshold=_LINEAR) * weight).sum(1)
    constant = num_negatives * math.log1p(EPS / noise)
    return positive_loss + negative_loss + constant, -positive_loss.detach()


# Direction and sets, an index of (E, S, ...); scores of their anchors against some rows of these
# sets, (s, b, m), -inf where a row is left out; these rows, (s, m, D); how often each counts.
_Piece: TypeAlias = tuple[tuple[int, slice], Tensor, Tensor, Tensor | None]


def _pieces(
    slots: Tensor, banks: Sequence[Tensor], negatives: Negatives, left_out: Tensor
) -> Iterator[_Piece]:
    """Score the anchors of all sets, ``(E, S, b, D)``; count rows left out in ``(S, b)``."""
    num_sets, size, width = slots.shape[1:]
    sets_at_once, limit = _piece_size(slots)
    rows_at_once = min(negatives.rows_per_set, max(1, limit // (sets_at_once * size)))
    # All pieces use the same memory: a CPU would take pages from the system for each of them.
    memory = slots.new_empty(sets_at_once * size * rows_at_once)
    for first in range(0, num_sets, sets_at_once):
        sets = slice(first, first + sets_at_once)
        for start in range(0, negatives.rows_per_set, rows_at_once):
            columns = slice(start, start + rows_at_once)
            index = None if negatives.rows is None else negatives.rows[sets, columns].flatten()
            excluded = counts = None
            row_key, anchor_key = negatives.row_key, negatives.anchor_key
            if row_key is not None and anchor_key is not None:
                own = anchor_key[negatives.anchors[sets], None]
                key = row_key[columns] if index is None else row_key[index]
                excluded = own == key.view(sets_at_once, 1, -1)
                left_out[sets] += excluded.sum(-1)
            elif negatives.counts is not None:
                counts = negatives.counts[None, :, columns]
                excluded = counts == 0
            for direction, bank in enumerate(banks):
                rows = bank[columns] if index is None else bank.index_select(0, index)
                rows = rows.to(slots.dtype).view(sets_at_once, -1, width)
                score = memory[: sets_at_once * size * rows.size(1)].view(sets_at_once, size, -1)
                torch.bmm(slots[direction, sets], rows.mT, out=score)
                if excluded is not None:
                    score.masked_fill_(excluded, -math.inf)
                yield (direction, sets), score, rows, counts


def _piece_size(slots: Tensor) -> tuple[int, int]:
    """Sets per piece and, at most, scores per piece."""
    if slots.device.type == 'cpu':
        return 1, 1 << 18  # The scores stay in the cache.
    return slots.size(1), 1 << 26  # Few kernel launches.


def _scored_pass(
    slots: Tensor, banks: Sequence[Tensor], negatives: Negatives, shift: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum softplus(s - shift) over the rows of each set, its gradient; count rows left out."""
    loss, grad = slots.new_zeros(slots.shape[:3]), torch.zeros_like(slots)
    left_out = slots.new_zeros(slots.shape[1:3])
    for at, score, rows, counts in _pieces(slots, banks, negatives, left_out):
        score -= shift[at[0]]
        value = F.softplus(score, threshold=_LINEAR)
        slope = score.sigmoid_()
        if counts is not None:
            value, slope = value * counts, slope * counts
        loss[at] += value.sum(-1)
        grad[at].baddbmm_(slope, rows)
    return loss, grad, left_out


def _softmax_sums(
    query: Tensor, banks: Sequence[Tensor], negatives: Negatives
) -> tuple[Tensor, Tensor, Tensor]:
    """Log of the weighted sum of exp(s), mean row under that softmax, positive rows."""
    slots = negatives.shards.gather(query)[:, negatives.anchors]
    # Sums are relative to the largest score so far. Not -inf: a piece may hold left-out rows alone.
    largest = slots.new_full(slots.shape[:3], torch.finfo(slots.dtype).min)
    total, row_sum = torch.zeros_like(largest), torch.zeros_like(slots)
    left_out = slots.new_zeros(slots.shape[1:3])
    for at, score, rows, counts in _pieces(slots, banks, negatives, left_out):
        top = torch.maximum(largest[at], score.amax(-1))
        value = score.sub_(top[..., None]).exp_()
        if counts is not None:
            value = value * counts
        shrink = (largest[at] - top).exp()
        total[at] = total[at] * shrink + value.sum(-1)
        row_sum[at] = torch.baddbmm(row_sum[at] * shrink[..., None], value, rows)
        largest[at] = top
    # Bring the sets of each anchor, and the shards, to one scale.
    largest = negatives.collect(largest)
    top = negatives.shards.largest(largest.amax(2))
    share = (largest - top[..., None]).exp()
    total = (negatives.collect(total) * share).sum(2)
    row_sum = (negatives.collect(row_sum) * share[..., None]).sum(2)
    weight, total, row_sum, positive = _sum_shards(banks, negatives, left_out, total, row_sum)
    mean_row = row_sum / total.clamp_min(torch.finfo(total.dtype).tiny)[..., None]
    return (weight * total).log() + negatives.shards.own(top), mean_row, positive


def _sum_shards(
    banks: Sequence[Tensor], negatives: Negatives, left_out: Tensor, value: Tensor, vector: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum over the shards; return the weight of a negative, both sums, the rows of positives."""
    shards, width = negatives.shards, vector.size(-1)
    here = negatives.positive % shards.world == shards.rank
    place = torch.where(here, negatives.positive // shards.world, 0)
    positive = torch.stack([bank[place] for bank in banks]).to(value.dtype) * here[:, None]
    scored = negatives.rows_per_set * negatives.slots.size(1)
    remaining = (scored - negatives.collect(left_out[None]).sum(2)).expand_as(value)
    if shards.world > 1:
        packed = torch.cat([remaining[..., None], value[..., None], vector, positive], -1)
        sums = shards.own_sum(packed)
        remaining, value = sums[..., 0], sums[..., 1]
        vector, positive = sums[..., 2:].split(width, -1)
    if negatives.row_key is None:
        return torch.ones_like(value), value, vector, positive
    # A draw may hold nothing but the anchor's own class: then nothing is summed.
    return negatives.num_negatives / remaining.clamp_min(1), value, vector, positive


class KnownGradient(torch.autograd.Function):
    """Make values differentiable whose gradient is known: ``apply(tensor, value, gradient)``.

    ``gradient`` has the shape of ``tensor``, ``value`` that shape without some of its last
    dimensions: each value depends on its own part of the tensor.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        """Return the value."""
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_value: Tensor) -> tuple[Tensor, None, None]:
        """Scale the gradient of each part."""
        (gradient,) = ctx.saved_tensors
        missing = gradient.dim() - grad_value.dim()
        return gradient * grad_value[(..., *[None] * missing)], None, None
