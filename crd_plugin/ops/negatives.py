"""Drawing the negatives of an anchor on the device, without the data loader.

The published code draws 16,384 ids a sample in the data loader. Here a step
draws one random permutation and hands every anchor a random set of blocks of
it: for each anchor that is exactly a uniform K-subset of its pool, and the
subsets of two anchors overlap about as much as independent ones would. Of a
bank much larger than K, a step looks at a random subset only; then two anchors
share more rows, each still has a uniform K-subset.
"""
from typing import NamedTuple, Optional, Tuple

import torch
from torch import Tensor

__all__ = [
    'LabelIndex', 'Negatives', 'all_negatives', 'build_label_index',
    'draw_negatives', 'shared_negatives'
]

# Ids are moved in runs of this many: one cache line instead of one number.
_BLOCK = 32

# A bank of more than _WHOLE * K rows is not drawn from as a whole: a step
# takes _SUBSET * K random rows, and every anchor its K of them.
_WHOLE, _SUBSET = 8, 4


class LabelIndex(NamedTuple):
    """Rows of a memory bank sorted by class, to skip a class by arithmetic.

    Attributes:
        order (Tensor): Rows sorted by class, ``(N,)`` int64.
        row_class (Tensor): Class position of every row, ``(N,)`` int64.
        start (Tensor): First position of each class in ``order``, ``(C,)``.
        count (Tensor): Rows of each class, ``(C,)``.
        smallest_pool (int): Fewest negatives that any row has.
        largest_pool (int): Most negatives that any row has.
    """
    order: Tensor
    row_class: Tensor
    start: Tensor
    count: Tensor
    smallest_pool: int
    largest_pool: int


class Negatives(NamedTuple):
    """Which rows an anchor is scored against, and with which weight.

    Exactly one of three forms:

    * ``index (B, K)``: ids of its own for each anchor (``'sampled'`` and
      explicit ids). ``distinct`` promises that no id repeats in a row.
    * ``index (M,)``: one draw for all anchors (``'shared'``).
    * ``index None``: every row (``'all'``).

    In the last two forms, rows whose ``row_key`` equals the ``anchor_key`` are
    left out and what remains is weighted ``num_negatives / remaining``.

    Attributes:
        num_negatives (int): K of the objective.
        index (Tensor, optional): Row ids, int64; positions in ``subset``
            where that is given.
        distinct (bool): No id repeats within a row of ``index``.
        row_key (Tensor, optional): Class or id of each row, ``(N,)``.
        anchor_key (Tensor, optional): Class or id of each anchor, ``(B,)``.
        pool (Tensor, optional): Rows that remain for each anchor when
            ``index`` is None, ``(B,)`` int64.
        subset (Tensor, optional): Rows that ``index (B, K)`` counts in,
            ``(M,)`` int64. Defaults to None: all N.
        drawn (Tensor, optional): ``index (B, K)`` as a mask or as counts,
            ``(B, N)`` or ``(B, M)``, see :func:`crd_plugin.ops.prepare`.
    """
    num_negatives: int
    index: Optional[Tensor] = None
    distinct: bool = False
    row_key: Optional[Tensor] = None
    anchor_key: Optional[Tensor] = None
    pool: Optional[Tensor] = None
    subset: Optional[Tensor] = None
    drawn: Optional[Tensor] = None

    @property
    def per_anchor(self) -> bool:
        """bool: Each anchor has ids of its own."""
        return self.index is not None and self.index.dim() == 2

    @property
    def ids(self) -> Tensor:
        """Tensor: Rows of the bank, in the shape of ``index``."""
        return self.index if self.subset is None else self.subset[self.index]


def build_label_index(labels: Tensor) -> LabelIndex:
    """Sort the rows of a bank by class.

    Args:
        labels (Tensor): Class of each row, ``(N,)`` integer; any values.

    Returns:
        LabelIndex: The index, on the device of ``labels``.

    Raises:
        ValueError: If all rows have one class: nothing could be a negative.
    """
    row_class, count = _classes(labels)
    num_rows = labels.numel()
    if count.numel() < 2:
        raise ValueError(
            f'labels holds {count.numel()} class over {num_rows} rows, so no '
            "row of another class exists; use exclude='instance' or a "
            'training set with at least two classes.')
    # Of narrow integers torch sorts by counting.
    narrow = torch.int16 if count.numel() < 1 << 15 else torch.int64
    return LabelIndex(
        order=torch.argsort(row_class.to(narrow), stable=True),
        row_class=row_class,
        start=count.cumsum(0) - count,
        count=count,
        smallest_pool=num_rows - int(count.max()),
        largest_pool=num_rows - int(count.min()))


def _classes(labels: Tensor) -> Tuple[Tensor, Tensor]:
    """Position of every row's class among those there are, and their sizes.

    ``torch.unique`` sorts all rows for it; where labels count classes from
    about 0, as they usually do, counting is enough.
    """
    if labels.numel():
        smallest, largest = (int(end) for end in labels.aminmax())
    if not labels.numel() or smallest < 0 or largest > labels.numel():
        _, row_class, count = torch.unique(
            labels, return_inverse=True, return_counts=True)
        return row_class, count
    count = torch.bincount(labels)
    there = count > 0
    if there.all():
        return labels.long(), count
    position = there.cumsum(0) - 1
    return position[labels.long()], count[there]


def draw_negatives(sample_idx: Tensor,
                   num_rows: int,
                   num_negatives: int,
                   label_index: Optional[LabelIndex] = None,
                   generator: Optional[torch.Generator] = None) -> Negatives:
    """Draw K negatives for each anchor, uniform over its pool.

    The pool of an anchor is every row of another class, or every other row
    when no ``label_index`` is given. Without replacement where the pool has K
    rows, with replacement where it has fewer, as HobbitLong/RepDistiller's
    data set does. Nothing is read back to the host.

    Args:
        sample_idx (Tensor): Row of each anchor, ``(B,)`` int64.
        num_rows (int): Rows N of the bank.
        num_negatives (int): K, negatives an anchor.
        label_index (LabelIndex, optional): From :func:`build_label_index`.
        generator (torch.Generator, optional): Source of randomness on the
            device of ``sample_idx``. Defaults to the device's global one.

    Returns:
        Negatives: ``index`` is ``(B, K)`` int64.
    """
    largest_class = (1 if label_index is None else num_rows -
                     label_index.smallest_pool)
    if (num_rows > _WHOLE * num_negatives
            and largest_class <= (_SUBSET - 1) * num_negatives):
        return _draw_from_subset(sample_idx, num_rows, num_negatives,
                                 label_index, largest_class, generator)
    if label_index is None:
        smallest = largest = num_rows - 1
    else:
        smallest = label_index.smallest_pool
        largest = label_index.largest_pool
    if num_negatives > largest:
        index = _with_replacement(sample_idx, num_rows, num_negatives,
                                  label_index, generator)
        return Negatives(num_negatives, index)
    if smallest == largest:
        ranks = _random_subsets(sample_idx.numel(), smallest, num_negatives,
                                sample_idx.device, generator)
        index = _skip_own_equal(ranks, sample_idx, num_rows, label_index)
        return Negatives(num_negatives, index, distinct=True)
    index = _first_of_other_classes(sample_idx, num_rows, num_negatives,
                                    label_index, generator)
    if num_negatives <= smallest:
        return Negatives(num_negatives, index, distinct=True)
    # Classes so large that their pool has fewer than K rows repeat ids, the
    # others do not.
    small = _pool_size(sample_idx, num_rows, label_index) < num_negatives
    repeated = _with_replacement(sample_idx, num_rows, num_negatives,
                                 label_index, generator)
    return Negatives(num_negatives, torch.where(small[:, None], repeated,
                                                index))


def shared_negatives(sample_idx: Tensor,
                     num_rows: int,
                     num_negatives: int,
                     label_index: Optional[LabelIndex] = None,
                     generator: Optional[torch.Generator] = None
                     ) -> Negatives:
    """Draw K rows once for the whole batch; each anchor leaves its own out.

    Without replacement; all rows are taken when the bank has at most K.

    Args:
        sample_idx (Tensor): Row of each anchor, ``(B,)`` int64.
        num_rows (int): Rows N of the bank.
        num_negatives (int): K.
        label_index (LabelIndex, optional): Leave out the anchor's class
            rather than the anchor's row.
        generator (torch.Generator, optional): Source of randomness.

    Returns:
        Negatives: ``index`` is ``(min(K, N),)`` int64.
    """
    drawn = _random_rows(num_rows, num_negatives, sample_idx.device, generator)
    every = all_negatives(sample_idx, num_rows, num_negatives, label_index)
    return every._replace(index=drawn, pool=None)


def all_negatives(sample_idx: Tensor,
                  num_rows: int,
                  num_negatives: int,
                  label_index: Optional[LabelIndex] = None) -> Negatives:
    """Every row of each pool, weighted so that it counts as K negatives.

    Args:
        sample_idx (Tensor): Row of each anchor, ``(B,)`` int64.
        num_rows (int): Rows N of the bank.
        num_negatives (int): K.
        label_index (LabelIndex, optional): Leave out the anchor's class
            rather than the anchor's row.

    Returns:
        Negatives: ``index`` is None.
    """
    # As floats of the scores' width, keys are compared in place and fast;
    # beyond 2**24 float32 no longer tells neighbours apart.
    dtype = torch.float32 if num_rows < 1 << 24 else torch.float64
    if label_index is None:
        row_key = torch.arange(
            num_rows, dtype=dtype, device=sample_idx.device)
    else:
        row_key = label_index.row_class.to(dtype)
    return Negatives(
        num_negatives,
        row_key=row_key,
        anchor_key=row_key[sample_idx],
        pool=_pool_size(sample_idx, num_rows, label_index))


def _pool_size(sample_idx: Tensor, num_rows: int,
               label_index: Optional[LabelIndex]) -> Tensor:
    """Rows that may serve as negatives of each anchor, ``(B,)``."""
    if label_index is None:
        return torch.full_like(sample_idx, num_rows - 1)
    return num_rows - label_index.count[label_index.row_class[sample_idx]]


def _skip_own(ranks: Tensor, sample_idx: Tensor,
              label_index: Optional[LabelIndex]) -> Tensor:
    """Turn ranks within each pool, ``(B, K)``, into rows of the bank."""
    if label_index is None:
        return ranks.add_((ranks >= sample_idx[:, None]).to(ranks.dtype))
    own = label_index.row_class[sample_idx]
    start, count = label_index.start[own], label_index.count[own]
    ranks += (ranks >= start[:, None]) * count[:, None]
    return label_index.order[ranks]


def _skip_own_equal(ranks: Tensor, sample_idx: Tensor, num_rows: int,
                    label_index: Optional[LabelIndex]) -> Tensor:
    """:func:`_skip_own` for classes of equal size and int32 ranks.

    The size is then one number of the host, which saves two passes.
    """
    if label_index is None:
        ranks = ranks.add_(ranks >= sample_idx.to(ranks.dtype)[:, None])
        return ranks.long()
    start = label_index.start[label_index.row_class[sample_idx]]
    later = ranks >= start.to(ranks.dtype)[:, None]
    ranks = ranks.add_(later, alpha=num_rows - label_index.smallest_pool)
    rows = label_index.order.index_select(0, ranks.view(-1))
    return rows.view(ranks.shape)


def _with_replacement(sample_idx: Tensor, num_rows: int, num_negatives: int,
                      label_index: Optional[LabelIndex],
                      generator: Optional[torch.Generator]) -> Tensor:
    """Independent uniform draws from each pool, ``(B, K)``."""
    pool = _pool_size(sample_idx, num_rows, label_index)
    # 62 random bits modulo the pool: the bias is below 1e-12.
    ranks = torch.randint(
        1 << 62, (sample_idx.numel(), num_negatives),
        device=sample_idx.device,
        generator=generator)
    return _skip_own(ranks % pool[:, None], sample_idx, label_index)


def _first_of_other_classes(sample_idx: Tensor, num_rows: int,
                            num_negatives: int, label_index: LabelIndex,
                            generator: Optional[torch.Generator]) -> Tensor:
    """First K rows of another class in a random order, ``(B, K)``.

    For classes of unequal size. As many rows more than K are looked at as the
    largest class has, so K are always found where the pool has K; a pool that
    is smaller leaves an unspecified tail.
    """
    largest_class = num_rows - label_index.smallest_pool
    candidates = _random_subsets(sample_idx.numel(), num_rows,
                                 min(num_rows, num_negatives + largest_class),
                                 sample_idx.device, generator).long()
    return _first_others(candidates, label_index.row_class,
                         label_index.row_class[sample_idx], num_negatives)


def _draw_from_subset(sample_idx: Tensor, num_rows: int, num_negatives: int,
                      label_index: Optional[LabelIndex], largest_class: int,
                      generator: Optional[torch.Generator]) -> Negatives:
    """K negatives of each anchor from rows drawn for the whole step.

    The subset holds at least K rows of other classes for every anchor.
    """
    subset = _random_rows(num_rows, _SUBSET * num_negatives,
                          sample_idx.device, generator)
    if label_index is None:
        key, own = subset, sample_idx
    else:
        key = label_index.row_class[subset]
        own = label_index.row_class[sample_idx]
    candidates = _random_subsets(sample_idx.numel(), subset.numel(),
                                 num_negatives + largest_class,
                                 sample_idx.device, generator).long()
    index = _first_others(candidates, key, own, num_negatives)
    return Negatives(num_negatives, index, distinct=True, subset=subset)


def _random_rows(num_rows: int, most: int, device: torch.device,
                 generator: Optional[torch.Generator]) -> Tensor:
    """A uniform subset of at most ``most`` rows, ``(min(most, N),)``."""
    if device.type == 'cpu' and 8 * most < num_rows:
        return _first_distinct(num_rows, most, generator)
    return torch.randperm(
        num_rows, dtype=torch.int32, device=device,
        generator=generator)[:most].long()


def _first_distinct(num_rows: int, number: int,
                    generator: Optional[torch.Generator]) -> Tensor:
    """The first distinct ones of independent draws, ``(number,)``.

    That is a uniform subset, for a fraction of what a permutation of all
    rows costs where few of them are needed. Only on the host, where looking
    at how many are distinct does not wait for a GPU.
    """
    # About number**2 / (2 N) repeat: below a sixteenth.
    draws = torch.randint(
        num_rows, (number + number // 8 + 8, ), generator=generator)
    value, place = draws.sort(stable=True)
    repeated = place[1:][value[1:] == value[:-1]]
    first = torch.ones_like(draws, dtype=torch.bool)
    first[repeated] = False
    distinct = draws[first][:number]
    if distinct.numel() == number:
        return distinct
    # Nearly never; starting anew with a permutation leaves it uniform.
    return torch.randperm(num_rows, generator=generator)[:number]


def _first_others(candidates: Tensor, key: Tensor, own: Tensor,
                  num_negatives: int) -> Tensor:
    """First K candidates of another key than the anchor's, ``(B, K)``."""
    valid = key[candidates] != own[:, None]
    place = valid.cumsum(1).sub_(1)
    # What is not wanted goes to a column that is cut off.
    place.masked_fill_(~valid, num_negatives).clamp_(max=num_negatives)
    found = candidates.new_zeros(candidates.size(0), num_negatives + 1)
    return found.scatter_(1, place, candidates)[:, :num_negatives]


def _random_subsets(num_sets: int, size: int, length: int,
                    device: torch.device,
                    generator: Optional[torch.Generator]) -> Tensor:
    """``num_sets`` uniform subsets of ``range(size)``, ``(num_sets, length)``.

    The positions taken from one random permutation are an arithmetic
    progression of blocks modulo a prime, with an offset and a stride of each
    set's own. Any fixed set of positions of a uniform permutation is a
    uniform subset, so each set alone is exactly that. int32: half the bytes.
    """
    permutation = torch.randperm(
        size, dtype=torch.int32, device=device, generator=generator)
    block = _BLOCK if size >= _BLOCK * _BLOCK else 1
    num_blocks = _largest_prime(size // block)
    if num_blocks * block < length:
        block, num_blocks = 1, size
    need = -(-length // block)
    offset = torch.randint(
        num_blocks, (num_sets, 1), device=device, generator=generator)
    if num_blocks == size and block == 1:
        # Nearly the whole permutation is taken; any order of it will do.
        stride = torch.ones_like(offset)
    else:
        stride = torch.randint(
            1,
            max(num_blocks, 2), (num_sets, 1),
            device=device,
            generator=generator)
    steps = torch.arange(need, device=device)
    blocks = (offset + stride * steps) % num_blocks
    sets = permutation[:num_blocks * block].view(num_blocks, block)[blocks]
    sets = sets.view(num_sets, need * block)
    return sets[:, :length].contiguous()


def _largest_prime(limit: int) -> int:
    """Largest prime that does not exceed ``limit`` (1 below 2)."""
    for number in range(limit, 1, -1):
        if all(number % d for d in range(2, int(number**0.5) + 1)):
            return number
    return 1
