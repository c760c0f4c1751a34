"""A memory bank whose rows are split over the ranks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce, gather, get_rank, get_world_size
from torch import Tensor

from crd_plugin.ops import Shards
from crd_plugin.registry import MODELS

from .bank_state import SIDES
from .collectives import gather_rows, gather_sizes, own_part
from .memory_bank import MemoryBank

__all__ = ['ShardedBank']

# Rows that are sent to rank 0 at a time.
_ROWS_AT_ONCE = 1 << 16


class RankShards(Shards):
    """Rows split over the ranks of the default process group, and ``sizes`` anchors of each rank.

    ``gather``, ``largest`` and ``own_sum`` are collectives: all ranks must call them.
    """

    def __init__(self, sizes: Sequence[int] = ()) -> None:
        self.rank = get_rank()
        self.world = get_world_size()
        self.sizes = tuple(sizes)

    def gather(self, values: Tensor) -> Tensor:
        """Concatenate the anchors of all ranks, along dimension 1."""
        return gather_rows(values.transpose(0, 1), self.sizes).transpose(0, 1)

    def largest(self, values: Tensor) -> Tensor:
        """Return the elementwise maximum over the ranks."""
        values = values.clone()
        all_reduce(values, 'max')
        return values

    def own(self, values: Tensor) -> Tensor:
        """Select this rank's anchors, along dimension 1."""
        return values[:, own_part(self.sizes)]

    def own_sum(self, values: Tensor) -> Tensor:
        """Sum over the ranks and select this rank's anchors, along dimension 1."""
        all_reduce(values)
        return self.own(values)


@MODELS.register_module()
class ShardedBank(MemoryBank):
    """:class:`MemoryBank` of which rank r keeps the rows r, r + W, r + 2 W, ...

    For N too large for one device: memory falls as 1 / W, the result stays. ``student`` and
    ``teacher`` are ``(N / W, D)``; labels ``(N,)`` are on every rank. Arguments are those of
    :class:`MemoryBank`.

    Rows are plain tensors instead of buffers, and with several ranks they are not in the state
    dict: ``DistributedDataParallel`` and MMEngine's runner make buffers and state dicts of all
    ranks alike. They still move with the module. ``crd_plugin.CheckpointHook`` gathers all N for a
    checkpoint, which any number of ranks can load.
    """

    # All rows, on the host of rank 0, while a checkpoint is saved.
    _whole: dict[str, Tensor] = {}

    def _hold(self, side: str, rows: Tensor) -> None:
        """Keep the rows of one side in an attribute."""
        setattr(self, side, rows)

    def shards(self, sample_idx: Tensor | None = None) -> Shards:
        """Return how the rows are split over ranks; with the ids of a step, a collective."""
        if sample_idx is None:
            return RankShards()
        return RankShards(gather_sizes(sample_idx.numel(), sample_idx.device))

    @contextmanager
    def gather_rows_for_checkpoint(self) -> Iterator[None]:
        """Let ``state_dict()`` of rank 0 have all N rows; all ranks must enter it."""
        if get_world_size() > 1:
            whole = {side: self._gather(getattr(self, side).detach()) for side in SIDES}
            self._whole = whole if get_rank() == 0 else {}
        try:
            yield
        finally:
            self._whole = {}

    def _gather(self, rows: Tensor) -> Tensor:
        """All rows of one side ``(N, D)`` on rank 0, an empty tensor elsewhere."""
        world, whole = get_world_size(), torch.empty(0)
        longest = -(-self.num_samples // world)
        if get_rank() == 0:
            whole = torch.empty(self.num_samples, self.embed_dim, dtype=rows.dtype)
        for start in range(0, longest, _ROWS_AT_ONCE):
            part = rows[start : start + _ROWS_AT_ONCE]
            size = min(_ROWS_AT_ONCE, longest - start)
            # The last shards may have one row less.
            ranks = gather(F.pad(part, (0, 0, 0, size - len(part))))
            if ranks:
                place = whole[start * world : (start + size) * world]
                place.copy_(torch.stack(ranks, 1).flatten(0, 1)[: len(place)])
        return whole

    @contextmanager
    def _rows_as_buffers(self) -> Iterator[None]:
        """Let ``nn.Module`` treat the rows as it treats buffers."""
        for side in SIDES:
            super()._hold(side, self.__dict__.pop(side))
        try:
            yield
        finally:
            for side in SIDES:
                rows: Any = self._buffers.pop(side)
                self._hold(side, rows)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        """Move or cast the rows with the module."""
        with self._rows_as_buffers():
            return super()._apply(*args, **kwargs)

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        """Add the rows where all of them are known."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        rows = self._whole
        if get_world_size() == 1:
            rows = {side: getattr(self, side) for side in SIDES}
        destination.update({prefix + side: value for side, value in rows.items()})

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Take this rank's rows out of a checkpoint with all of them."""
        with self._rows_as_buffers():
            super()._load_from_state_dict(*args, **kwargs)
