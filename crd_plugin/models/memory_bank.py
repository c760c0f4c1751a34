"""Memory bank of contrastive representation distillation."""

from typing import Any, Callable, Dict, NamedTuple, Optional

import torch
from torch import Tensor, nn

from crd_plugin.ops import (
    LabelIndex,
    build_label_index,
    initial_rows,
    last_occurrence,
    momentum_rows,
    scores,
)
from crd_plugin.registry import MODELS

from ._numbers import check_number, count

# The two sides of a bank, in the order in which their rows are drawn.
SIDES = ('student', 'teacher')

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class PendingUpdate(NamedTuple):
    """What one forward pass leaves for the bank.

    Attributes:
        sample_idx (Tensor): Row of each sample, ``(B,)`` int64.
        student (Tensor): Student embeddings, ``(B, D)``.
        teacher (Tensor): Teacher embeddings, ``(B, D)``.
        log_z (Tensor, optional): Logarithm of the two partition constants,
            ``(2,)`` float64, on the first step only.
    """

    sample_idx: Tensor
    student: Tensor
    teacher: Tensor
    log_z: Optional[Tensor] = None


@MODELS.register_module()
class MemoryBank(nn.Module):
    """Running embeddings of every training sample, student's and teacher's.

    A forward pass reads the rows and leaves its embeddings with
    :meth:`stage`; :meth:`commit` writes ``v <- unit(m v + (1 - m) g)`` after
    the step. So a forward pass has no side effect on what it reads, and the
    updates of all ranks can be written in one order everywhere.

    Source: Tian et al., arXiv:1910.10699, section 3; behaviour matched:
    HobbitLong/RepDistiller ``crd/memory.py``. Differs: settings are plain
    attributes (there they share a buffer with the partition constants, so a
    checkpoint silently restores old ones); the constants are kept as
    logarithms, which do not overflow at small temperatures; ids that repeat
    within a step are written in a defined way (the last one counts).

    Args:
        embed_dim (int): Width D of the embeddings.
        momentum (float): Weight kept on the OLD row, [0, 1). Defaults to 0.5.
        num_samples (int, optional): Rows N, the length of the training set.
            Can be left out with ``MemoryBankHook``, which sizes the bank by
            the training set and refuses another number.
        dtype (torch.dtype): What rows are kept in, float64, float32, float16
            or bfloat16; all maths is in float32 at least. Defaults to
            float32.

    Shape:
        ``student``, ``teacher``: ``(N, D)``. ``labels``: ``(N,)`` int64, or
        empty when unknown.

    State in checkpoints: ``student``, ``teacher``, ``labels``, and
    ``log_z_student``, ``log_z_teacher`` (NaN until the first step).

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
        super().__init__()
        count('embed_dim', embed_dim, ' (published: 128)')
        check_number('momentum', momentum)
        if dtype not in _DTYPES:
            raise ValueError(f'dtype is {dtype}, expected one of {_DTYPES}.')
        if not 0 <= momentum < 1:
            raise ValueError(
                f'momentum is {momentum}, expected 0 <= momentum < 1: it is '
                'the weight of the old row, and 1 would never learn.'
            )
        self.embed_dim = embed_dim
        self.momentum = momentum
        for name in SIDES:
            self._hold(name, torch.empty(0, embed_dim, dtype=dtype))
            self.register_buffer(f'log_z_{name}', torch.tensor(float('nan')).double())
        self.register_buffer('labels', torch.empty(0, dtype=torch.int64))
        # False: rows in a checkpoint are passed over (evaluation, export).
        self.keep_rows = True
        # Host-side copy of "the constants are set": no read-back in a step.
        self._has_z = False
        self._label_index: Optional[LabelIndex] = None
        self._pending: Optional[PendingUpdate] = None
        if num_samples is not None:
            self.resize(num_samples)

    def _hold(self, name: str, rows: Tensor) -> None:
        """Where rows are kept: in a buffer."""
        self.register_buffer(name, rows)

    @property
    def num_samples(self) -> int:
        """int: Rows N; 0 until the bank is sized."""
        return len(self.student)

    @property
    def num_bytes(self) -> int:
        """int: Memory of both sides' rows on this rank, in bytes."""
        return sum(rows.numel() * rows.element_size() for rows in (self.student, self.teacher))

    @property
    def num_shards(self) -> int:
        """int: Parts that the rows are kept in, on as many ranks."""
        return 1

    @property
    def has_z(self) -> bool:
        """bool: Both partition constants are set."""
        return self._has_z

    @property
    def log_z(self) -> Tensor:
        """Tensor: Logarithm of student's and teacher's partition constant,
        ``(2,)`` float64; NaN until they are set."""
        return torch.stack([self.log_z_student, self.log_z_teacher])

    @property
    def pending(self) -> Optional[PendingUpdate]:
        """PendingUpdate: The update that waits for :meth:`commit`."""
        return self._pending

    @property
    def label_index(self) -> LabelIndex:
        """LabelIndex: Rows sorted by class.

        Raises:
            ValueError: If the bank has no labels.
        """
        if self._label_index is None:
            self._require_labels()
            self._label_index = build_label_index(self.labels)
        return self._label_index

    def _require_labels(self) -> None:
        """Raise a ValueError if there are none."""
        if self.labels.numel() == 0:
            raise ValueError(
                "exclude='class' needs the label of every row, but the "
                'memory bank has none; add '
                "dict(type='crd_plugin.MemoryBankHook') to custom_hooks "
                'or call resize(num_samples, labels), or use '
                "exclude='instance' for data without labels."
            )

    @torch.inference_mode(False)
    @torch.no_grad()
    def resize(
        self, num_samples: int, labels: Optional[Tensor] = None, seed: Optional[int] = None
    ) -> None:
        """Have fresh rows, forget constants and pending update.

        Args:
            num_samples (int): Rows N, the length of the training set.
            labels (Tensor, optional): Class of each row, ``(N,)`` of any
                integers; kept as int64.
            seed (int, optional): Seed of the rows, the same on every rank.
                Defaults to None: that of the global generator, so banks
                that are sized without one begin alike.

        Raises:
            ValueError: If sizes do not fit, or labels are no integers.
        """
        count('num_samples', num_samples)
        if num_samples < 2:
            raise ValueError(
                f'num_samples is {num_samples}, expected at least 2: a bank '
                'of one row has no negative.'
            )
        device = self.labels.device
        if labels is not None:
            labels = torch.as_tensor(labels)
            if labels.shape != (num_samples,):
                raise ValueError(
                    f'labels has shape {tuple(labels.shape)}, expected '
                    f'({num_samples},): one label for each row.'
                )
            if labels.is_floating_point() or labels.is_complex():
                raise ValueError(
                    f'labels is {labels.dtype}, expected integers: one class for each row.'
                )
            labels = labels.to(device, torch.int64)
        else:
            labels = torch.empty(0, dtype=torch.int64, device=device)
        generator = torch.Generator(device)
        generator.manual_seed(torch.initial_seed() if seed is None else int(seed))
        self._forget()
        drawn = [self._fresh_rows(num_samples, generator).to(self.student.dtype) for _ in SIDES]
        for name, rows in zip(SIDES, drawn):
            self._hold(name, rows)
        self.labels = labels

    def _forget(self) -> None:
        """Be without a size; there may be no room for old and new rows."""
        self._hold_empty(0)
        for name in SIDES:
            getattr(self, f'log_z_{name}').fill_(float('nan'))
        self.labels = self.labels.new_empty(0)
        self._label_index = None
        self._has_z = False
        self._pending = None

    def _fresh_rows(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Rows of one side that nothing was written to."""
        return initial_rows(num_samples, self.embed_dim, generator)

    def share_labels(self, other: 'MemoryBank') -> None:
        """Hold the labels of another bank of the same samples, not a copy.

        Their index is shared too if the other bank has made it.

        Args:
            other (MemoryBank): The other bank, sized.

        Raises:
            ValueError: If it has another number of rows.
        """
        if other.num_samples != self.num_samples:
            raise ValueError(
                f'The other bank has {other.num_samples} rows, this one '
                f'{self.num_samples}: labels are shared between banks of the '
                'same samples.'
            )
        self.labels = other.labels
        self._label_index = other._label_index

    def scores(self, anchor: Tensor, side: str, index: Tensor, temperature: float) -> Tensor:
        """Normalised scores P = exp(s) / Z of given pairs, for inspection.

        Args:
            anchor (Tensor): Embeddings of one side, ``(B, D)``.
            side (str): ``'student'`` or ``'teacher'``: whose embeddings the
                anchors are. They are scored against the other side's rows.
            index (Tensor): Rows to score, ``(B, M)`` int64.
            temperature (float): tau.

        Returns:
            Tensor: ``(B, M)``.

        Raises:
            ValueError: If ``side`` is another word.
        """
        if side not in SIDES:
            raise ValueError(f"side is '{side}', expected 'student' or 'teacher'.")
        rows = self.teacher if side == 'student' else self.student
        logits = scores(anchor, rows, index, temperature)
        log_z = getattr(self, f'log_z_{side}').to(logits.dtype)
        return torch.exp(logits - log_z)

    def stage(
        self, sample_idx: Tensor, student: Tensor, teacher: Tensor, log_z: Optional[Tensor] = None
    ) -> None:
        """Leave an update for :meth:`commit`.

        Args:
            sample_idx (Tensor): Row of each sample, ``(B,)`` int64.
            student (Tensor): Unit embeddings, ``(B, D)``.
            teacher (Tensor): Unit embeddings, ``(B, D)``.
            log_z (Tensor, optional): ``(2,)`` float64, student's and
                teacher's constant, when they are to be set.

        Raises:
            RuntimeError: If the update before was never committed.
        """
        if self._pending is not None:
            raise RuntimeError(
                'The memory bank has an update that was never committed: '
                'MemoryBankHook is missing; add '
                "dict(type='crd_plugin.MemoryBankHook') to custom_hooks (in a "
                'loop of your own, call bank.commit() after each step).'
            )
        self._pending = PendingUpdate(
            sample_idx.detach(), student.detach(), teacher.detach(), log_z
        )

    def discard(self) -> None:
        """Drop the pending update, if any."""
        self._pending = None

    @torch.no_grad()
    def commit(self, update: Optional[PendingUpdate] = None) -> None:
        """Write an update into the rows.

        Args:
            update (PendingUpdate, optional): Of all ranks, in rank order.
                Defaults to None: the pending one.

        Raises:
            RuntimeError: If there is nothing to commit.
        """
        update = self._pending if update is None else update
        if update is None:
            raise RuntimeError(
                'The memory bank has no pending update; run a training '
                'forward pass of CRDLoss before commit().'
            )
        self._pending = None
        last = last_occurrence(update.sample_idx)
        embeddings = torch.stack([update.student, update.teacher])
        self._write(update.sample_idx, embeddings.index_select(1, last))
        if update.log_z is not None:
            self.log_z_student.copy_(update.log_z[0])
            self.log_z_teacher.copy_(update.log_z[1])
            self._has_z = True

    def _write(self, sample_idx: Tensor, embeddings: Tensor) -> None:
        """Move rows towards embeddings, of which equal ids have equal ones.

        Both sides at once, for half the calls.

        Args:
            sample_idx (Tensor): Rows, ``(B,)`` int64.
            embeddings (Tensor): Student's and teacher's, ``(2, B, D)``.
        """
        sides = (self.student, self.teacher)
        old = torch.stack([rows.index_select(0, sample_idx) for rows in sides])
        for rows, new in zip(sides, momentum_rows(old, embeddings, self.momentum)):
            rows.index_copy_(0, sample_idx, new)

    def _apply(self, fn, *args, **kwargs) -> 'MemoryBank':
        """The index of the labels follows them to another device."""
        super()._apply(fn, *args, **kwargs)
        self._label_index = apply_to_tensors(self._label_index, fn)
        return self

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        """Take over rows of a checkpoint; another size is an error."""
        if not self.keep_rows:
            # Evaluation needs no bank: keep what is there, say nothing.
            for name, value in self._buffers.items():
                state_dict[prefix + name] = value
        else:
            self._check_state(state_dict, prefix)
            self._make_room(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._has_z = not bool(torch.isnan(self.log_z_student))
        self._pending = None

    def _check_state(self, state_dict: Dict[str, Tensor], prefix: str) -> None:
        """Refuse rows and labels of another data set; nothing is changed."""
        given = self.num_samples
        for name in SIDES:
            found = state_dict.get(prefix + name)
            if found is None:
                continue
            given = given or len(found)
            if found.shape != (given, self.embed_dim):
                raise ValueError(
                    f'The checkpoint\'s memory bank "{prefix[:-1]}" has '
                    f'{len(found)} rows of width {found.size(1)}, this one '
                    f'{given} of width {self.embed_dim}; resume with the '
                    'training set and embed_dim of that run, or start anew '
                    'without --resume.'
                )
        labels = state_dict.get(prefix + 'labels')
        if labels is not None and labels.numel() and self.labels.numel():
            if not torch.equal(labels.to(self.labels.device), self.labels):
                raise ValueError(
                    f'The checkpoint\'s memory bank "{prefix[:-1]}" belongs '
                    'to another data set or order of samples: its labels '
                    'differ from those of the training set; resume with the '
                    'data of that run.'
                )

    @torch.inference_mode(False)
    def _make_room(self, state_dict: Dict[str, Tensor], prefix: str) -> None:
        """Buffers in the sizes of a checkpoint that was checked."""
        found = [state_dict.get(prefix + name) for name in SIDES]
        if self.num_samples == 0 and all(rows is not None for rows in found):
            self._hold_empty(len(found[0]))
        labels = state_dict.get(prefix + 'labels')
        if labels is None or labels.numel() != self.num_samples:
            state_dict[prefix + 'labels'] = self.labels
        elif self.labels.numel() == 0:
            self.labels = self.labels.new_empty(labels.shape)
            self._label_index = None

    def _hold_empty(self, num_samples: int) -> None:
        """Have as many rows, of any values."""
        for name in SIDES:
            self._hold(name, getattr(self, name).new_empty(num_samples, self.embed_dim))

    def extra_repr(self) -> str:
        """Sizes and settings."""
        return (
            f'num_samples={self.num_samples}, embed_dim={self.embed_dim}, momentum={self.momentum}'
        )


def apply_to_tensors(value: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to the tensors in a named tuple of named tuples.

    Args:
        value (Any): A tensor, a named tuple, or what has no tensor.
        fn (Callable): Of a tensor.

    Returns:
        Any: The same with other tensors.
    """
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, tuple):
        return type(value)(*(apply_to_tensors(part, fn) for part in value))
    return value
