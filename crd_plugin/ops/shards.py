"""A memory bank split by rows over the ranks: drawing and partial sums.

Row j is kept by rank ``j % W`` as its row ``j // W``, so that each rank has
its part of every class in whatever order a data set has them. A rank scores
the anchors of all ranks against its own rows; what the functions here return
is summed over the ranks. Where W is 1 they give what ``contrast.py`` gives.
"""

import math
from typing import NamedTuple, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from .contrast import (
    _SOFTPLUS_LINEAR,
    EPS,
    ContrastResult,
    _attach,
    _directions,
    _negative_pass,
    _positives,
    _shift,
    _softmax_pass,
)
from .features import no_autocast
from .negatives import LabelIndex, Negatives, all_negatives, draw_negatives, shared_negatives
from .tiles import prepare

__all__ = [
    'Shard',
    'ShardNegatives',
    'build_shard',
    'draw_shard',
    'given_shard',
    'info_nce_of_sums',
    'log_partition_of_sums',
    'merge_softmax',
    'nce_of_sums',
    'shard_nce',
    'shard_size',
    'shard_softmax',
]


class Shard(NamedTuple):
    """What a rank has to know of the bank beside its own rows.

    Attributes:
        rank (int): Which shard, below ``world``.
        world (int): Number of shards W.
        num_rows (int): Rows N of all shards.
        index (LabelIndex): Own rows by class. Behind the own rows,
            ``row_class`` has one entry a class: the place of an anchor whose
            row another rank keeps. Without classes, each row is a class and
            one entry stands for every row that is kept elsewhere.
        values (Tensor, optional): Labels in class order, ``(C,)``.
        count (Tensor, optional): Rows of each class on all ranks, ``(C,)``.
    """

    rank: int
    world: int
    num_rows: int
    index: LabelIndex
    values: Optional[Tensor] = None
    count: Optional[Tensor] = None

    @property
    def size(self) -> int:
        """int: Rows of this shard."""
        return self.index.order.numel()

    def locate(self, row: Tensor) -> Tuple[Tensor, Tensor]:
        """Which rows are here, and where; elsewhere the place is 0."""
        owned = row % self.world == self.rank
        return owned, torch.where(owned, row // self.world, 0)


class ShardNegatives(NamedTuple):
    """Negatives of all ranks' anchors on one shard.

    Attributes:
        shard (Shard): Of this rank.
        num_negatives (int): K, over all shards.
        local (Negatives): Rows of this shard.
        weight (Tensor, optional): How much each of them counts, by anchor,
            ``(B,)``; None: once.
        pos_idx (Tensor): Row of each anchor's positive in the whole bank,
            ``(B,)`` int64.
        sizes (tuple[int, ...]): Anchors of each rank.
    """

    shard: Shard
    num_negatives: int
    local: Negatives
    weight: Optional[Tensor]
    pos_idx: Tensor
    sizes: Tuple[int, ...]


def shard_size(num_rows: int, rank: int, world: int) -> int:
    """Rows that a rank keeps.

    Args:
        num_rows (int): Rows N of the bank.
        rank (int): Of the process.
        world (int): Number of ranks.

    Returns:
        int: About N / W.
    """
    return (num_rows - rank + world - 1) // world


def build_shard(
    num_rows: int,
    rank: int,
    world: int,
    labels: Optional[Tensor] = None,
    device: Optional[torch.device] = None,
) -> Shard:
    """Sort the rows of one shard by class.

    Args:
        num_rows (int): Rows N of the bank.
        rank (int): Of the process.
        world (int): Number of ranks.
        labels (Tensor, optional): Class of each of the N rows, ``(N,)``
            int64. Defaults to None: every row is a class of its own.
        device (torch.device, optional): Where ids will be; that of labels
            where these are given.

    Returns:
        Shard: Of this rank.

    Raises:
        ValueError: If some anchor would have no negative on some rank, the
            same on every rank.
    """
    if labels is None:
        if num_rows < 2 * world:
            raise ValueError(
                f'A memory bank of {num_rows} rows cannot be sharded over '
                f'{world} ranks: each needs two rows; use sharded=False.'
            )
        size = shard_size(num_rows, rank, world)
        places = torch.arange(size + 1, device=device)
        count = torch.ones_like(places)
        count[-1] = 0
        return Shard(
            rank, world, num_rows, LabelIndex(places[:-1], places, places, count, size - 1, size)
        )
    values, row_class, count = torch.unique(labels, return_inverse=True, return_counts=True)
    owner = torch.arange(num_rows, device=labels.device) % world
    by_rank = torch.bincount(row_class * world + owner, minlength=len(values) * world)
    by_rank = by_rank.view(-1, world)
    pools = by_rank.sum(0) - by_rank
    if num_rows < world or int(pools.min()) < 1:
        raise ValueError(
            f'A memory bank of {num_rows} rows cannot be sharded over {world} '
            'ranks: some rank has no row of another class for some sample; '
            'use sharded=False.'
        )
    own, own_count = row_class[rank::world], by_rank[:, rank]
    classes = torch.arange(len(values), device=labels.device)
    index = LabelIndex(
        order=torch.argsort(own, stable=True),
        row_class=torch.cat([own, classes]),
        start=own_count.cumsum(0) - own_count,
        count=own_count,
        smallest_pool=int(pools[:, rank].min()),
        largest_pool=int(pools[:, rank].max()),
    )
    return Shard(rank, world, num_rows, index, values, count)


def draw_shard(
    shard: Shard,
    sample_idx: Tensor,
    sizes: Tuple[int, ...],
    num_negatives: int,
    rule: str,
    labels: Optional[Tensor] = None,
    generator: Optional[torch.Generator] = None,
) -> ShardNegatives:
    """Draw this shard's part of the negatives of all ranks' anchors.

    The rank draws its K / W of them from its own part of each anchor's pool
    and weighs them by what that part is of the whole pool. So the expectation
    of the sum over ranks is that of a draw from the whole bank, exactly,
    whatever the parts; ``'all'`` has no draw and is equal.

    Args:
        shard (Shard): Of this rank.
        sample_idx (Tensor): Row of each anchor of all ranks, ``(B,)`` int64.
        sizes (tuple[int, ...]): Anchors of each rank.
        num_negatives (int): K, over all shards.
        rule (str): ``'sampled'``, ``'shared'`` or ``'all'``.
        labels (Tensor, optional): Label of each anchor, ``(B,)``, if the
            shard is sorted by labels.
        generator (torch.Generator, optional): Source of randomness.

    Returns:
        ShardNegatives: For the functions of this module.
    """
    place, pool = _places(shard, sample_idx, labels)
    share = num_negatives // shard.world
    # Of fewer negatives than ranks each rank draws one; the weight is less.
    share = max(1, share + (shard.rank < num_negatives % shard.world))
    draw = dict(sampled=draw_negatives, shared=shared_negatives, all=all_negatives)
    arguments = place, shard.size, share, shard.index
    if rule == 'all':
        local = all_negatives(*arguments)
    else:
        local = draw[rule](*arguments, generator=generator)
    own_pool = shard.size - shard.index.count[shard.index.row_class[place]]
    if local.row_key is not None:
        # Without the entries behind the rows.
        local = local._replace(row_key=local.row_key[: shard.size])
    if rule == 'sampled':
        drawn = torch.full_like(own_pool, share)
    elif rule == 'all':
        drawn = own_pool
    else:
        drawn = (local.row_key[local.index] != local.anchor_key[:, None]).sum(1).clamp_min_(1)
    weight = num_negatives * own_pool.double() / (pool * drawn)
    return ShardNegatives(shard, num_negatives, local, weight, sample_idx, tuple(sizes))


def given_shard(
    shard: Shard, contrast_idx: Tensor, sizes: Tuple[int, ...], dtype: torch.dtype
) -> ShardNegatives:
    """The part of explicitly given rows that this shard keeps.

    Args:
        shard (Shard): Of this rank.
        contrast_idx (Tensor): Rows of each anchor of all ranks,
            ``(B, 1 + K)`` int64, the first column the positive.
        sizes (tuple[int, ...]): Anchors of each rank.
        dtype (torch.dtype): Of the embeddings.

    Returns:
        ShardNegatives: As counts of every own row, ``(B, N / W)``.
    """
    owned, place = shard.locate(contrast_idx[:, 1:])
    dtype = torch.float64 if dtype == torch.float64 else torch.float32
    drawn = torch.zeros(owned.size(0), shard.size, dtype=dtype, device=owned.device)
    drawn.scatter_add_(1, place, owned.to(dtype))
    num_negatives = contrast_idx.size(1) - 1
    return ShardNegatives(
        shard,
        num_negatives,
        Negatives(num_negatives, place, drawn=drawn),
        None,
        contrast_idx[:, 0],
        tuple(sizes),
    )


def shard_nce(
    anchor: Tensor,
    rows: Union[Tensor, Sequence[Tensor]],
    negatives: ShardNegatives,
    log_z: Tensor,
    temperature: float,
    eps: float = EPS,
) -> Tensor:
    """This shard's part of :func:`crd_plugin.ops.nce`.

    Args:
        anchor (Tensor): Embeddings of all ranks, ``(B, D)`` float, or of E
            directions ``(E, B, D)``.
        rows (Tensor | Sequence[Tensor]): Own rows of the other side,
            ``(N / W, D)`` float, or E of them.
        negatives (ShardNegatives): From :func:`draw_shard`.
        log_z (Tensor): Logarithm of the partition constant, scalar, or
            ``(E,)``.
        temperature (float): tau.
        eps (float): Added to K / N. Defaults to 1e-7, as published.

    Returns:
        Tensor: To be summed over the ranks, ``(B, 2 + D)`` or
        ``(E, B, 2 + D)``: loss of the positive, loss of the negatives,
        gradient of the scaled anchor.
    """
    with torch.no_grad(), no_autocast(anchor):
        query, banks = _directions(anchor, rows, temperature)
        x, positive, owned = _own_positives(query, banks, negatives)
        noise = negatives.num_negatives / negatives.shard.num_rows
        shift = _shift(log_z, noise + eps, query)
        below = shift - x
        loss = F.softplus(below, threshold=_SOFTPLUS_LINEAR) * owned
        slope = torch.sigmoid(below) * owned
        local = prepare(negatives.local, len(banks[0]), query.dtype)
        other, grad = _negative_pass(query, banks, local, shift)
        if negatives.weight is not None:
            weight = negatives.weight.to(query.dtype)
            other, grad = other * weight, grad * weight[:, None]
        grad = grad - positive * slope[..., None]
        sums = torch.cat([loss[..., None], other[..., None], grad], -1)
    return sums.view(*anchor.shape[:-1], -1)


def nce_of_sums(
    anchor: Tensor, sums: Tensor, negatives: ShardNegatives, temperature: float, eps: float = EPS
) -> ContrastResult:
    """Loss of one rank's anchors from what all shards gave.

    Args:
        anchor (Tensor): Own embeddings, ``(b, D)`` or ``(E, b, D)`` float.
        sums (Tensor): Sum of :func:`shard_nce` over the ranks, the rows of
            these anchors, ``(..., b, 2 + D)``.
        negatives (ShardNegatives): As given there.
        temperature (float): tau.
        eps (float): As in :func:`shard_nce`.

    Returns:
        ContrastResult: Losses, and ``-log h`` of each positive.
    """
    positive, negative, grad = sums[..., 0], sums[..., 1], sums[..., 2:]
    num_negatives = negatives.num_negatives
    noise = num_negatives / negatives.shard.num_rows
    constant = num_negatives * math.log1p(eps / noise)
    grad = grad / (temperature * anchor.size(-2))
    return ContrastResult(
        _attach(anchor, positive + negative, grad, constant), _by_direction(positive.clone())
    )


def shard_softmax(
    anchor: Tensor,
    rows: Union[Tensor, Sequence[Tensor]],
    negatives: ShardNegatives,
    temperature: float,
) -> Tuple[Tensor, Tensor]:
    """This shard's part of a softmax over positive and negatives.

    Args:
        anchor (Tensor): Embeddings of all ranks, ``(B, D)`` float, or of E
            directions ``(E, B, D)``.
        rows (Tensor | Sequence[Tensor]): Own rows of the other side,
            ``(N / W, D)`` float, or E of them.
        negatives (ShardNegatives): From :func:`draw_shard`.
        temperature (float): tau.

    Returns:
        tuple[Tensor, Tensor]: Log of the sum of exp(score) over own
        negatives, ``(..., B)``; own mean row under the softmax, score of the
        positive and its row, 0 where another rank keeps it,
        ``(..., B, D + 1 + D)``.
    """
    with torch.no_grad(), no_autocast(anchor):
        query, banks = _directions(anchor, rows, temperature)
        x, positive, owned = _own_positives(query, banks, negatives)
        weight = negatives.weight
        log_sum, mean_row = _softmax_pass(
            query,
            banks,
            prepare(negatives.local, len(banks[0]), query.dtype),
            None if weight is None else weight.to(query.dtype),
        )
        part = torch.cat([mean_row, (x * owned)[..., None], positive * owned[:, None]], -1)
    lead = anchor.shape[:-1]
    return log_sum.view(lead), part.view(*lead, -1)


def merge_softmax(log_sum: Tensor, largest: Tensor, part: Tensor) -> Tensor:
    """Bring the parts of all shards to one scale, to be summed.

    Args:
        log_sum (Tensor): From :func:`shard_softmax`, ``(..., B)``.
        largest (Tensor): The largest of it over the ranks, ``(..., B)``.
        part (Tensor): From :func:`shard_softmax`, ``(..., B, 2 D + 1)``.

    Returns:
        Tensor: To be summed over the ranks, ``(..., B, 1 + 2 D + 1)``.
    """
    finite = largest.clamp_min(torch.finfo(largest.dtype).min)
    share = torch.exp(log_sum - finite)[..., None]
    width = part.size(-1) // 2
    return torch.cat([share, share * part[..., :width], part[..., width:]], -1)


def log_partition_of_sums(sums: Tensor, largest: Tensor, num_negatives: int) -> Tensor:
    """Log of Z / N, as :func:`crd_plugin.ops.log_partition`.

    Args:
        sums (Tensor): Sum of :func:`merge_softmax`, of all anchors.
        largest (Tensor): As given there, ``(..., B)``.
        num_negatives (int): K.

    Returns:
        Tensor: Scalar, or ``(E,)``, float64.
    """
    x, log_sum, _, _ = _softmax_of_sums(sums, largest)
    total = torch.logaddexp(x, log_sum).double().logsumexp(-1)
    return total - math.log(sums.size(-2) * (1 + num_negatives))


def info_nce_of_sums(
    anchor: Tensor, sums: Tensor, largest: Tensor, temperature: float
) -> ContrastResult:
    """:func:`crd_plugin.ops.info_nce` of one rank's anchors.

    Args:
        anchor (Tensor): Own embeddings, ``(b, D)`` or ``(E, b, D)`` float.
        sums (Tensor): Sum of :func:`merge_softmax` over the ranks, the rows
            of these anchors.
        largest (Tensor): As given there, of these anchors, ``(..., b)``.
        temperature (float): tau.

    Returns:
        ContrastResult: Losses, and minus the log-probability of each
            positive.
    """
    with torch.no_grad():
        x, log_sum, mean_row, positive = _softmax_of_sums(sums, largest)
        total = torch.logaddexp(x, log_sum)
        share = torch.exp(log_sum - total)[..., None]
        losses = total - x
        grad = share * (mean_row - positive)
        grad /= temperature * anchor.size(-2)
    return ContrastResult(_attach(anchor, losses, grad), _by_direction(losses))


def _places(shard: Shard, sample_idx: Tensor, labels: Optional[Tensor]) -> Tuple[Tensor, Tensor]:
    """Where ``shard.index`` has each anchor, and its pool on all ranks."""
    if shard.values is None:
        owned, place = shard.locate(sample_idx)
        place = torch.where(owned, place, shard.size)
        return place, torch.full_like(place, shard.num_rows - 1)
    found = torch.searchsorted(shard.values, labels)
    return shard.size + found, shard.num_rows - shard.count[found]


def _own_positives(
    query: Tensor, banks: Sequence[Tensor], negatives: ShardNegatives
) -> Tuple[Tensor, Tensor, Tensor]:
    """Scores and rows of positives, as if all were here, and which are."""
    owned, place = negatives.shard.locate(negatives.pos_idx)
    positive, x = _positives(query, banks, place)
    return x, positive, owned.to(query.dtype)


def _by_direction(values: Tensor) -> Tensor:
    """A value of each anchor as ``(E, B)``."""
    return values if values.dim() == 2 else values[None]


def _softmax_of_sums(sums: Tensor, largest: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """Score of the positive, log of the negatives' sum, mean row, positive."""
    width = sums.size(-1) // 2 - 1
    share, mean_row, x, positive = sums.split([1, width, 1, width], dim=-1)
    tiny = torch.finfo(sums.dtype).tiny
    log_sum = share.squeeze(-1).log() + largest
    return x.squeeze(-1), log_sum, mean_row / share.clamp_min(tiny), positive
