"""Memory banks of a dry run: their real size, and rows to try them with."""

from typing import Dict, Optional

import torch
from torch import Tensor, nn

from crd_plugin.models.memory_bank import MemoryBank
from crd_plugin.ops import build_label_index

from .data import DataFacts, labels_of
from .report import BankRow, DryRunReport

# More rows than these are not allocated, only computed.
_MOST_ROWS = 65536
_STAND_IN = 4096


def named_banks(model: nn.Module) -> Dict[str, MemoryBank]:
    """Memory banks of a model by name."""
    return {
        name: module for name, module in model.named_modules() if isinstance(module, MemoryBank)
    }


def size_banks(
    model: nn.Module,
    banks: Dict[str, MemoryBank],
    num_classes: Optional[int],
    facts: DataFacts,
    report: DryRunReport,
) -> Tensor:
    """Size the banks as the hook would, smaller where they are huge.

    Args:
        model (nn.Module): The model.
        banks (dict): Its banks by name.
        num_classes (int, optional): Outputs of the student's head.
        facts (DataFacts): What is known of the data set.
        report (DryRunReport): Takes the rows of the table and problems.

    Returns:
        Tensor: Class of each row, which the random samples are taken from.
    """
    rows = facts.num_samples
    for name, bank in banks.items():
        given = bank.num_samples
        if given and facts.num_samples not in (None, given):
            report.problem(
                f'num_samples of {name} is {given}, the training set has '
                f'{facts.num_samples} samples; set it to that or leave it '
                'out.'
            )
        rows = rows or given or None
    here = min(rows or _STAND_IN, _MOST_ROWS)
    if rows is not None and here < rows:
        here = _STAND_IN
    labels = labels_of(facts, max(here, 2), num_classes)
    needy = [
        name
        for name, loss in model.named_modules()
        if isinstance(getattr(loss, 'bank', None), MemoryBank)
        and getattr(loss, 'exclude', None) == 'class'
    ]
    if needy:
        labels = _with_negatives(labels, facts, num_classes, report)
    for name, bank in banks.items():
        bank.resize(len(labels), labels)
        mib = None
        if rows is not None:
            mib = bank.num_bytes / bank.num_samples * rows / 2**20
        report.banks.append(
            BankRow(name, rows, bank.embed_dim, mib, None if len(labels) == rows else len(labels))
        )
    return labels


def _with_negatives(
    labels: Tensor, facts: DataFacts, num_classes: Optional[int], report: DryRunReport
) -> Tensor:
    """Labels with two classes; that the data set lacks them is reported."""
    if facts.num_samples is not None and facts.labels is None:
        report.problem(
            "exclude='class' needs labels, but train_dataloader.dataset has "
            "none; use exclude='instance'."
        )
    elif facts.labels is not None:
        try:
            build_label_index(torch.from_numpy(facts.labels))
        except ValueError as error:
            report.problem(f'train_dataloader.dataset: {error}')
            return torch.arange(len(labels)) % min(num_classes or 2, 2)
    return labels
