"""Memory bank of contrastive representation distillation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from mmengine.dist import get_world_size
from torch import Tensor, nn

from crd_plugin.ops import (
    RowKeys,
    Shards,
    class_keys,
    full_precision,
    initial_rows,
    last_occurrence,
    momentum_rows,
    row_keys,
)
from crd_plugin.registry import MODELS

from ._numbers import check_number, count
from .bank_state import SIDES, check_labels, check_state
from .bank_update import PendingUpdate, gather_updates

__all__ = ['MemoryBank']

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@MODELS.register_module()
class MemoryBank(nn.Module):
    """Hold a running embedding of every training sample, for student and teacher.

    A forward pass reads the rows and leaves its embeddings with :meth:`stage`; :meth:`commit`
    writes ``v <- unit(m v + (1 - m) g)`` after the step. So a forward pass does not change what it
    reads, and the updates of all ranks can be written in one order everywhere.

    Source: Tian et al., arXiv:1910.10699, section 3; behaviour matched: HobbitLong/RepDistiller
    ``crd/memory.py``. Differs: settings are plain attributes (there they share a buffer with the
    partition constants, so a checkpoint silently restores old ones); the constants are kept as
    logarithms, which do not overflow at small temperatures; ids that repeat within a step are
    written in a defined way (the last one counts).

    Args:
        embed_dim (int): Width D of the embeddings.
        momentum (float): Weight kept on the OLD row, [0, 1). Defaults to 0.5.
        num_samples (int, optional): Rows N, the length of the training set. Can be left out with
            ``MemoryBankHook``, which sizes the bank from the training set and refuses another
            number.
        dtype (torch.dtype): Type of the rows: float64, float32, float16 or bfloat16; all maths is
            at least float32. Defaults to float32.

    Shape:
        ``student``, ``teacher``: ``(N, D)``. ``labels``: ``(N,)`` int64, or empty when unknown.

    State in checkpoints: ``student``, ``teacher``, ``labels``, and ``log_z_student``,
    ``log_z_teacher`` (NaN until the first step).

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If ``momentum`` is not a number.
    """

    student: Tensor
    teacher: Tensor
    labels: Tensor
    log_z_student: Tensor
    log_z_teacher: Tensor

    def __init__(
        self,
        embed_dim: int,
        momentum: float = 0.5,
        num_samples: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        count('embed_dim', embed_dim, ' (published: 128)')
        check_number('momentum', momentum)
        if dtype not in _DTYPES:
            raise ValueError(f'dtype is {dtype}, expected one of {_DTYPES}.')
        if not 0 <= momentum < 1:
            raise ValueError(
                f'momentum is {momentum}, expected 0 <= momentum < 1: it is the weight of the '
                'old row, and 1 would never learn.'
            )
        self.embed_dim = embed_dim
        self.momentum = momentum
        self._num_samples = 0
        for side in SIDES:
            self._hold(side, torch.empty(0, embed_dim, dtype=dtype))
            self.register_buffer(f'log_z_{side}', torch.tensor(math.nan).double())
        self.register_buffer('labels', torch.empty(0, dtype=torch.int64))
        # False: rows of a checkpoint are passed over (evaluation, export).
        self.keep_rows = True
        # Host copy of "the constants are set", so that a step reads nothing back.
        self._has_z = False
        self._keys: dict[str, RowKeys] = {}
        self._pending: PendingUpdate | None = None
        if num_samples is not None:
            self.resize(num_samples)

    def _hold(self, side: str, rows: Tensor) -> None:
        """Keep the rows of one side, here in a buffer."""
        self.register_buffer(side, rows)

    @property
    def num_samples(self) -> int:
        """int: Rows N; 0 until the bank is sized."""
        return self._num_samples

    @property
    def num_bytes(self) -> int:
        """int: Memory of both sides' rows on this rank, in bytes."""
        return sum(getattr(self, side).nbytes for side in SIDES)

    def shards(self, sample_idx: Tensor | None = None) -> Shards:
        """Return how the rows are split over ranks: here not at all.

        Args:
            sample_idx (Tensor, optional): Ids of this step, ``(B,)`` int64, where anchors of all
                ranks are to be gathered.

        Returns:
            Shards: Rank, number of ranks, and their sums.
        """
        return Shards()

    @property
    def has_z(self) -> bool:
        """bool: Both partition constants are set."""
        return self._has_z

    @property
    def log_z(self) -> Tensor:
        """Tensor: Logarithm of both partition constants, ``(2,)`` float64; NaN until set."""
        return torch.stack([self.log_z_student, self.log_z_teacher])

    @property
    def pending(self) -> PendingUpdate | None:
        """PendingUpdate: The update that waits for :meth:`commit`."""
        return self._pending

    def keys(self, exclude: str) -> RowKeys:
        """Return what tells which rows are negatives of a sample, made once.

        Args:
            exclude (str): ``'class'``: rows of another class; ``'instance'``: any other row.

        Returns:
            RowKeys: Keys of all N rows.

        Raises:
            ValueError: If the bank has no labels, or one class only.
        """
        if exclude not in self._keys:
            if exclude == 'instance':
                self._keys[exclude] = row_keys(self.num_samples, self.labels.device)
            elif self.labels.numel():
                self._keys[exclude] = class_keys(self.labels)
            else:
                raise ValueError(
                    "exclude='class' needs the label of every row, but the memory bank has none; "
                    'train with MemoryBankHook (in a loop of your own, call '
                    "resize(num_samples, labels)), or use exclude='instance' for data without "
                    'labels.'
                )
        return self._keys[exclude]

    @torch.inference_mode(False)
    @torch.no_grad()
    def resize(
        self, num_samples: int, labels: Tensor | None = None, seed: int | None = None
    ) -> None:
        """Reinitialise the rows; clear the partition constants and any staged update.

        Args:
            num_samples (int): Rows N, the length of the training set.
            labels (Tensor, optional): Class of each row, ``(N,)`` of any integer type; kept as
                int64.
            seed (int, optional): Seed of the rows, the same on every rank. Defaults to None: that
                of the global generator, so banks that are sized without one start alike.

        Raises:
            ValueError: If sizes do not fit, or labels are not integers.
        """
        shards = self.shards()
        count('num_samples', num_samples)
        if num_samples < 2 * shards.world:
            raise ValueError(
                f'num_samples is {num_samples}, expected at least {2 * shards.world}: a bank of '
                'one row per rank has no negative.'
            )
        device, dtype = self.labels.device, self.student.dtype
        labels = check_labels(labels, num_samples)
        generator = torch.Generator()
        generator.manual_seed(torch.initial_seed() if seed is None else int(seed))
        for side in SIDES:
            # Release the current rows before allocating new ones.
            self._hold(side, torch.empty(0, self.embed_dim, dtype=dtype, device=device))
            getattr(self, f'log_z_{side}').fill_(math.nan)
        self.labels = labels.to(device)
        self._has_z, self._keys, self._pending = False, {}, None
        self._num_samples = 0
        kept = -(-(num_samples - shards.rank) // shards.world)
        for side in SIDES:
            rows, done = torch.empty(kept, self.embed_dim, dtype=dtype, device=device), 0
            for start, part in initial_rows(num_samples, self.embed_dim, generator):
                own = part[(shards.rank - start) % shards.world :: shards.world]
                rows[done : done + len(own)] = own.to(device)
                done += len(own)
            self._hold(side, rows)
        self._num_samples = num_samples

    def share_labels(self, other: MemoryBank) -> None:
        """Hold the labels of another bank of the same samples instead of a copy.

        Args:
            other (MemoryBank): The other bank, sized.

        Raises:
            ValueError: If it has another number of rows.
        """
        if other.num_samples != self.num_samples:
            raise ValueError(
                f'The other bank has {other.num_samples} rows, this one {self.num_samples}: '
                'labels are shared between banks of the same samples.'
            )
        self.labels = other.labels
        self._keys = other._keys

    def scores(self, anchor: Tensor, side: str, index: Tensor, temperature: float) -> Tensor:
        """Return the normalised scores P = exp(s) / Z of given pairs, for inspection.

        Args:
            anchor (Tensor): Embeddings of one side, ``(B, D)``.
            side (str): ``'student'`` or ``'teacher'``: whose embeddings the anchors are. They are
                scored against the other side's rows.
            index (Tensor): Rows to score, ``(B, M)`` int64.
            temperature (float): tau.

        Returns:
            Tensor: ``(B, M)``.

        Raises:
            ValueError: If ``side`` is not one of the allowed values.
            RuntimeError: If other ranks keep some of the rows.
        """
        if self.shards().world > 1:
            raise RuntimeError(
                f'scores() needs all rows, of which this rank keeps 1 / {self.shards().world}; '
                'load a checkpoint in one process.'
            )
        if side not in SIDES:
            raise ValueError(f"side is '{side}', expected 'student' or 'teacher'.")
        rows = self.teacher if side == 'student' else self.student
        query = full_precision(anchor) / temperature
        logits = torch.einsum('bd,bmd->bm', query, rows[index].to(query.dtype))
        return torch.exp(logits - getattr(self, f'log_z_{side}').to(logits.dtype))

    def stage(
        self,
        sample_idx: Tensor,
        student: Tensor,
        teacher: Tensor,
        log_z: Tensor | None = None,
        written: bool = False,
    ) -> None:
        """Leave an update for :meth:`commit`.

        Args:
            sample_idx (Tensor): Row of each sample, ``(B,)`` int64.
            student (Tensor): Unit embeddings, ``(B, D)``.
            teacher (Tensor): Unit embeddings, ``(B, D)``.
            log_z (Tensor, optional): Student's and teacher's constant, ``(2,)`` float64, when they
                are to be set.
            written (bool): The rows are written already, so :meth:`commit` only clears the update.
                Defaults to False.

        Raises:
            RuntimeError: If the update before was never committed.
        """
        if self._pending is not None:
            raise RuntimeError(
                'The memory bank has an update that was never committed: MemoryBankHook is '
                "missing; add memory_bank=dict(type='crd_plugin.MemoryBankHook') to "
                'default_hooks (in a loop of your own, call bank.commit() after each step).'
            )
        self._pending = PendingUpdate(
            sample_idx.detach(), student.detach(), teacher.detach(), log_z, written
        )

    def discard(self) -> None:
        """Drop the staged update, if any."""
        self._pending = None

    @torch.no_grad()
    def commit(self, update: PendingUpdate | None = None) -> None:
        """Write an update into the rows.

        Args:
            update (PendingUpdate, optional): Update of all ranks, in rank order. Defaults to None:
                the staged one, gathered over the ranks if there are several; all of them must
                call it.

        Raises:
            RuntimeError: If there is nothing to commit.
        """
        if update is None:
            if self._pending is None:
                raise RuntimeError(
                    'The memory bank has no staged update; run a training forward pass of CRDLoss '
                    'before commit().'
                )
            update = self._pending
            if get_world_size() > 1:
                (update,) = gather_updates([update])
        self._pending = None
        if not update.written:
            self.write(update)

    @torch.no_grad()
    def write(self, update: PendingUpdate) -> None:
        """Write an update of all ranks into the rows, whatever is staged.

        Args:
            update (PendingUpdate): The update, in rank order.
        """
        index, embeddings = update.sample_idx, torch.stack([update.student, update.teacher])
        source, owned = last_occurrence(index), None
        shards = self.shards()
        if shards.world > 1:
            # Shapes must not depend on ids, or a GPU would be waited for. So in place of another
            # rank's row the first own one of the batch is written once more; without any, a row is
            # written as it is.
            owned = index % shards.world == shards.rank
            here = torch.arange(len(index), device=index.device)
            here = torch.where(owned, here, owned.to(torch.uint8).argmax())
            index = (index[here] // shards.world).clamp_max(len(self.student) - 1)
            source, owned = source[here], owned[here, None]
        sides = (self.student, self.teacher)
        old = torch.stack([rows.index_select(0, index) for rows in sides])
        new = momentum_rows(old, embeddings.index_select(1, source), self.momentum)
        if owned is not None:
            new = torch.where(owned, new, old)
        for rows, value in zip(sides, new, strict=True):
            rows.index_copy_(0, index, value)
        if update.log_z is not None:
            self.log_z_student.copy_(update.log_z[0])
            self.log_z_teacher.copy_(update.log_z[1])
            self._has_z = True

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> MemoryBank:
        """Move the keys to another device with the labels."""
        super()._apply(fn, *args, **kwargs)
        self._keys = {name: keys._replace(key=fn(keys.key)) for name, keys in self._keys.items()}
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Take over the rows of a checkpoint; another size is an error."""
        if not self.keep_rows:
            # Evaluation needs no bank: keep what is there, report nothing.
            kept = self._buffers.items()
            state_dict.update({prefix + name: rows for name, rows in kept if rows is not None})
        else:
            check_state(self.num_samples, self.embed_dim, self.labels, state_dict, prefix)
            self._fit_buffers(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._has_z = not bool(torch.isnan(self.log_z_student))
        self._pending = None

    @torch.inference_mode(False)
    def _fit_buffers(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Give the buffers the sizes of a checkpoint that was checked."""
        found = state_dict.get(prefix + 'student')
        if self.num_samples == 0 and found is not None:
            for side in SIDES:
                self._hold(side, getattr(self, side).new_empty(len(found), self.embed_dim))
            self._num_samples = len(found)
        labels = state_dict.get(prefix + 'labels')
        if labels is None or labels.numel() != self.num_samples:
            state_dict[prefix + 'labels'] = self.labels
        elif self.labels.numel() == 0:
            self.labels, self._keys = self.labels.new_empty(labels.shape), {}

    def extra_repr(self) -> str:
        """Describe size and settings."""
        return (
            f'num_samples={self.num_samples}, embed_dim={self.embed_dim}, momentum={self.momentum}'
        )
