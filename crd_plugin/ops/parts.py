"""Negatives of an anchor as whole parts of one random draw of a step.

A product of all anchors with all rows is mostly for nothing: of CIFAR's
50,000 rows an anchor needs 16,384. Here the rows that a step draws are cut
into parts, and each anchor takes a few of them whole. A part is scored by the
anchors that took it alone, so only what is needed is multiplied.

The parts of an anchor, one after another, are a uniform random order of
rows. All that is asked of a row is whether it is of the anchor's class, so
exchanging two rows of the pool changes no probability; and K of the pool are
always found. Hence the first K are exactly a uniform K-subset of the pool.

How the draws of two anchors go together depends on how many rows they share:
in the mean about 3 / S of K, for S parts of which an anchor takes three. At
CIFAR's size that is 9 % more than of independent draws; of a bank of hardly
more than K rows all anchors share the three parts that there are; of one with
many times K rows they share a quarter.
"""

import functools
import math
from typing import NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from .scratch import scratch
from .subsets import random_rows

__all__ = ['Parts', 'draw_parts', 'part_sizes']

# Parts that each anchor takes, and most that a step draws: of a large bank
# an anchor takes a quarter of the rows that the step looks at.
_TAKEN, _MOST = 3, 12

# A class may be this many times K: own rows are drawn in vain.
_LARGEST_CLASS = 3


class Parts(NamedTuple):
    """Rows drawn for a step, in S parts, and who is scored against them.

    A part has G places. An anchor is in s places, no two of one part.

    Attributes:
        rows (Tensor): Rows of each part, ``(S, L)`` int64, all different.
        anchor (Tensor): Who is in each place, ``(S, G)`` int64.
        place (Tensor): Places of each anchor, counted through all parts,
            ``(B, s)`` int64.
        drawn (Tensor): Whether a row of the part is a negative of the anchor
            in that place, ``(S, G, L)`` bool: K over the places of an anchor,
            none in a place that nobody is in.
    """

    rows: Tensor
    anchor: Tensor
    place: Tensor
    drawn: Tensor

    @property
    def num_places(self) -> int:
        """int: Places of all parts, S * G."""
        return self.anchor.numel()

    @property
    def ids(self) -> Tensor:
        """Tensor: Negatives of each anchor as ids, ``(B, K)`` int64.

        For inspection: it reads back how many there are.
        """
        num_anchors = self.place.size(0)
        drawn = self.drawn.flatten(0, 1)[self.place]
        part = self.place.div(self.anchor.size(1), rounding_mode='floor')
        return self.rows[part][drawn].view(num_anchors, -1)

    def spread(self, query: Tensor) -> Tensor:
        """A row for each place, from a row for each anchor.

        Args:
            query (Tensor): Of E directions, ``(E, B, D)``.

        Returns:
            Tensor: ``(E, S * G, D)``.
        """
        return query.index_select(1, self.anchor.view(-1))

    def collect(self, values: Tensor) -> Tensor:
        """What was found in the places of each anchor.

        Args:
            values (Tensor): Of E directions, ``(E, S * G, ...)``.

        Returns:
            Tensor: ``(E, B, s, ...)``.
        """
        found = values.index_select(1, self.place.view(-1))
        return found.view(-1, *self.place.shape, *values.shape[2:])


def part_sizes(num_rows: int, num_negatives: int, largest_class: int) -> Optional[Tuple[int, int]]:
    """Into how many parts of how many rows a draw is cut.

    The parts of an anchor hold K rows of other classes, whatever is drawn.

    Args:
        num_rows (int): Rows N of the bank.
        num_negatives (int): K.
        largest_class (int): Most rows that no negative of an anchor may be.

    Returns:
        tuple[int, int], optional: S and L; None if the bank is too small for
        it, or a class so large that most of the rows would be drawn in vain.
    """
    if largest_class > _LARGEST_CLASS * num_negatives:
        return None
    wanted = num_negatives + largest_class
    # Rows in eights are counted faster; up to 23 rows more cost nothing where
    # there are 1,024.
    for unit in (8, 1) if wanted >= 1024 else (1,):
        length = -(-wanted // (_TAKEN * unit)) * unit
        number = min(num_rows // length, _MOST)
        if number >= _TAKEN:
            return number, length
    return None


def draw_parts(
    sample_idx: Tensor,
    num_rows: int,
    num_negatives: int,
    sizes: Tuple[int, int],
    row_class: Optional[Tensor] = None,
    num_classes: Optional[int] = None,
    generator: Optional[torch.Generator] = None,
) -> Parts:
    """Draw a step's rows and deal them to the anchors.

    Nothing is read back to the host. Who takes which parts is uploaded once
    for each batch size.

    Args:
        sample_idx (Tensor): Row of each anchor, ``(B,)`` int64.
        num_rows (int): Rows N of the bank.
        num_negatives (int): K.
        sizes (tuple[int, int]): From :func:`part_sizes`.
        row_class (Tensor, optional): Class of each row, counted from 0,
            ``(N,)`` int64. Defaults to None: every row is a class of its own.
        num_classes (int, optional): How many these are. Defaults to None: at
            most N.
        generator (torch.Generator, optional): Source of randomness on the
            device of ``sample_idx``.

    Returns:
        Parts: K negatives of each anchor.
    """
    number, length = sizes
    device = sample_idx.device
    rows = random_rows(num_rows, number * length, device, generator)
    deal = _deal(sample_idx.numel(), number, device)
    row_key, own = rows, sample_idx
    if row_class is not None:
        row_key, own = (row_class.index_select(0, ids) for ids in (rows, own))
    rows, row_key = (side.view(number, length) for side in (rows, row_key))
    drawn = _differ(row_key, own[deal.anchor], num_classes or num_rows)
    flat = drawn.view(-1, length)
    if deal.empty.numel():
        flat.index_fill_(0, deal.empty, False)
    _leave(flat, deal.place, num_negatives)
    return Parts(rows, deal.anchor, deal.place, drawn)


class _Deal(NamedTuple):
    """Who takes which parts: ``anchor`` and ``place`` of :class:`Parts`.

    Attributes:
        anchor (Tensor): ``(S, G)``; any where nobody is.
        place (Tensor): ``(B, s)``.
        empty (Tensor): Places that nobody is in.
    """

    anchor: Tensor
    place: Tensor
    empty: Tensor


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def _deal(num_anchors: int, number: int, device: torch.device) -> _Deal:
    """Deal S = ``number`` parts to anchors.

    S anchors after one another begin at different parts and go on with one
    stride, so that each part is taken equally often; the next S have another
    stride. Nothing of it is random: the rows in the parts are, and so is
    where a sample stands in a shuffled batch.
    """
    # Strides that reach s different parts.
    strides = [
        stride for stride in range(1, number) if number // math.gcd(stride, number) >= _TAKEN
    ]
    rounds = -(-num_anchors // number)
    # On the host, whatever the default device is.
    anchor = torch.full((number, rounds * _TAKEN), num_anchors, device='cpu')
    place = torch.empty(num_anchors, _TAKEN, dtype=torch.int64, device='cpu')
    for who in range(num_anchors):
        time, first = divmod(who, number)
        stride = strides[time % len(strides)]
        for turn in range(_TAKEN):
            part, column = (first + turn * stride) % number, (time * _TAKEN + turn)
            anchor[part, column] = who
            place[who, turn] = part * anchor.size(1) + column
    empty = (anchor.view(-1) == num_anchors).nonzero().view(-1)
    return _Deal(anchor.clamp_(max=num_anchors - 1).to(device), place.to(device), empty.to(device))


def _differ(row_key: Tensor, own: Tensor, num_keys: int) -> Tensor:
    """Which rows of a part have another key than who is in its places.

    A CPU compares numbers of a byte thirty times as fast as long integers, and
    into numbers of the same type rather than into bools.

    Args:
        row_key (Tensor): Of each part, ``(S, L)`` int64.
        own (Tensor): Of each place, ``(S, G)`` int64.
        num_keys (int): Keys are from 0 to below it.

    Returns:
        Tensor: ``(S, G, L)`` bool.
    """
    row_key, own = row_key[:, None], own[:, :, None]
    if own.device.type != 'cpu':
        return row_key != own
    narrow = next(
        dtype
        for dtype in (torch.uint8, torch.int16, torch.int32, torch.int64)
        if num_keys - 1 <= torch.iinfo(dtype).max
    )
    row_key, own = row_key.to(narrow), own.to(narrow)
    differ = torch.ne(row_key, own, out=scratch('differ', (*own.shape[:2], row_key.size(2)), own))
    return differ.to(torch.uint8, copy=True).view(torch.bool)


def _leave(drawn: Tensor, place: Tensor, num_negatives: int) -> None:
    """Leave the first K in the places of each anchor, in place.

    Args:
        drawn (Tensor): ``(S * G, L)`` bool, at least K of each anchor.
        place (Tensor): ``(B, s)``.
        num_negatives (int): K.
    """
    num_anchors, taken = place.shape
    length = drawn.size(1)
    too_many = _count(drawn)[place].sum(1, keepdim=True) - num_negatives
    # The surplus is all among this many last rows, whichever are left out.
    tail = taken * length - num_negatives
    turns = -(-tail // length)
    where = place[:, taken - turns :].reshape(-1)
    some = drawn[where].view(num_anchors, turns * length)
    last = some[:, -tail:]
    rank = last.cumsum(1, dtype=torch.int32)
    last.logical_and_(rank <= rank[:, -1:] - too_many)
    drawn.index_copy_(0, where, some.view(-1, length))


def _count(mask: Tensor) -> Tensor:
    """How many are true in each row of ``(n, L)``, int32.

    A CPU adds bytes eight at a time where L allows it: ``sum`` would first
    make an integer of each, in memory that has to be found.
    """
    if mask.device.type != 'cpu' or mask.size(1) % 8:
        return mask.sum(1, dtype=torch.int32)
    # No byte of a sum of 255 words overflows into the next.
    sums = [words.sum(1) for words in mask.view(torch.int64).split(255, 1)]
    return torch.stack(sums, 1).view(torch.uint8).sum(1, dtype=torch.int32)
