"""What CRDLoss and MemoryBankHook say about wrong input."""

from typing import Any, Optional

import torch
from torch import Tensor

# How far from 1 the norm of an embedding may be: float16 rounding of 128
# numbers stays below it, a forgotten normalisation does not.
_NORM_TOLERANCE = 1e-2


def check_left_out(**arguments: Any) -> None:
    """Raise a ValueError for arguments that mean nothing without a bank."""
    given = [name for name, value in arguments.items() if value is not None]
    if given:
        raise ValueError(
            f"{', '.join(given)} given, but negatives='batch' has no memory "
            'bank: the negatives are the other samples of the global batch; '
            f'leave {"it" if len(given) == 1 else "them"} out, or use '
            "negatives='sampled'."
        )


def check_column(name: str, ids: Tensor, batch: Optional[int] = None) -> None:
    """Raise a ValueError for what is not one int64 a sample."""
    if ids.dtype != torch.int64 or ids.dim() != 1 or batch not in (None, ids.numel()):
        raise ValueError(
            f'{name} is {ids.dtype} of shape {tuple(ids.shape)}, expected '
            f'int64 of shape ({"B" if batch is None else batch},); record it '
            'with crd_plugin.SampleField.'
        )


def check_range(name: str, smallest: int, largest: int, num_rows: int) -> None:
    """Raise a ValueError for ids that the bank has no row for."""
    if smallest < 0 or largest >= num_rows:
        wrong = smallest if smallest < 0 else largest
        raise ValueError(
            f'{name} {wrong} is outside the memory bank of {num_rows} rows; '
            'the bank must be sized from the training set: leave num_samples '
            'out, and wrap that data set in crd_plugin.SampleIndexDataset.'
        )


def check_labels(given: Tensor, expected: Tensor, sample_idx: Tensor) -> None:
    """Raise a ValueError for samples that are not those of the bank."""
    wrong = (given != expected).nonzero()
    if wrong.numel():
        at = int(wrong[0])
        raise ValueError(
            f'labels: sample {int(sample_idx[at])} has label '
            f"{int(given[at])}, the memory bank's row has "
            f'{int(expected[at])}; the batch comes from another data set, or '
            'another order of it, than the bank was sized from.'
        )


def check_embeddings(name: str, side: str, norm: Tensor) -> None:
    """Raise a ValueError for embeddings that are not of unit norm.

    Args:
        name (str): Argument, for the message.
        side (str): ``'student'`` or ``'teacher'``.
        norm (Tensor): L2 norm of each embedding, ``(B,)``.
    """
    if not torch.isfinite(norm).all():
        bad = int((~torch.isfinite(norm)).sum())
        raise ValueError(
            f'{name}: {bad} of {norm.numel()} {side} embeddings are NaN or '
            f'infinite; the {side} or its connector has diverged: lower the '
            'learning rate, clip gradients, or check its checkpoint.'
        )
    # A zero vector stays zero under F.normalize; it is no error of scale.
    off = ((norm - 1).abs() > _NORM_TOLERANCE) & (norm > 0)
    if off.any():
        raise ValueError(
            f'{name}: a {side} embedding has L2 norm '
            f'{float(norm[off][0]):.4g}, expected 1; put a '
            'crd_plugin.EmbeddingConnector, which normalises, in front of '
            'the loss.'
        )
