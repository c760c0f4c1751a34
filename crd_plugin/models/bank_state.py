"""What a memory bank requires of labels and of the state in a checkpoint."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .memory_bank import MemoryBank

# The two sides of a bank, in the order in which their rows are drawn.
SIDES = ('student', 'teacher')

# No row is longer: an initial one is uniform in a cube that reaches sqrt(3), a written one has norm
# 1. The rest is rounding.
_LONGEST_ROW = 1.8


def check_state(bank: 'MemoryBank', state_dict: dict[str, Tensor], prefix: str) -> None:
    """Refuse the rows and labels of another data set, and damaged ones; strict loading the rest."""
    name = f'The checkpoint\'s memory bank "{prefix[:-1]}"'
    num_rows = bank.num_samples
    for side in (side for side in SIDES if prefix + side in state_dict):
        rows = state_dict[prefix + side]
        num_rows = num_rows or len(rows)
        if rows.shape != (num_rows, bank.embed_dim):
            raise ValueError(
                f'{name} has {len(rows)} rows of width {rows.size(-1)}, this one {num_rows} of '
                f'width {bank.embed_dim}; resume with the training set and embed_dim of that '
                'run, or start again without --resume.'
            )
        norms = rows.float().norm(dim=1)
        wrong = norms[~((norms > 0) & (norms <= _LONGEST_ROW))]  # NaN too
        if len(wrong):
            norm = f'{float(wrong[0]):.4g}'
            raise _damaged(name, f'{side} rows with an L2 norm of {norm}, expected about 1')
    found = {key: state_dict.get(f'{prefix}{key}') for key in ('log_z_student', 'log_z_teacher')}
    values = {key: float(value) for key, value in found.items() if value is not None}
    if any(map(math.isinf, values.values())) or len({*map(math.isnan, values.values())}) > 1:
        raise _damaged(name, f'{values}, expected finite constants')  # NaN, both: not set
    labels = state_dict.get(prefix + 'labels')
    if labels is not None and labels.numel() and bank.labels.numel():
        if not torch.equal(labels.to(bank.labels.device), bank.labels):
            raise ValueError(
                f'{name} belongs to another data set or order of samples: its labels differ '
                'from those of the training set; resume with the data of that run.'
            )


def _damaged(name: str, what: str) -> ValueError:
    advice = 'the run had diverged or the file is damaged; resume from an earlier checkpoint.'
    return ValueError(f'{name} has {what}: {advice}')


def as_labels(labels: Tensor | None, num_samples: int) -> Tensor:
    """Return the class of each row, any integers ``(N,)``, as int64; empty if there are none."""
    if labels is None:
        return torch.empty(0, dtype=torch.int64)
    labels = torch.as_tensor(labels)
    if labels.shape != (num_samples,) or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f'labels is {labels.dtype} of shape {tuple(labels.shape)}, expected integers of shape '
            f'({num_samples},): one class for each row.'
        )
    return labels.long()
