"""Drawing the negatives of an anchor on the device, without the data loader.

The published code draws 16,384 ids a sample in the data loader. Here a step
draws once and deals what it drew to the anchors, see
:mod:`crd_plugin.ops.parts`: for each anchor that is exactly a uniform K-subset
of its pool. Where that is not possible (a bank of hardly more than K rows, a
class of more than 3 K) each anchor gets ids of its own.
"""

from typing import NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from .parts import Parts, draw_parts, part_sizes
from .subsets import random_rows, random_subsets

__all__ = [
    'LabelIndex',
    'Negatives',
    'all_negatives',
    'build_label_index',
    'draw_negatives',
    'shared_negatives',
]

# Candidates that are looked at together where classes are of unequal size.
_CANDIDATES = 1 << 22


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

    Exactly one of four forms:

    * ``parts``: those of each anchor as parts of one draw (``'sampled'``).
    * ``index (B, K)``: ids of its own for each anchor (explicit ids, and
      ``'sampled'`` where there can be no parts). ``distinct`` promises that
      no id repeats in a row.
    * ``index (M,)``: one draw for all anchors (``'shared'``).
    * neither: every row (``'all'``).

    In the last two forms, rows whose ``row_key`` equals the ``anchor_key`` are
    left out and what remains is weighted ``num_negatives / remaining``.

    Attributes:
        num_negatives (int): K of the objective.
        index (Tensor, optional): Row ids, int64.
        distinct (bool): No id repeats within a row of ``index``.
        row_key (Tensor, optional): Class or id of each row, ``(N,)``.
        anchor_key (Tensor, optional): Class or id of each anchor, ``(B,)``.
        pool (Tensor, optional): Rows that remain for each anchor of
            ``'all'``, ``(B,)`` int64.
        parts (Parts, optional): From :func:`crd_plugin.ops.parts.draw_parts`.
        drawn (Tensor, optional): ``index (B, K)`` as a mask or as counts,
            ``(B, N)``, see :func:`crd_plugin.ops.prepare`.
    """

    num_negatives: int
    index: Optional[Tensor] = None
    distinct: bool = False
    row_key: Optional[Tensor] = None
    anchor_key: Optional[Tensor] = None
    pool: Optional[Tensor] = None
    parts: Optional[Parts] = None
    drawn: Optional[Tensor] = None

    @property
    def per_anchor(self) -> bool:
        """bool: Each anchor has K of its own."""
        return self.parts is not None or (self.index is not None and self.index.dim() == 2)

    @property
    def ids(self) -> Optional[Tensor]:
        """Tensor: Ids of each anchor's own negatives, ``(B, K)``."""
        return self.index if self.parts is None else self.parts.ids


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
            'training set with at least two classes.'
        )
    # Of narrow integers torch sorts by counting.
    narrow = torch.int16 if count.numel() < 1 << 15 else torch.int64
    return LabelIndex(
        order=torch.argsort(row_class.to(narrow), stable=True),
        row_class=row_class,
        start=count.cumsum(0) - count,
        count=count,
        smallest_pool=num_rows - int(count.max()),
        largest_pool=num_rows - int(count.min()),
    )


def _classes(labels: Tensor) -> Tuple[Tensor, Tensor]:
    """Position of every row's class among those there are, and their sizes.

    ``torch.unique`` sorts all rows for it; where labels count classes from
    about 0, as they usually do, counting is enough.
    """
    if labels.numel():
        smallest, largest = (int(end) for end in labels.aminmax())
    if not labels.numel() or smallest < 0 or largest > labels.numel():
        _, row_class, count = torch.unique(labels, return_inverse=True, return_counts=True)
        return row_class, count
    count = torch.bincount(labels)
    there = count > 0
    if there.all():
        return labels.long(), count
    position = there.cumsum(0) - 1
    return position[labels.long()], count[there]


def draw_negatives(
    sample_idx: Tensor,
    num_rows: int,
    num_negatives: int,
    label_index: Optional[LabelIndex] = None,
    generator: Optional[torch.Generator] = None,
) -> Negatives:
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
        Negatives: With ``parts``, or with ``index (B, K)``.
    """
    largest_class = 1 if label_index is None else num_rows - label_index.smallest_pool
    sizes = part_sizes(num_rows, num_negatives, largest_class)
    if sizes is not None:
        row_class = num_classes = None
        if label_index is not None:
            row_class = label_index.row_class
            num_classes = label_index.count.numel()
        parts = draw_parts(
            sample_idx, num_rows, num_negatives, sizes, row_class, num_classes, generator
        )
        return Negatives(num_negatives, distinct=True, parts=parts)
    index, distinct = _own_ids(sample_idx, num_rows, num_negatives, label_index, generator)
    return Negatives(num_negatives, index, distinct)


def shared_negatives(
    sample_idx: Tensor,
    num_rows: int,
    num_negatives: int,
    label_index: Optional[LabelIndex] = None,
    generator: Optional[torch.Generator] = None,
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
    drawn = random_rows(num_rows, num_negatives, sample_idx.device, generator)
    every = all_negatives(sample_idx, num_rows, num_negatives, label_index)
    return every._replace(index=drawn, pool=None)


def all_negatives(
    sample_idx: Tensor, num_rows: int, num_negatives: int, label_index: Optional[LabelIndex] = None
) -> Negatives:
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
        row_key = torch.arange(num_rows, dtype=dtype, device=sample_idx.device)
    else:
        row_key = label_index.row_class.to(dtype)
    return Negatives(
        num_negatives,
        row_key=row_key,
        anchor_key=row_key[sample_idx],
        pool=_pool_size(sample_idx, num_rows, label_index),
    )


def _pool_size(sample_idx: Tensor, num_rows: int, label_index: Optional[LabelIndex]) -> Tensor:
    """Rows that may serve as negatives of each anchor, ``(B,)``."""
    if label_index is None:
        return torch.full_like(sample_idx, num_rows - 1)
    return num_rows - label_index.count[label_index.row_class[sample_idx]]


def _own_ids(
    sample_idx: Tensor,
    num_rows: int,
    num_negatives: int,
    label_index: Optional[LabelIndex],
    generator: Optional[torch.Generator],
) -> Tuple[Tensor, bool]:
    """Ids of each anchor's own, ``(B, K)``, and whether none repeats."""
    arguments = sample_idx, num_rows, num_negatives, label_index, generator
    smallest = largest = num_rows - 1
    if label_index is not None:
        smallest = label_index.smallest_pool
        largest = label_index.largest_pool
    if num_negatives > largest:
        return _with_replacement(*arguments), False
    if smallest == largest:
        ranks = random_subsets(
            sample_idx.numel(), smallest, num_negatives, sample_idx.device, generator
        )
        return _skip_own(ranks.long(), sample_idx, label_index), True
    index = _first_of_other_classes(*arguments)
    if num_negatives <= smallest:
        return index, True
    # Classes so large that their pool has fewer than K rows repeat ids, the
    # others do not.
    small = _pool_size(sample_idx, num_rows, label_index) < num_negatives
    repeated = _with_replacement(*arguments)
    return torch.where(small[:, None], repeated, index), False


def _skip_own(ranks: Tensor, sample_idx: Tensor, label_index: Optional[LabelIndex]) -> Tensor:
    """Turn ranks within each pool, ``(B, K)``, into rows of the bank."""
    if label_index is None:
        return ranks.add_((ranks >= sample_idx[:, None]).to(ranks.dtype))
    own = label_index.row_class[sample_idx]
    start, count = label_index.start[own], label_index.count[own]
    ranks += (ranks >= start[:, None]) * count[:, None]
    return label_index.order[ranks]


def _with_replacement(
    sample_idx: Tensor,
    num_rows: int,
    num_negatives: int,
    label_index: Optional[LabelIndex],
    generator: Optional[torch.Generator],
) -> Tensor:
    """Independent uniform draws from each pool, ``(B, K)``."""
    pool = _pool_size(sample_idx, num_rows, label_index)
    # 62 random bits modulo the pool: the bias is below 1e-12.
    ranks = torch.randint(
        1 << 62, (sample_idx.numel(), num_negatives), device=sample_idx.device, generator=generator
    )
    return _skip_own(ranks % pool[:, None], sample_idx, label_index)


def _first_of_other_classes(
    sample_idx: Tensor,
    num_rows: int,
    num_negatives: int,
    label_index: LabelIndex,
    generator: Optional[torch.Generator],
) -> Tensor:
    """First K rows of another class in a random order, ``(B, K)``.

    For classes of unequal size. As many rows more than K are looked at as the
    largest class has, so K are always found where the pool has K; a pool that
    is smaller leaves an unspecified tail.
    """
    largest_class = num_rows - label_index.smallest_pool
    length = min(num_rows, num_negatives + largest_class)
    together = max(1, _CANDIDATES // length)
    found = []
    for anchors in sample_idx.split(together):
        candidates = random_subsets(
            anchors.numel(), num_rows, length, anchors.device, generator
        ).long()
        found.append(
            _first_others(
                candidates, label_index.row_class, label_index.row_class[anchors], num_negatives
            )
        )
    return torch.cat(found)


def _first_others(candidates: Tensor, key: Tensor, own: Tensor, num_negatives: int) -> Tensor:
    """First K candidates of another key than the anchor's, ``(B, K)``."""
    valid = key[candidates] != own[:, None]
    place = valid.cumsum(1).sub_(1)
    # What is not wanted goes to a column that is cut off.
    place.masked_fill_(~valid, num_negatives).clamp_(max=num_negatives)
    found = candidates.new_zeros(candidates.size(0), num_negatives + 1)
    return found.scatter_(1, place, candidates)[:, :num_negatives]
