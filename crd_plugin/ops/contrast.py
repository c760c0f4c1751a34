"""Contrastive objectives of CRD as fused tensor functions.

Loss and anchor gradient come out of the same pass over the bank, as in fused
linear cross-entropy kernels: scores are made tile by tile, turned into their
share of the loss and of the gradient, and dropped. A row of the bank needs no
gradient. All is computed in float32 (float64 for float64 anchors) whatever
autocast says, since exp(1 / 0.07) overflows float16.

Both directions go through together. A GPU does all for both in one call, which
halves the calls (what that gains was not measured). A CPU does so with what is
small; the tiles of one direction follow those of the other, as its cache holds
them.
"""

import math
from typing import NamedTuple, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from .features import full_precision, no_autocast
from .negatives import Negatives
from .scratch import scratch
from .tiles import Tile, gather, score_tiles

__all__ = ['ContrastResult', 'info_nce', 'log_partition', 'nce', 'scores']

# Added to K / N in the denominators of the public code.
EPS = 1e-7

# softplus(x) = x from here on: exp(-40) vanishes in float64 too.
_SOFTPLUS_LINEAR = 40.0

# Up to here 1 - p has lost less than five of its bits.
_COMPLEMENT_EXACT = 0.95

# How often pairs are put together before logarithms are taken, and the names
# of the memory for it.
_FOLDS = 'pairs', 'fours', 'eights'


class ContrastResult(NamedTuple):
    """What the objective returns.

    Attributes:
        loss (Tensor): Scalar, or ``(E,)`` of E directions, differentiable
            with respect to the anchors.
        positive_loss (Tensor): ``-log h`` at the positive pair of each
            anchor, h the critic, ``(E, B)`` without gradient; E is 1 where
            ``loss`` is a scalar.
    """

    loss: Tensor
    positive_loss: Tensor

    @property
    def log_h(self) -> Tensor:
        """Tensor: Mean over the batch of the log of the critic at the
        positive pair, in the shape of ``loss`` and without gradient."""
        return self.positive_loss.mean(-1).neg_().view(self.loss.shape)


def nce(
    anchor: Tensor,
    rows: Union[Tensor, Sequence[Tensor]],
    pos_idx: Tensor,
    negatives: Negatives,
    log_z: Tensor,
    temperature: float,
    eps: float = EPS,
) -> ContrastResult:
    r"""Noise-contrastive objective of CRD, for one direction or several.

    With :math:`s_{ij} = \langle g_i, v_j \rangle / \tau`,
    :math:`P = e^s / Z`, :math:`c = K / N` and
    :math:`h = P / (P + c + \epsilon)`,

    .. math::
        L = -\frac{1}{B} \sum_i \Big[ \log h_{i,pos}
            + \sum_k \log \frac{c}{P_{ik} + c + \epsilon} \Big].

    Source: Tian et al., arXiv:1910.10699, eq. 17-18; numbers of
    HobbitLong/RepDistiller ``crd/criterion.py``, its ``eps`` included, which
    the paper does not have.

    Args:
        anchor (Tensor): Embeddings g, ``(B, D)`` float, or of E directions
            ``(E, B, D)``.
        rows (Tensor | Sequence[Tensor]): Bank of the other side, ``(N, D)``
            float, or one for each direction.
        pos_idx (Tensor): Row of the positive of each anchor, ``(B,)`` int64.
        negatives (Negatives): The rows to push away.
        log_z (Tensor): Logarithm of the partition constant Z, scalar, or
            ``(E,)``.
        temperature (float): tau.
        eps (float): Added to K / N. Defaults to 1e-7, as published.

    Returns:
        ContrastResult: Losses, and ``-log h`` of each positive.
    """
    num_negatives = negatives.num_negatives
    with torch.no_grad(), no_autocast(anchor):
        query, banks = _directions(anchor, rows, temperature)
        noise = num_negatives / banks[0].size(0)
        # P / (c + eps) = exp(s - shift), so both logs are softplus of it.
        shift = _shift(log_z, noise + eps, query)
        positive, score = _positives(query, banks, pos_idx)
        below = shift - score
        positive_loss = F.softplus(below, threshold=_SOFTPLUS_LINEAR)
        negative_loss, grad = _negative_pass(query, banks, negatives, shift)
        weight = _expectation_weight(negatives, query.dtype)
        if weight is not None:
            negative_loss *= weight
            grad *= weight[:, None]
        grad.addcmul_(positive, torch.sigmoid(below)[..., None], value=-1)
        grad /= temperature * anchor.size(-2)
        # c / (c + eps), from the numerator of the negative term.
        constant = num_negatives * math.log1p(eps / noise)
        losses = negative_loss.add_(positive_loss)
    return ContrastResult(_attach(anchor, losses, grad, constant), positive_loss)


def info_nce(
    anchor: Tensor,
    rows: Union[Tensor, Sequence[Tensor]],
    pos_idx: Tensor,
    negatives: Negatives,
    temperature: float,
) -> ContrastResult:
    """Softmax cross-entropy of the positive against the negatives.

    The ablation of the CRD paper (section 4.4, "InfoNCE"): no partition
    constant and no noise rate. Weighted negatives (``'shared'``, ``'all'``)
    weigh the exponentials.

    Args:
        anchor (Tensor): As for :func:`nce`.
        rows (Tensor | Sequence[Tensor]): As for :func:`nce`.
        pos_idx (Tensor): Row of the positive of each anchor, ``(B,)`` int64.
        negatives (Negatives): The rows to push away.
        temperature (float): tau.

    Returns:
        ContrastResult: Losses, and minus the log-probability of each
            positive.
    """
    with torch.no_grad(), no_autocast(anchor):
        query, banks = _directions(anchor, rows, temperature)
        positive, x = _positives(query, banks, pos_idx)
        weight = _expectation_weight(negatives, query.dtype)
        log_sum, mean_row = _softmax_pass(query, banks, negatives, weight)
        total = torch.logaddexp(x, log_sum)
        share = torch.exp(log_sum - total)
        losses = total - x
        grad = share[..., None] * (mean_row - positive)
        grad /= temperature * anchor.size(-2)
    return ContrastResult(_attach(anchor, losses, grad), losses)


def log_partition(
    anchor: Tensor,
    rows: Union[Tensor, Sequence[Tensor]],
    pos_idx: Tensor,
    negatives: Negatives,
    temperature: float,
) -> Tensor:
    """Log of Z / N: mean of exp(s) over the positive and the K negatives.

    Source: HobbitLong/RepDistiller ``crd/memory.py``, which sets
    ``Z = N * mean(exp(s))`` on the first batch and keeps it. Computed in logs:
    exp(1 / 0.01) is beyond float32.

    Args:
        anchor (Tensor): As for :func:`nce`.
        rows (Tensor | Sequence[Tensor]): As for :func:`nce`.
        pos_idx (Tensor): Row of the positive of each anchor, ``(B,)`` int64.
        negatives (Negatives): The rows scored.
        temperature (float): tau.

    Returns:
        Tensor: Scalar, or ``(E,)``, float64 without gradient.
    """
    with torch.no_grad(), no_autocast(anchor):
        query, banks = _directions(anchor, rows, temperature)
        _, x = _positives(query, banks, pos_idx)
        weight = _expectation_weight(negatives, query.dtype)
        log_sum, _ = _softmax_pass(query, banks, negatives, weight)
        total = torch.logaddexp(x, log_sum).double().logsumexp(-1)
    total -= math.log(anchor.size(-2) * (1 + negatives.num_negatives))
    return total.view(anchor.shape[:-2])


def scores(anchor: Tensor, rows: Tensor, index: Tensor, temperature: float) -> Tensor:
    """Scores of given pairs, an anchor at a time.

    Args:
        anchor (Tensor): Embeddings, ``(B, D)`` float.
        rows (Tensor): Bank, ``(N, D)`` float.
        index (Tensor): Rows to score for each anchor, ``(B, M)`` int64.
        temperature (float): tau.

    Returns:
        Tensor: ``<g_i, v_j> / tau``, ``(B, M)``.
    """
    query = full_precision(anchor) / temperature
    return torch.stack([rows[ids].to(query.dtype) @ vector for ids, vector in zip(index, query)])


def _directions(
    anchor: Tensor, rows: Union[Tensor, Sequence[Tensor]], temperature: float
) -> Tuple[Tensor, Sequence[Tensor]]:
    """Scaled anchors ``(E, B, D)`` and their banks."""
    query = full_precision(anchor.detach()) / temperature
    banks = (rows,) if isinstance(rows, Tensor) else rows
    return query.view(len(banks), *query.shape[-2:]), banks


def _shift(log_z: Tensor, noise: float, query: Tensor) -> Tensor:
    """``log Z + log noise`` of each direction, ``(E, 1)``."""
    shift = (log_z + math.log(noise)).to(query.dtype)
    return shift.view(-1, 1).expand(len(query), 1)


def _positives(query: Tensor, banks: Sequence[Tensor], pos_idx: Tensor) -> Tuple[Tensor, Tensor]:
    """Rows of the positives, ``(E, B, D)``, and their scores, ``(E, B)``."""
    rows = gather(banks, pos_idx, 'positive').to(query.dtype)
    return rows, (query * rows).sum(-1)


def _negative_pass(
    query: Tensor, banks: Sequence[Tensor], negatives: Negatives, shift: Tensor
) -> Tuple[Tensor, Tensor]:
    """Sum of softplus(score - shift) over negatives, and its gradient.

    Args:
        query (Tensor): Scaled anchors, ``(E, B, D)``.
        banks (Sequence[Tensor]): E of ``(N, D)``.
        negatives (Negatives): The rows.
        shift (Tensor): ``(E, 1)``.

    Returns:
        tuple[Tensor, Tensor]: ``(E, B)`` and, of the query, ``(E, B, D)``.
    """
    parts = negatives.parts
    if parts is not None:
        query = parts.spread(query)
    places = tuple(query.shape[:2])
    loss = grad = None
    for tile in score_tiles(query, banks, negatives):
        lead = (-1,) + (1,) * (tile.score.dim() - 1)
        score = tile.score.sub_(shift[tile.where[0]].view(lead))
        slope = torch.sigmoid(score, out=scratch('slope', score.shape, score))
        if tile.weight is not None:
            slope.mul_(tile.weight)
        grad = tile.add(grad, tile.product(slope), places)
        value = _sum_softplus(score, slope, tile).flatten(1)
        loss = tile.add(loss, value, places)
    if parts is not None:
        loss, grad = (parts.collect(value).sum(2) for value in (loss, grad))
    return loss, grad


def _sum_softplus(score: Tensor, slope: Tensor, tile: Tile) -> Tensor:
    """Sum of softplus(score) over the rows of a tile.

    Args:
        score (Tensor): Shifted scores.
        slope (Tensor): Their sigmoid times the tile's weight.
        tile (Tile): The tile.

    Returns:
        Tensor: In the shape of ``score`` without the last dimension.
    """
    if score.device.type == 'cpu' and not tile.repeats:
        total = _log_of_complements(slope)
        if total is not None:
            return total.neg_()
    value = F.softplus(score, threshold=_SOFTPLUS_LINEAR)
    if tile.weight is not None:
        value.mul_(tile.weight)
    return value.sum(-1)


def _log_of_complements(p: Tensor) -> Optional[Tensor]:
    """``log(1 - p)`` summed over the last dimension, for few logarithms.

    ``softplus(x) = -log(1 - sigmoid(x))``. Pairs are put together before:
    ``1 - (1 - p)(1 - q) = p + q (1 - p)`` loses no digit of small p and q,
    other than a product of ``1 - p`` would. A CPU is looked at for whether
    all is far enough from 1; a GPU would be waited for.

    Returns:
        Tensor, optional: None where digits would be lost.
    """
    one = p.new_ones(())
    for name in _FOLDS:
        width = p.size(-1)
        half = width // 2
        if half == 0:
            break
        first, second = p.narrow(-1, 0, half), p.narrow(-1, half, half)
        odd = None if width % 2 == 0 else p[..., -1:]
        p = torch.lerp(first, one, second, out=scratch(name, first.shape, p))
        if odd is not None:
            p[..., :1].lerp_(one, odd)
    if not float(p.amax()) <= _COMPLEMENT_EXACT:
        return None
    return p.neg().log1p_().sum(-1)


def _softmax_pass(
    query: Tensor, banks: Sequence[Tensor], negatives: Negatives, weight: Optional[Tensor]
) -> Tuple[Tensor, Tensor]:
    """Log of the sum of exp(score), and the mean row under the softmax.

    One pass: the sums are kept relative to the largest score met so far.

    Args:
        query (Tensor): Scaled anchors, ``(E, B, D)``.
        banks (Sequence[Tensor]): E of ``(N, D)``.
        negatives (Negatives): The rows.
        weight (Tensor, optional): Of each anchor's negatives, ``(B,)``.

    Returns:
        tuple[Tensor, Tensor]: ``(E, B)`` and ``(E, B, D)``.
    """
    parts = negatives.parts
    if parts is not None:
        query = parts.spread(query)
    largest = query.new_full(query.shape[:2], -math.inf)
    total = torch.zeros_like(largest)
    mean_row = torch.zeros_like(query)
    for tile in score_tiles(query, banks, negatives):
        now = tile.where
        score = tile.score
        if tile.weight is not None:
            score.masked_fill_(tile.weight == 0, -math.inf)
        top = torch.maximum(largest[now], score.amax(-1).flatten(1))
        # A tile may hold nothing but left-out rows: keep -inf out of exp.
        reference = top.clamp_min(torch.finfo(top.dtype).min)
        shrink = torch.exp(largest[now] - reference)
        value = score.sub_(reference.view(*score.shape[:-1], 1)).exp_()
        if tile.repeats:
            value.mul_(tile.weight)
        total[now].mul_(shrink).add_(value.sum(-1).flatten(1))
        mean_row[now].mul_(shrink[..., None]).add_(tile.product(value))
        largest[now].copy_(top)
    mean_row /= total.clamp_min(torch.finfo(total.dtype).tiny)[..., None]
    log_sum = total.log() + largest
    if parts is not None:
        log_sum = parts.collect(log_sum)
        share = log_sum.softmax(2)[..., None, :]
        mean_row = torch.matmul(share, parts.collect(mean_row)).squeeze(2)
        log_sum = log_sum.logsumexp(2)
    if weight is not None:
        log_sum = log_sum + weight.log()
    return log_sum, mean_row


def _expectation_weight(negatives: Negatives, dtype: torch.dtype) -> Optional[Tensor]:
    """Weight of a row so that K negatives are expected, ``(B,)``."""
    if negatives.per_anchor:
        return None
    remaining = negatives.pool
    if remaining is None:
        key = negatives.row_key[negatives.index]
        other = key != negatives.anchor_key[:, None]
        # A draw may hold the anchor's class alone: then nothing is summed.
        remaining = other.sum(1).clamp_min_(1)
    return negatives.num_negatives / remaining.to(dtype)


class _AttachGradient(torch.autograd.Function):
    """A loss whose gradient is already known."""

    @staticmethod
    def forward(ctx, anchor: Tensor, losses: Tensor, grad: Tensor, constant: float) -> Tensor:
        ctx.save_for_backward(grad.view(anchor.shape))
        return losses.mean(-1).add_(constant).view(anchor.shape[:-2])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_loss: Tensor) -> Tuple[Tensor, None, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * grad_loss[..., None, None], None, None, None


def _attach(anchor: Tensor, losses: Tensor, grad: Tensor, constant: float = 0.0) -> Tensor:
    """Mean loss that is differentiable with respect to ``anchor``.

    Args:
        anchor (Tensor): ``(B, D)`` or ``(E, B, D)``.
        losses (Tensor): Of each anchor, ``(..., B)``.
        grad (Tensor): Gradient of the mean, in the shape of the anchors.
        constant (float): Added to it. Defaults to 0.

    Returns:
        Tensor: Scalar, or ``(E,)``.
    """
    # The cast is differentiable, so a float16 anchor gets a float16 gradient.
    return _AttachGradient.apply(full_precision(anchor), losses, grad, constant)
