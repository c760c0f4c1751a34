"""A memory bank whose rows are split over the ranks."""

from typing import Dict, Optional

import torch
from mmengine.dist import gather, get_rank, get_world_size
from torch import Tensor

from crd_plugin.ops import LabelIndex, Shard, build_shard, initial_pieces, momentum_rows, shard_size
from crd_plugin.registry import MODELS

from .memory_bank import SIDES, MemoryBank, apply_to_tensors

# Rows that are sent to rank 0 at a time.
_CHUNK = 1 << 16


@MODELS.register_module()
class ShardedBank(MemoryBank):
    """:class:`MemoryBank` of which rank r keeps the rows r, r + W, r + 2 W …

    For N too large for one device: memory falls as 1 / W, the result stays.
    Labels ``(N,)`` are on every rank, 8 bytes a row.

    Rows are plain tensors, not buffers, and of several ranks none has them in
    its state dict: ``DistributedDataParallel`` and MMEngine's runner make
    buffers and state dicts of all ranks alike. They still move with the
    module. ``MemoryBankHook`` puts all N into a checkpoint, which any number
    of ranks can load.

    Args:
        embed_dim (int): Width D of the embeddings.
        momentum (float): Weight kept on the OLD row, [0, 1). Defaults to 0.5.
        num_samples (int, optional): Rows N of all ranks, as for
            :class:`MemoryBank`.
        dtype (torch.dtype): As for :class:`MemoryBank`.

    Shape:
        ``student``, ``teacher``: ``(N / W, D)``.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If ``momentum`` is no number.
    """

    def __init__(
        self,
        embed_dim: int,
        momentum: float = 0.5,
        num_samples: Optional[int] = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._num_samples = 0
        self._shards: Dict[str, Shard] = {}
        super().__init__(embed_dim, momentum, num_samples, dtype)

    def _hold(self, name: str, rows: Tensor) -> None:
        """Where rows are kept: in an attribute."""
        setattr(self, name, rows)

    @property
    def num_samples(self) -> int:
        """int: Rows N of all ranks; 0 until the bank is sized."""
        return self._num_samples

    @property
    def num_shards(self) -> int:
        """int: Number of ranks W."""
        return get_world_size()

    @property
    def label_index(self) -> LabelIndex:
        """LabelIndex: Own rows sorted by class, see :class:`Shard`.

        Raises:
            ValueError: If the bank has no labels, or too few of a class.
        """
        return self.shard('class').index

    def shard(self, exclude: str) -> Shard:
        """What is needed to draw from the own rows.

        Args:
            exclude (str): ``'class'`` or ``'instance'``.

        Returns:
            Shard: Made once.

        Raises:
            ValueError: If the bank has no labels, or too few rows.
        """
        if exclude not in self._shards:
            labels = None
            if exclude == 'class':
                self._require_labels()
                labels = self.labels
            self._shards[exclude] = build_shard(
                self.num_samples, get_rank(), get_world_size(), labels, self.labels.device
            )
        return self._shards[exclude]

    def resize(
        self, num_samples: int, labels: Optional[Tensor] = None, seed: Optional[int] = None
    ) -> None:
        """As :meth:`MemoryBank.resize`; ``seed`` must be given where there
        are several ranks that were not seeded alike."""
        super().resize(num_samples, labels, seed)
        self._num_samples = num_samples

    def _forget(self) -> None:
        """As :meth:`MemoryBank._forget`, the shards too."""
        super()._forget()
        self._num_samples, self._shards = 0, {}

    def share_labels(self, other: MemoryBank) -> None:
        """As :meth:`MemoryBank.share_labels`, the shards of it too."""
        super().share_labels(other)
        self._shards = dict(getattr(other, '_shards', {}))

    def scores(self, anchor: Tensor, side: str, index: Tensor, temperature: float) -> Tensor:
        """As :meth:`MemoryBank.scores`, on one rank.

        Raises:
            RuntimeError: If other ranks keep some of the rows.
        """
        if self.num_shards > 1:
            raise RuntimeError(
                f'scores() needs all rows, of which this rank keeps 1 / '
                f'{self.num_shards}; load a checkpoint in one process.'
            )
        return super().scores(anchor, side, index, temperature)

    @torch.no_grad()
    def gather_rows(self, name: str) -> Optional[Tensor]:
        """All rows of one side on the host of rank 0; every rank must call.

        Args:
            name (str): ``'student'`` or ``'teacher'``.

        Returns:
            Tensor: ``(N, D)`` on the CPU; None on the other ranks.
        """
        rows, world = getattr(self, name), get_world_size()
        longest, whole = shard_size(self.num_samples, 0, world), None
        if get_rank() == 0:
            whole = torch.empty(self.num_samples, self.embed_dim, dtype=rows.dtype)
        for begin in range(0, longest, _CHUNK):
            part = rows[begin : begin + _CHUNK]
            wanted = min(_CHUNK, longest - begin)
            if len(part) < wanted:
                # The last shards may have one row less.
                part = torch.cat([part, part.new_zeros(1, self.embed_dim)])
            for rank, received in enumerate(gather(part.contiguous())):
                place = slice(begin * world + rank, (begin + wanted) * world, world)
                target = whole[place]
                target.copy_(received[: len(target)])
        return whole

    def _fresh_rows(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Own rows of those that all ranks draw alike."""
        rank, world = get_rank(), get_world_size()
        own = self.student.new_empty(shard_size(num_samples, rank, world), self.embed_dim)
        done = 0
        for part, rows in initial_pieces(num_samples, self.embed_dim, generator):
            kept = rows[(rank - part.start) % world :: world]
            own[done : done + len(kept)] = kept
            done += len(kept)
        return own

    def _write(self, sample_idx: Tensor, embeddings: Tensor) -> None:
        """As :meth:`MemoryBank._write`, the rows that are here."""
        owned = sample_idx % self.num_shards == get_rank()
        place = sample_idx // self.num_shards
        place.clamp_max_(len(self.student) - 1)
        # In place of another rank's row the first own one of the batch is
        # written once more: shapes do not depend on ids, so no read-back. If
        # there is none, a row is written as it is.
        source = torch.arange(len(owned), device=owned.device)
        source = torch.where(owned, source, owned.to(torch.uint8).argmax())
        place, owned = place[source], owned[source, None]
        sides = (self.student, self.teacher)
        old = torch.stack([rows.index_select(0, place) for rows in sides])
        new = momentum_rows(old, embeddings.index_select(1, source), self.momentum)
        for rows, value in zip(sides, torch.where(owned, new, old)):
            rows.index_copy_(0, place, value)

    def _apply(self, fn, *args, **kwargs) -> 'ShardedBank':
        """Rows and shards follow the module to another device or type."""
        super()._apply(fn, *args, **kwargs)
        for name in SIDES:
            self._hold(name, fn(getattr(self, name)))
        self._shards = {
            exclude: apply_to_tensors(shard, fn) for exclude, shard in self._shards.items()
        }
        return self

    def _save_to_state_dict(self, destination, prefix, keep_vars) -> None:
        """Rows beside the buffers, where they are all here."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.num_shards > 1:
            return
        for name in SIDES:
            destination[prefix + name] = getattr(self, name)

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, *args, **kwargs
    ) -> None:
        """Take this rank's rows out of a checkpoint with all of them."""
        if self.keep_rows:
            self._check_state(state_dict, prefix)
        rows = {
            name: state_dict.pop(prefix + name) for name in SIDES if prefix + name in state_dict
        }
        complete = len(rows) == len(SIDES)
        if self.keep_rows and complete:
            self._num_samples = len(rows['student'])
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, *args, **kwargs
        )
        state_dict.update({prefix + name: rows[name] for name in rows})
        if not self.keep_rows:
            return
        for name in SIDES:
            if name not in rows:
                missing_keys.append(prefix + name)
            elif complete or self.num_samples:
                own = rows[name][get_rank() :: get_world_size()]
                with torch.inference_mode(False):
                    self._hold(name, own.to(getattr(self, name), copy=True))
        self._shards = {}

    def extra_repr(self) -> str:
        """Sizes and settings."""
        return f'{super().extra_repr()}, num_shards={self.num_shards}'
