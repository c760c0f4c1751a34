"""Momentum contrast: a first-in, first-out queue of keys, and moving averages of parameters."""

from collections.abc import Iterable

import torch
from torch import Tensor

from .features import full_precision, no_autocast


@torch.no_grad()
def enqueue(rows: Tensor, pointer: Tensor, keys: Tensor) -> None:
    """Write keys over the oldest rows, in place, and wrap around at the end.

    The result equals writing them one by one: of more keys than rows the last ones stay. Source:
    He et al., arXiv:1911.05722, section 3.2; numbers of ShipengFu/CoCoRD ``cocord/builder.py`` @
    645b95d.

    Args:
        rows (Tensor): The queue, ``(K, D)`` float, changed in place.
        pointer (Tensor): Row that is written next, scalar int64, changed in place.
        keys (Tensor): ``(B, D)`` float.
    """
    first = max(0, len(keys) - len(rows))
    order = torch.arange(first, len(keys), device=keys.device)
    rows.index_copy_(0, (pointer + order) % len(rows), keys[first:].to(rows.dtype))
    pointer.copy_((pointer + len(keys)) % len(rows))


def queue_logits(query: Tensor, key: Tensor, rows: Tensor, temperature: float) -> Tensor:
    """Score queries ``(B, D)`` against their own key, then the queue: ``(B, 1 + K)`` float32."""
    # The cross-entropy with class 0 is InfoNCE. Keys and queue get no gradient.
    with no_autocast(query):
        query = full_precision(query)
        key, rows = key.detach().to(query), rows.detach().to(query)
        positive = (query * key).sum(1, keepdim=True)
        return torch.cat([positive, query @ rows.T], dim=1) / temperature


@torch.no_grad()
def move_averages(averages: Iterable[Tensor], sources: Iterable[Tensor], momentum: float) -> None:
    """Update ``average <- m * average + (1 - m) * source`` in place, m the momentum in [0, 1)."""
    averages, sources = list(averages), list(sources)
    if averages:
        torch._foreach_lerp_(averages, sources, 1 - momentum)
