"""Scores of anchors against rows of memory banks, a tile at a time.

Tiles of a size that the cache holds are made, looked at and dropped, so no
tensor of all scores is ever kept. How they are made depends on how negatives
were drawn; who looks at them does not have to know.
"""

import math
from typing import Callable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from .matmul import times_transposed
from .negatives import Negatives
from .parts import Parts
from .scratch import scratch

__all__ = ['Tile', 'gather', 'prepare', 'score_tiles']

# Elements of one tile of scores: within the second-level cache on a CPU,
# enough to fill the chip on a GPU.
_TILE_CPU, _TILE_GPU = 1 << 18, 1 << 24

# Ids of an anchor's own are scored by one matrix product with all rows of the
# bank while these are at most this many times K, above that by gathering K
# rows an anchor. Measured on an AVX-512 CPU, D = 128: the product costs about
# 5 ns a row and anchor, a gathered row 40 to 80 ns.
_DENSE_ROWS_PER_NEGATIVE = 12


class Tile(NamedTuple):
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

    def add(self, total: Optional[Tensor], value: Tensor, places: Tuple[int, int]) -> Tensor:
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


def prepare(negatives: Negatives, num_rows: int, dtype: torch.dtype) -> Negatives:
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
    if index is None or index.dim() == 1 or not dense or (negatives.drawn is not None):
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


def score_tiles(query: Tensor, banks: Sequence[Tensor], negatives: Negatives) -> Iterator[Tile]:
    """Yield the scores of all anchors against their negatives, in tiles.

    Of parts, ``query`` and the tiles' anchors are those of the places.

    Args:
        query (Tensor): Anchors divided by the temperature, ``(E, B, D)``.
        banks (Sequence[Tensor]): Rows for each direction, E of ``(N, D)``.
        negatives (Negatives): The rows to score.

    Yields:
        Tile: Its scores may be overwritten.
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

        yield from _matrix_tiles(query, banks, None, weigh, negatives.drawn.dtype != torch.bool)
    else:
        yield from _gathered_rows(query, banks, negatives.index)


def _parts(query: Tensor, banks: Sequence[Tensor], parts: Parts) -> Iterator[Tile]:
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
            rows = gather(banks[sides], ids.view(-1), 'rows')
            rows = rows.to(query.dtype).view(-1, *ids.shape, width)
            for first in range(0, places, few):
                some = slice(first, min(first + few, places))
                weight = memory[: len(ids), : some.stop - first]
                if sides.start == 0 or few < places:
                    # Else they are still there from the direction before.
                    weight.copy_(drawn[part, some])
                # Either all places of some parts or some of one part.
                here = slice(begin * places + first, (part.stop - 1) * places + some.stop)
                score = _products(query[sides, part, some], rows)
                yield Tile(score, rows, (sides, here), weight)


def _common_rows(query: Tensor, banks: Sequence[Tensor], negatives: Negatives) -> Iterator[Tile]:
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


def _matrix_tiles(
    query: Tensor,
    banks: Sequence[Tensor],
    chosen: Optional[Tensor],
    weigh: Callable[[Tensor, slice], None],
    repeats: bool = False,
) -> Iterator[Tile]:
    """Matrix products of all anchors with one run of rows after another.

    Chosen rows are gathered a run at a time, while the cache holds them.
    ``weigh`` writes the weights of a run.
    """
    num_anchors, every = query.size(1), slice(None)
    num_rows = banks[0].size(0) if chosen is None else chosen.numel()
    size = min(max(1, _tile_elements(query) // num_anchors), num_rows)
    memory = scratch('weight', (num_anchors, size), query)
    # Rows that lie in two banks are not brought together.
    together = (
        _together(query)
        if chosen is not None
        else [slice(side, side + 1) for side in range(len(banks))]
    )
    for begin in range(0, num_rows, size):
        part = slice(begin, min(begin + size, num_rows))
        weight = memory[:, : part.stop - begin]
        weigh(weight, part)
        for sides in together:
            if chosen is None:
                rows = banks[sides.start][None, part]
            else:
                rows = gather(banks[sides], chosen[part], 'rows')
            rows = rows.to(query.dtype)
            score = _products(query[sides], rows)
            yield Tile(score, rows, (sides, every), weight, repeats)


def _gathered_rows(query: Tensor, banks: Sequence[Tensor], index: Tensor) -> Iterator[Tile]:
    """K gathered rows an anchor, few anchors at a time."""
    num_anchors, width = query.shape[1:]
    elements = index.size(1) * width
    size = min(max(1, _tile_elements(query) // elements), num_anchors)
    for begin in range(0, num_anchors, size):
        part = slice(begin, begin + size)
        ids = index[part]
        for sides in _together(query):
            rows = gather(banks[sides], ids.reshape(-1), 'rows')
            rows = rows.to(query.dtype).view(-1, *ids.shape, width)
            score = _products(query[sides, part, None], rows)
            yield Tile(score, rows, (sides, part))


def gather(banks: Sequence[Tensor], index: Tensor, name: str) -> Tensor:
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


def _products(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right.mT``, of one direction and group or of several."""
    lead = left.shape[:-2]
    if math.prod(lead) > 1:
        return torch.matmul(left, right.transpose(-1, -2))
    only = (0,) * len(lead)
    product = times_transposed(left[only], right[only])
    return product.view(*lead, *product.shape)


def _together(query: Tensor) -> List[slice]:
    """Directions whose tiles are made at once: on a CPU one, else all."""
    number = query.size(0)
    if query.device.type != 'cpu':
        return [slice(0, number)]
    return [slice(side, side + 1) for side in range(number)]


def _as_numbers(mask: Tensor) -> Tensor:
    """A mask as bytes, which turn into floats eight times as fast."""
    return mask.view(torch.int8) if mask.dtype == torch.bool else mask


def _tile_elements(tensor: Tensor) -> int:
    """Elements of a tile on the device of ``tensor``."""
    return _TILE_CPU if tensor.device.type == 'cpu' else _TILE_GPU
