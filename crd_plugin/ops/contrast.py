"""Contrastive objectives of CRD as fused tensor functions.

Loss and anchor gradient come out of the same pass over the bank, as in fused
linear cross-entropy kernels: scores are made tile by tile, turned into their
share of the loss and of the gradient, and dropped. A row of the bank needs no
gradient. All is computed in float32 (float64 for float64 anchors) whatever
autocast says, since exp(1 / 0.07) overflows float16.

Both directions go through together. A GPU does all for both in one call: what
takes its time is to be called. A CPU does so with what is small; the tiles of
one direction follow those of the other, as its cache holds them.
"""
import math
from typing import (Callable, Iterator, List, NamedTuple, Optional, Sequence,
                    Tuple, Union)

import torch
import torch.nn.functional as F
from torch import Tensor

from .matmul import times_transposed
from .negatives import Negatives
from .parts import Parts
from .scratch import scratch

__all__ = [
    'ContrastResult', 'info_nce', 'log_partition', 'nce', 'prepare', 'scores'
]

# Added to K / N in the denominators of the public code.
EPS = 1e-7

# Elements of one tile of scores: within the second-level cache on a CPU,
# enough to fill the chip on a GPU.
_TILE_CPU, _TILE_GPU = 1 << 18, 1 << 24

# Ids of an anchor's own are scored by one matrix product with all rows of the
# bank while these are at most this many times K, above that by gathering K
# rows an anchor. Measured on an AVX-512 CPU, D = 128: the product costs about
# 5 ns a row and anchor, a gathered row 40 to 80 ns.
_DENSE_ROWS_PER_NEGATIVE = 12

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


def nce(anchor: Tensor,
        rows: Union[Tensor, Sequence[Tensor]],
        pos_idx: Tensor,
        negatives: Negatives,
        log_z: Tensor,
        temperature: float,
        eps: float = EPS) -> ContrastResult:
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
        ContrastResult: Losses and ``log h``.
    """
    num_negatives = negatives.num_negatives
    with torch.no_grad(), _full_precision(anchor):
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
    return ContrastResult(
        _attach(anchor, losses, grad, constant), positive_loss)


def info_nce(anchor: Tensor, rows: Union[Tensor, Sequence[Tensor]],
             pos_idx: Tensor, negatives: Negatives,
             temperature: float) -> ContrastResult:
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
        ContrastResult: Losses and log-probability of the positive.
    """
    with torch.no_grad(), _full_precision(anchor):
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


def log_partition(anchor: Tensor, rows: Union[Tensor, Sequence[Tensor]],
                  pos_idx: Tensor, negatives: Negatives,
                  temperature: float) -> Tensor:
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
    with torch.no_grad(), _full_precision(anchor):
        query, banks = _directions(anchor, rows, temperature)
        _, x = _positives(query, banks, pos_idx)
        weight = _expectation_weight(negatives, query.dtype)
        log_sum, _ = _softmax_pass(query, banks, negatives, weight)
        total = torch.logaddexp(x, log_sum).double().logsumexp(-1)
    total -= math.log(anchor.size(-2) * (1 + negatives.num_negatives))
    return total.view(anchor.shape[:-2])


def scores(anchor: Tensor, rows: Tensor, index: Tensor,
           temperature: float) -> Tensor:
    """Scores of given pairs, an anchor at a time.

    Args:
        anchor (Tensor): Embeddings, ``(B, D)`` float.
        rows (Tensor): Bank, ``(N, D)`` float.
        index (Tensor): Rows to score for each anchor, ``(B, M)`` int64.
        temperature (float): tau.

    Returns:
        Tensor: ``<g_i, v_j> / tau``, ``(B, M)``.
    """
    query = _compute_dtype(anchor) / temperature
    return torch.stack([
        rows[ids].to(query.dtype) @ vector
        for ids, vector in zip(index, query)
    ])


def _directions(
        anchor: Tensor, rows: Union[Tensor, Sequence[Tensor]],
        temperature: float) -> Tuple[Tensor, Sequence[Tensor]]:
    """Scaled anchors ``(E, B, D)`` and their banks."""
    query = _compute_dtype(anchor.detach()) / temperature
    banks = (rows, ) if isinstance(rows, Tensor) else rows
    return query.view(len(banks), *query.shape[-2:]), banks


def _shift(log_z: Tensor, noise: float, query: Tensor) -> Tensor:
    """``log Z + log noise`` of each direction, ``(E, 1)``."""
    shift = (log_z + math.log(noise)).to(query.dtype)
    return shift.view(-1, 1).expand(len(query), 1)


def _positives(query: Tensor, banks: Sequence[Tensor],
               pos_idx: Tensor) -> Tuple[Tensor, Tensor]:
    """Rows of the positives, ``(E, B, D)``, and their scores, ``(E, B)``."""
    rows = _gather(banks, pos_idx, 'positive').to(query.dtype)
    return rows, (query * rows).sum(-1)


def _gather(banks: Sequence[Tensor], index: Tensor, name: str) -> Tensor:
    """Rows of each bank by their ids, always into the same memory.

    A new tensor each time costs more than the reading: at ImageNet's size
    20 ms instead of 3.5 ms for 64 K rows of 128 (two cores of an AMD EPYC),
    most of it page faults.

    Args:
        banks (Sequence[Tensor]): Each ``(N, D)``.
        index (Tensor): ``(m,)`` int64.
        name (str): Of the memory, see :func:`scratch`.

    Returns:
        Tensor: ``(E, m, D)``, valid until the next call for the name.
    """
    shape = (len(banks), index.numel(), banks[0].size(1))
    found = scratch(name, shape, banks[0])
    for bank, place in zip(banks, found):
        torch.index_select(bank, 0, index, out=place)
    return found


class _Tile(NamedTuple):
    """Scores of some anchors against some rows.

    Attributes:
        score (Tensor): ``(e, a, m)`` of e directions, or of c groups of
            anchors ``(e, c, a, m)``.
        rows (Tensor): ``(e, m, D)``, or each group's own ``(e, c, m, D)``.
        where (tuple[slice, slice]): Which directions, and which anchors or
            places of parts.
        weight (Tensor, optional): How often a pair counts, in the shape of
            ``score`` without the directions, valid until the next tile: 0
            where it is left out. None: once each.
        repeats (bool): Whether a weight may be more than 1.
    """
    score: Tensor
    rows: Tensor
    where: Tuple[slice, slice]
    weight: Optional[Tensor] = None
    repeats: bool = False

    def product(self, weight: Tensor) -> Tensor:
        """``sum_j weight_ij v_j`` for each anchor, ``(e, a, D)``."""
        value = _products(weight, self.rows.transpose(-1, -2))
        return value if value.dim() == 3 else value.flatten(1, 2)

    def add(self, total: Optional[Tensor], value: Tensor,
            places: Tuple[int, int]) -> Tensor:
        """Add a value for each anchor to the total of all.

        Args:
            total (Tensor, optional): ``(E, P, ...)``; None before the first
                tile, which is the total if it holds all.
            value (Tensor): ``(e, a, ...)``.
            places (tuple[int, int]): E and P.

        Returns:
            Tensor: The total.
        """
        if total is None:
            if tuple(value.shape[:2]) == places:
                return value
            total = value.new_zeros(*places, *value.shape[2:])
        total[self.where].add_(value)
        return total


def _products(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right.mT``, of one direction and group or of several."""
    lead = left.shape[:-2]
    if math.prod(lead) > 1:
        return torch.matmul(left, right.transpose(-1, -2))
    only = (0, ) * len(lead)
    product = times_transposed(left[only], right[only])
    return product.view(*lead, *product.shape)


def _together(query: Tensor) -> List[slice]:
    """Directions whose tiles are made at once: on a CPU one, else all."""
    number = query.size(0)
    if query.device.type != 'cpu':
        return [slice(0, number)]
    return [slice(side, side + 1) for side in range(number)]


def prepare(negatives: Negatives, num_rows: int,
            dtype: torch.dtype) -> Negatives:
    """Turn ids of an anchor's own into a mask, where that is faster.

    Both directions of the objective score the same pairs, so this is done
    once for both.

    Args:
        negatives (Negatives): As drawn.
        num_rows (int): Rows N of the bank.
        dtype (torch.dtype): Of the anchors.

    Returns:
        Negatives: With ``drawn`` set where that is faster.
    """
    dense = num_rows <= _DENSE_ROWS_PER_NEGATIVE * negatives.num_negatives
    index = negatives.index
    if index is None or index.dim() == 1 or not dense or (negatives.drawn
                                                          is not None):
        return negatives
    shape = (index.size(0), num_rows)
    if negatives.distinct:
        drawn = torch.zeros(shape, dtype=torch.bool, device=index.device)
        drawn.scatter_(1, index, True)
    else:
        dtype = torch.float64 if dtype == torch.float64 else torch.float32
        drawn = torch.zeros(shape, dtype=dtype, device=index.device)
        one = torch.ones((), dtype=dtype, device=index.device)
        drawn.scatter_add_(1, index, one.expand_as(index))
    return negatives._replace(drawn=drawn)


def _score_tiles(query: Tensor, banks: Sequence[Tensor],
                 negatives: Negatives) -> Iterator[_Tile]:
    """Yield the scores of all anchors against their negatives, in tiles.

    Of parts, ``query`` and the tiles' anchors are those of the places.
    """
    negatives = prepare(negatives, banks[0].size(0), query.dtype)
    if negatives.parts is not None:
        yield from _parts(query, banks, negatives.parts)
    elif not negatives.per_anchor:
        yield from _common_rows(query, banks, negatives)
    elif negatives.drawn is not None:
        drawn = _as_numbers(negatives.drawn)

        def weigh(weight: Tensor, part: slice) -> None:
            weight.copy_(drawn[:, part])

        yield from _matrix_tiles(query, banks, None, weigh,
                                 negatives.drawn.dtype != torch.bool)
    else:
        yield from _gathered_rows(query, banks, negatives.index)


def _parts(query: Tensor, banks: Sequence[Tensor],
           parts: Parts) -> Iterator[_Tile]:
    """Every part against those who are in its places."""
    number, places = parts.anchor.shape
    length, width = parts.rows.size(1), query.size(-1)
    elements = _tile_elements(query)
    # A GPU takes all parts at once. A CPU takes them one by one, since it has
    # a faster product for that, unless they are so small (a quarter of a tile
    # holds two) that calling it would take longer.
    size = min(max(1, elements // 4 // (places * length)), number)
    # Of a large batch some places at a time.
    few = min(max(1, elements // (size * length)), places)
    memory = scratch('weight', (size, few, length), query)
    query = query.view(-1, number, places, width)
    drawn = _as_numbers(parts.drawn)
    for begin in range(0, number, size):
        part = slice(begin, min(begin + size, number))
        ids = parts.rows[part]
        for sides in _together(query):
            rows = _gather(banks[sides], ids.view(-1), 'rows')
            rows = rows.to(query.dtype).view(-1, *ids.shape, width)
            for first in range(0, places, few):
                some = slice(first, min(first + few, places))
                weight = memory[:len(ids), :some.stop - first]
                if sides.start == 0 or few < places:
                    # Else they are still there from the direction before.
                    weight.copy_(drawn[part, some])
                # Either all places of some parts or some of one part.
                here = slice(begin * places + first,
                             (part.stop - 1) * places + some.stop)
                score = _products(query[sides, part, some], rows)
                yield _Tile(score, rows, (sides, here), weight)


def _common_rows(query: Tensor, banks: Sequence[Tensor],
                 negatives: Negatives) -> Iterator[_Tile]:
    """Every anchor against the same rows, its own class left out."""
    row_key, anchor_key = negatives.row_key, negatives.anchor_key[:, None]
    if negatives.index is not None:
        row_key = row_key[negatives.index]

    # Comparing in place is faster, but ids of 2**24 rows need float64.
    fits = row_key.dtype in (torch.float32, query.dtype)

    def weigh(weight: Tensor, part: slice) -> None:
        if fits:
            weight.copy_(row_key[part]).ne_(anchor_key)
        else:
            torch.ne(row_key[part], anchor_key, out=weight)

    yield from _matrix_tiles(query, banks, negatives.index, weigh)


def _matrix_tiles(query: Tensor,
                  banks: Sequence[Tensor],
                  chosen: Optional[Tensor],
                  weigh: Callable[[Tensor, slice], None],
                  repeats: bool = False) -> Iterator[_Tile]:
    """Matrix products of all anchors with one run of rows after another.

    Chosen rows are gathered a run at a time, while the cache holds them.
    ``weigh`` writes the weights of a run.
    """
    num_anchors, every = query.size(1), slice(None)
    num_rows = banks[0].size(0) if chosen is None else chosen.numel()
    size = min(max(1, _tile_elements(query) // num_anchors), num_rows)
    memory = scratch('weight', (num_anchors, size), query)
    # Rows that lie in two banks are not brought together.
    together = _together(query) if chosen is not None else [
        slice(side, side + 1) for side in range(len(banks))
    ]
    for begin in range(0, num_rows, size):
        part = slice(begin, min(begin + size, num_rows))
        weight = memory[:, :part.stop - begin]
        weigh(weight, part)
        for sides in together:
            if chosen is None:
                rows = banks[sides.start][None, part]
            else:
                rows = _gather(banks[sides], chosen[part], 'rows')
            rows = rows.to(query.dtype)
            score = _products(query[sides], rows)
            yield _Tile(score, rows, (sides, every), weight, repeats)


def _as_numbers(mask: Tensor) -> Tensor:
    """A mask as bytes, which turn into floats eight times as fast."""
    return mask.view(torch.int8) if mask.dtype == torch.bool else mask


def _gathered_rows(query: Tensor, banks: Sequence[Tensor],
                   index: Tensor) -> Iterator[_Tile]:
    """K gathered rows an anchor, few anchors at a time."""
    num_anchors, width = query.shape[1:]
    elements = index.size(1) * width
    size = min(max(1, _tile_elements(query) // elements), num_anchors)
    for begin in range(0, num_anchors, size):
        part = slice(begin, begin + size)
        ids = index[part]
        for sides in _together(query):
            rows = _gather(banks[sides], ids.reshape(-1), 'rows')
            rows = rows.to(query.dtype).view(-1, *ids.shape, width)
            score = _products(query[sides, part, None], rows)
            yield _Tile(score, rows, (sides, part))


def _negative_pass(query: Tensor, banks: Sequence[Tensor],
                   negatives: Negatives,
                   shift: Tensor) -> Tuple[Tensor, Tensor]:
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
    for tile in _score_tiles(query, banks, negatives):
        lead = (-1, ) + (1, ) * (tile.score.dim() - 1)
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


def _sum_softplus(score: Tensor, slope: Tensor, tile: _Tile) -> Tensor:
    """Sum of softplus(score) over the rows of a tile.

    Args:
        score (Tensor): Shifted scores.
        slope (Tensor): Their sigmoid times the tile's weight.
        tile (_Tile): The tile.

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


def _softmax_pass(query: Tensor, banks: Sequence[Tensor],
                  negatives: Negatives,
                  weight: Optional[Tensor]) -> Tuple[Tensor, Tensor]:
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
    for tile in _score_tiles(query, banks, negatives):
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


def _expectation_weight(negatives: Negatives,
                        dtype: torch.dtype) -> Optional[Tensor]:
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


def _tile_elements(tensor: Tensor) -> int:
    """Elements of a tile on the device of ``tensor``."""
    return _TILE_CPU if tensor.device.type == 'cpu' else _TILE_GPU


def _compute_dtype(tensor: Tensor) -> Tensor:
    """Float64 stays, everything narrower becomes float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _full_precision(tensor: Tensor) -> torch.autocast:
    """Switch autocast off for the device of ``tensor``."""
    return torch.autocast(tensor.device.type, enabled=False)


class _AttachGradient(torch.autograd.Function):
    """A loss whose gradient is already known."""

    @staticmethod
    def forward(ctx, anchor: Tensor, losses: Tensor, grad: Tensor,
                constant: float) -> Tensor:
        ctx.save_for_backward(grad.view(anchor.shape))
        return losses.mean(-1).add_(constant).view(anchor.shape[:-2])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_loss: Tensor) -> Tuple[Tensor, None, None, None]:
        grad, = ctx.saved_tensors
        return grad * grad_loss[..., None, None], None, None, None


def _attach(anchor: Tensor,
            losses: Tensor,
            grad: Tensor,
            constant: float = 0.0) -> Tensor:
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
    return _AttachGradient.apply(
        _compute_dtype(anchor), losses, grad, constant)
