"""Moving averages of parameters."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ['move_averages']


@torch.no_grad()
def move_averages(averages: Iterable[Tensor], sources: Iterable[Tensor], momentum: float) -> None:
    """Update ``average <- m * average + (1 - m) * source`` in place, m the momentum in [0, 1)."""
    averages, sources = list(averages), list(sources)
    if averages:
        torch._foreach_lerp_(averages, sources, 1 - momentum)
