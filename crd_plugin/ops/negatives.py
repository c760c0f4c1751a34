"""Which rows of a memory bank each anchor is scored against."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

# 'sampled' cuts one draw into at most this many sets, and an anchor takes this many of them: the
# products cost TAKEN / MOST_SETS of scoring the whole draw.
MOST_SETS = 8
TAKEN = 3

# Up to this many rows per negative, explicit ids are counted over the whole bank; a larger bank
# gathers the rows of each anchor instead.
_ROWS_PER_GIVEN_ID = 16


class Shards:
    """How the rows of a bank are split over ranks. This class: not at all.

    Row j is kept by rank ``j % world`` as its row ``j // world``.
    """

    rank = 0
    world = 1

    def gather(self, values: Tensor) -> Tensor:
        """Concatenate the values of all ranks' anchors, along dimension 1."""
        return values

    def largest(self, values: Tensor) -> Tensor:
        """Return the elementwise maximum over the ranks."""
        return values

    def own(self, values: Tensor) -> Tensor:
        """Select this rank's anchors, along dimension 1."""
        return values

    def own_sum(self, values: Tensor) -> Tensor:
        """Sum over the ranks and select this rank's anchors, along dimension 1."""
        return values


class RowKeys(NamedTuple):
    """Key of every row: rows that share the anchor's key are never its negatives."""

    key: Tensor  # Class of each row, or its own position, (N,) integer.
    mean_pool: float  # Rows of another key that a row has on average.
    smallest_pool: int  # Fewest rows of another key that any row has.


class Negatives(NamedTuple):
    """S sets of L rows, and which anchors each set serves.

    Every set is scored against b anchors, so an objective needs S small dense products. What
    remains after leaving out rows of an anchor's own key is weighted K / remaining, which makes the
    sum an unbiased estimate of K uniform negatives.
    """

    num_negatives: int  # K of the objective.
    num_rows: int  # Rows N of the whole bank.
    shards: Shards  # How the rows are split over ranks.
    positive: Tensor  # Row of the positive of each anchor, (B,) int64.
    rows: Tensor | None  # Rows of each set, (S, L) int64. None: one set, every row of the bank.
    anchors: Tensor  # Anchor in each slot of each set, (S, b) int64.
    slots: Tensor  # Slots of each anchor among the S * b, (B, taken) int64.
    # Key of each row that is scored here, (N,), and of each anchor, (B,). None: every row counts.
    row_key: Tensor | None = None
    anchor_key: Tensor | None = None
    # How often each row counts for each anchor, (B, N) float, with `rows` None.
    counts: Tensor | None = None

    @property
    def rows_per_set(self) -> int:
        """int: Rows L of a set."""
        if self.rows is not None:
            return self.rows.size(1)
        every = self.row_key if self.counts is None else self.counts[0]
        return 0 if every is None else len(every)

    def collect(self, values: Tensor) -> Tensor:
        """Turn values of slots ``(E, S, b, ...)`` into those of anchors ``(E, B, taken, ...)``."""
        return values.flatten(1, 2)[:, self.slots]


def check_classes(labels: Tensor) -> None:
    """Raise a ValueError for a negative label: samples without a class are not one class."""
    if (labels < 0).any():
        raise ValueError(
            f"labels has {int(labels.min())}, but exclude='class' needs classes from 0 on; use "
            "exclude='instance' for samples without one."
        )


def class_keys(labels: Tensor) -> RowKeys:
    """Make the class of each row, integers ``(N,)`` from 0 on, its key (``exclude='class'``)."""
    check_classes(labels)
    values, key, count = torch.unique(labels, return_inverse=True, return_counts=True)
    num_rows = labels.numel()
    if len(values) < 2:
        raise ValueError(
            f'labels holds {len(values)} class over {num_rows} rows, so no row of another class '
            "exists; use exclude='instance' or a training set with at least two classes."
        )
    # A narrow type makes the comparison of an anchor with many rows cheaper.
    narrow = torch.int16 if len(values) < 1 << 15 else torch.int32
    mean_pool = num_rows - float((count.double() ** 2).sum()) / num_rows
    return RowKeys(key.to(narrow), mean_pool, num_rows - int(count.max()))


def row_keys(num_rows: int, device: torch.device) -> RowKeys:
    """Make the position of each of N rows its key (``exclude='instance'``)."""
    key = torch.arange(num_rows, dtype=torch.int32, device=device)
    return RowKeys(key, num_rows - 1.0, num_rows - 1)


def draw_negatives(
    rule: str, sample_idx: Tensor, keys: RowKeys, num_negatives: int, shards: Shards | None = None
) -> Negatives:
    """Choose the negatives of a batch.

    ``'all'``: every row. ``'shared'``: one draw of K rows for all anchors. ``'sampled'``: one draw
    is cut into sets; the anchors fall into as many groups, and group g takes the sets g, g + 1, ...
    (cyclic), so that about K rows of another key remain for each anchor, a uniform subset without
    repetition. A bank that has not enough rows for that is scored whole.

    Args:
        rule (str): ``'sampled'``, ``'shared'`` or ``'all'``.
        sample_idx (Tensor): Row of each anchor's positive, ``(B,)`` int64.
        keys (RowKeys): Keys of all N rows.
        num_negatives (int): K, negatives per anchor.
        shards (Shards, optional): Draw this rank's share from the rows that it keeps. Defaults to
            None: all rows are here.

    Returns:
        Negatives: Ready to be scored; ``rows`` count within the shard.
    """
    shards = shards or Shards()
    world = shards.world
    row_key = keys.key[shards.rank :: world]
    num_rows, batch = row_key.numel(), sample_idx.numel()
    if rule == 'all':
        wanted = num_rows
    elif rule == 'shared':
        wanted = math.ceil(num_negatives / world)
    else:
        # More than K, because the rows of the anchor's own key are left out.
        wanted = math.ceil(num_negatives * keys.key.numel() / (keys.mean_pool * world))
    num_sets, taken, length = 1, 1, wanted
    if rule == 'sampled':
        num_sets, taken, length = _set_sizes(batch, num_rows, wanted)
    rows = None
    if num_sets * length < num_rows:
        rows = random_rows(num_rows, num_sets * length, sample_idx.device)
        rows = rows.view(num_sets, length)
    anchors, slots = _group(batch, num_sets, taken, sample_idx.device)
    drawn = Negatives(num_negatives, keys.key.numel(), shards, sample_idx, rows, anchors, slots)
    return drawn._replace(row_key=row_key, anchor_key=keys.key[sample_idx])


def given_negatives(
    contrast_idx: Tensor,
    num_rows: int,
    dtype: torch.dtype = torch.float32,
    shards: Shards | None = None,
) -> Negatives:
    """Score the given rows ``(B, 1 + K)``, the positive first, as often as each is given."""
    shards = shards or Shards()
    positive, index = contrast_idx[:, 0], contrast_idx[:, 1:]
    batch, num_negatives = index.shape
    each = torch.arange(batch, device=index.device)[:, None]
    if shards.world == 1 and num_rows > _ROWS_PER_GIVEN_ID * num_negatives:
        return Negatives(num_negatives, num_rows, shards, positive, index, each, each)
    here = index % shards.world == shards.rank
    kept = len(range(shards.rank, num_rows, shards.world))
    counts = torch.zeros(batch, kept, dtype=dtype, device=index.device)
    place = torch.where(here, index // shards.world, 0)
    counts.scatter_add_(1, place, here.to(dtype))
    return Negatives(
        num_negatives, num_rows, shards, positive, None, each.view(1, -1), each, counts=counts
    )


def random_rows(
    num_rows: int, number: int, device: torch.device, generator: torch.Generator | None = None
) -> Tensor:
    """Draw some of N rows without repetition, in random order, ``(number,)`` int64."""
    if device.type == 'cpu' and 8 * number < num_rows:
        # A permutation of a million rows would cost more than the objective. Of independent draws
        # about number / 16 repeat; what is left when these are dropped is a uniform subset.
        draws = torch.randint(num_rows, (number + number // 8 + 8,), generator=generator)
        distinct = torch.unique(draws)
        if distinct.numel() >= number:
            order = torch.randperm(distinct.numel(), generator=generator)[:number]
            return distinct[order]
    return torch.randperm(num_rows, device=device, generator=generator)[:number]


def _set_sizes(batch: int, num_rows: int, wanted: int) -> tuple[int, int, int]:
    """Number of sets, sets per anchor and rows per set, for ``wanted`` rows per anchor."""
    length = -(-wanted // TAKEN)
    num_sets = min(MOST_SETS, batch, num_rows // length)
    if num_sets <= TAKEN:
        return 1, 1, wanted
    # Drop the sets that rounding up the size of a group would leave idle.
    return -(-batch // -(-batch // num_sets)), TAKEN, length


def _group(batch: int, num_sets: int, taken: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Anchors of each set ``(S, b)`` and slots of each anchor ``(B, taken)``."""
    # Group g takes the sets g, ..., g + taken - 1, so set s serves the groups s - taken + 1, ..., s
    # (cyclic), in this order.
    size = -(-batch // num_sets)
    anchor = torch.arange(batch, device=device)
    group, place = anchor // size, anchor % size
    later = torch.arange(taken, device=device)
    one_set = (group[:, None] + later) % num_sets
    slots = (one_set * taken + (taken - 1 - later)) * size + place[:, None]
    sets = torch.arange(num_sets, device=device)[:, None]
    served = (sets + torch.arange(1 - taken, 1, device=device)) % num_sets
    anchors = served[..., None] * size + torch.arange(size, device=device)
    # The last group may be short: it repeats anchors, in slots that nobody reads.
    return anchors.view(num_sets, -1) % batch, slots
