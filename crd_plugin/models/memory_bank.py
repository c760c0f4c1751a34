"""Memory bank of contrastive representation distillation."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from mmengine.dist import get_world_size
from torch import Tensor, nn

from crd_plugin.ops import (
    RowKeys,
    Shards,
    class_keys,
    initial_rows,
    last_occurrence,
    momentum_rows,
    row_keys,
)
from crd_plugin.registry import MODELS

from ._numbers import count, old_weight
from .bank_state import SIDES, as_labels, check_state
from .collectives import gather_counts, gather_rows, pack, unpack

__all__ = ['MemoryBank']

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class PendingUpdate(NamedTuple):
    """What one forward pass leaves for the bank."""

    sample_idx: Tensor  # Row of each sample, (B,) int64.
    student: Tensor  # Embeddings, (B, D).
    teacher: Tensor
    log_z: Tensor | None = None  # Log of both partition constants, (2,) float64, on the first step.
    written: bool = False  # A captured step has written the rows itself.


@MODELS.register_module()
class MemoryBank(nn.Module):
    """Hold a running embedding of every training sample, for student and teacher.

    A forward pass reads the rows and leaves its embeddings with :meth:`stage`; :meth:`commit`
    writes ``v <- unit(m v + (1 - m) g)`` after the step, in the same order on every rank.

    Source: Tian et al., arXiv:1910.10699, section 3; behaviour matched: HobbitLong/RepDistiller
    ``crd/memory.py``. Differs: a checkpoint does not restore settings; the partition constants are
    kept as logarithms; of ids that repeat within a step the last one counts.

    Args:
        embed_dim (int): Width D of the embeddings.
        momentum (float): Weight kept on the OLD row, [0, 1). Defaults to 0.5.
        num_samples (int, optional): Rows N, the length of the training set. Defaults to None:
            sized by ``MemoryBankHook``.
        dtype (torch.dtype): Type of the rows: float64, float32, float16 or bfloat16; all maths is
            at least float32. Defaults to float32.

    Attributes:
        num_samples (int): Rows N; 0 until the bank is sized.
        has_z (bool): Both partition constants are set.
        pending (PendingUpdate, optional): The update that waits for :meth:`commit`.
        keep_rows (bool): False: rows of a checkpoint are passed over (evaluation, export).

    State in checkpoints: ``student``, ``teacher`` ``(N, D)``, ``labels`` ``(N,)`` int64 or empty,
    and ``log_z_student``, ``log_z_teacher`` (NaN until the first step).

    Raises:
        ValueError: If an argument is out of range, or ``momentum`` too close to 1 for ``dtype``.
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
        if dtype not in _DTYPES:
            raise ValueError(f'dtype is {dtype}, expected one of {_DTYPES}.')
        self.embed_dim = count('embed_dim', embed_dim, ' (published: 128)')
        self.momentum = old_weight('momentum', momentum, 0.5)
        smallest = 4 * torch.finfo(dtype).eps
        if 1 - momentum < smallest:
            raise ValueError(
                f'momentum is {momentum}, but rows in {dtype} need at most {1 - smallest:.6g}: '
                'smaller updates are lost in rounding, and the rows would stop moving; lower '
                'momentum, or use float32 rows (leave bank_dtype out).'
            )
        self.num_samples = 0
        for side in SIDES:
            self._hold(side, torch.empty(0, embed_dim, dtype=dtype))
            self.register_buffer(f'log_z_{side}', torch.tensor(math.nan).double())
        self.register_buffer('labels', torch.empty(0, dtype=torch.int64))
        self.keep_rows = True
        self.has_z = False  # On the host, so that a step reads nothing back.
        self.pending: PendingUpdate | None = None
        self._keys: dict[str, RowKeys] = {}
        if num_samples is not None:
            self.resize(num_samples)

    def _hold(self, side: str, rows: Tensor) -> None:
        """Keep the rows of one side, here in a buffer."""
        self.register_buffer(side, rows)

    @property
    def num_bytes(self) -> int:
        """int: Memory of both sides' rows on this rank, in bytes."""
        return sum(getattr(self, side).nbytes for side in SIDES)

    def shards(self, sample_idx: Tensor | None = None) -> Shards:
        """Return how the rows, and the anchors ``(B,)`` of a step, are split over ranks."""
        return Shards()

    @property
    def log_z(self) -> Tensor:
        """Tensor: Logarithm of both partition constants, ``(2,)`` float64; NaN until set."""
        return torch.stack([self.log_z_student, self.log_z_teacher])

    def keys(self, exclude: str) -> RowKeys:
        """Return what tells which rows are negatives for 'class' or 'instance', made once."""
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
    def resize(self, num_samples: int, labels: Tensor | None = None, seed: int = 0) -> None:
        """Reinitialise the rows; clear the partition constants and any staged update.

        Args:
            num_samples (int): Rows N, the length of the training set.
            labels (Tensor, optional): Class of each row, ``(N,)`` integer.
            seed (int): Seed of the rows, equal on all ranks. Defaults to 0, not to that of torch's
                generator, which ranks may seed differently.

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
        labels = as_labels(labels, num_samples)
        generator = torch.Generator()
        generator.manual_seed(int(seed))
        for side in SIDES:
            # Release the current rows before allocating new ones.
            self._hold(side, torch.empty(0, self.embed_dim, dtype=dtype, device=device))
            getattr(self, f'log_z_{side}').fill_(math.nan)
        self.labels = labels.to(device)
        self.has_z, self._keys, self.pending = False, {}, None
        self.num_samples = 0
        kept = len(range(shards.rank, num_samples, shards.world))
        for side in SIDES:
            rows, done = torch.empty(kept, self.embed_dim, dtype=dtype, device=device), 0
            for start, part in initial_rows(num_samples, self.embed_dim, generator):
                own = part[(shards.rank - start) % shards.world :: shards.world]
                rows[done : done + len(own)] = own.to(device)
                done += len(own)
            self._hold(side, rows)
        self.num_samples = num_samples

    def share_labels(self, other: 'MemoryBank') -> None:
        """Hold the labels and keys of another bank of the same samples instead of a copy."""
        self.labels, self._keys = other.labels, other._keys

    def stage(
        self,
        sample_idx: Tensor,
        student: Tensor,
        teacher: Tensor,
        log_z: Tensor | None = None,
        written: bool = False,
    ) -> None:
        """Leave a :class:`PendingUpdate` with unit embeddings for :meth:`commit`."""
        if self.pending is not None:
            raise RuntimeError(
                'The memory bank has an update that was never committed: MemoryBankHook is '
                "missing; add memory_bank=dict(type='crd_plugin.MemoryBankHook') to "
                'default_hooks (in a loop of your own, call bank.commit() after each step).'
            )
        self.pending = PendingUpdate(
            sample_idx.detach(), student.detach(), teacher.detach(), log_z, written
        )

    def _empty_update(self) -> PendingUpdate:
        """Return an update without rows."""
        rows = self.student.new_empty(0, self.embed_dim)
        return PendingUpdate(self.labels[:0], rows, rows)

    def discard(self) -> None:
        """Drop the staged update, if any."""
        self.pending = None

    @torch.no_grad()
    def commit(self) -> None:
        """Write the staged update of all ranks, in rank order; all ranks must call it."""
        if self.pending is None:
            raise RuntimeError(
                'The memory bank has no staged update; run a training forward pass of CRDLoss '
                'before commit().'
            )
        commit_all([self])

    @torch.no_grad()
    def write(self, update: PendingUpdate) -> None:
        """Write an update of all ranks, in rank order, into the rows, whatever is staged."""
        index, embeddings = update.sample_idx, torch.stack([update.student, update.teacher])
        source, owned = last_occurrence(index), None
        shards = self.shards()
        if shards.world > 1:
            # Shapes must not depend on ids, or a GPU would be waited for. So in place of another
            # rank's row the first own one is written once more; without any, a row as it is.
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
            self.has_z = True

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> 'MemoryBank':
        """Move the keys to another device with the labels."""
        super()._apply(fn, *args, **kwargs)
        self._keys = {name: keys._replace(key=fn(keys.key)) for name, keys in self._keys.items()}
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Take over the rows of a checkpoint; another size is an error."""
        if self.keep_rows:
            check_state(self, state_dict, prefix)
            self._fit_buffers(state_dict, prefix)
        else:  # Evaluation needs no bank: keep what is there, report nothing.
            state_dict.update({prefix + name: kept for name, kept in self.named_buffers()})
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.has_z = not bool(torch.isnan(self.log_z_student))
        self.pending = None

    @torch.inference_mode(False)
    def _fit_buffers(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Pick this rank's rows of a checked state; give the buffers its sizes."""
        shards = self.shards()
        rows = {side: state_dict[prefix + side] for side in SIDES if prefix + side in state_dict}
        if self.num_samples == 0 and len(rows) == len(SIDES):
            self.num_samples = len(rows['student'])
            for side in SIDES:
                size = len(range(shards.rank, self.num_samples, shards.world))
                self.register_buffer(side, getattr(self, side).new_empty(size, self.embed_dim))
        for side, whole in rows.items():
            state_dict[prefix + side] = whole[shards.rank :: shards.world]
        labels = state_dict.get(prefix + 'labels')
        if labels is None or labels.numel() != self.num_samples:
            state_dict[prefix + 'labels'] = self.labels
        elif self.labels.numel() == 0:
            self.labels, self._keys = self.labels.new_empty(labels.shape), {}


@torch.no_grad()
def commit_all(banks: Sequence[MemoryBank]) -> None:
    """Write what is staged in the banks, by two collectives; a rank may have staged nothing."""
    updates = [bank.pending or bank._empty_update() for bank in banks]
    for bank in banks:
        bank.pending = None
    if get_world_size() > 1:
        updates = _gather(updates)
    for bank, update in zip(banks, updates, strict=True):
        if len(update.sample_idx) and not update.written:
            bank.write(update)


def _gather(updates: Sequence[PendingUpdate]) -> list[PendingUpdate]:
    """Concatenate the updates of all ranks, bank by bank, in rank order."""
    packed = [
        pack(each.sample_idx, (each.student.float(), each.teacher.float())) for each in updates
    ]
    # A loss may give a sample several rows or none, so the ranks and banks differ in their number.
    counts = gather_counts([part.numel() for part in packed], packed[0].device)
    flat = gather_rows(torch.cat([part.flatten() for part in packed]), [sum(c) for c in counts])
    parts = flat.split([count for rank in counts for count in rank])
    gathered = []
    for number, update in enumerate(updates):
        rows = torch.cat(parts[number :: len(updates)]).view(-1, packed[number].size(1))
        sample_idx, (student, teacher) = unpack(rows, [update.student.size(1)] * 2)
        gathered.append(PendingUpdate(sample_idx, student, teacher, update.log_z))
    return gathered
