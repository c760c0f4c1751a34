"""Networks that follow another one slowly."""

from typing import Sequence

import torch
from torch import Tensor

__all__ = ['move_averages']


@torch.no_grad()
def move_averages(averages: Sequence[Tensor], sources: Sequence[Tensor], momentum: float) -> None:
    """``average <- m * average + (1 - m) * source``, in place.

    Args:
        averages (Sequence[Tensor]): Parameters of the slow network.
        sources (Sequence[Tensor]): Those that they follow, of equal shapes
            and in the same order.
        momentum (float): Weight m kept on the OLD average, [0, 1).
    """
    averages, sources = list(averages), list(sources)
    if averages:
        torch._foreach_lerp_(averages, sources, 1 - momentum)
