"""A queue of keys: negatives in first-in, first-out order."""

from typing import Optional

import torch
from torch import Tensor

from .bank import last_occurrence
from .features import full_precision, no_autocast

__all__ = ['enqueue', 'queue_logits']


@torch.no_grad()
def enqueue(rows: Tensor, pointer: Tensor, keys: Tensor, is_new: Optional[Tensor] = None) -> None:
    """Write keys over the oldest rows, in place, wrapping at the end.

    The result is that of writing them one by one, so of more keys than rows
    the last ones stay. Nothing is read back from the device.

    Source: He et al., arXiv:1911.05722, section 3.2; numbers of
    ShipengFu/CoCoRD ``cocord/builder.py`` @ 645b95d. Differs: any number of
    keys is taken (there, at most as many as rows).

    Args:
        rows (Tensor): The queue, ``(K, D)`` float, changed.
        pointer (Tensor): Row that is written next, scalar int64, changed.
        keys (Tensor): ``(B, D)`` float.
        is_new (Tensor, optional): ``(B,)`` bool, False for an entry that
            only repeats the one before it: batches of unequal size are
            filled so before they are gathered. Defaults to None: all are.
    """
    num_rows = rows.size(0)
    if is_new is None:
        ordinal = torch.arange(keys.size(0), device=keys.device)
        number = keys.size(0)
    else:
        count = is_new.long().cumsum(0)
        # A repeated entry is written where the one that it repeats is.
        ordinal, number = count - 1, count[-1]
    place = (pointer + ordinal) % num_rows
    # Of keys that end up in one place the last one counts, in any order in
    # which a device writes.
    rows.index_copy_(0, place, keys[last_occurrence(place)].to(rows.dtype))
    pointer.copy_((pointer + number) % num_rows)


def queue_logits(query: Tensor, key: Tensor, rows: Tensor, temperature: float) -> Tensor:
    """Scores of each query with its own key, then with the whole queue.

    Their cross-entropy with class 0 is InfoNCE. Keys and queue get no
    gradient.

    Args:
        query (Tensor): ``(B, D)`` float with unit L2 norm.
        key (Tensor): The positive of each query, likewise.
        rows (Tensor): The queue, ``(K, D)`` float.
        temperature (float): Divides the scores.

    Returns:
        Tensor: ``(B, 1 + K)`` float32 (float64 for float64 queries).
    """
    with no_autocast(query):
        query = full_precision(query)
        key, rows = key.detach().to(query), rows.detach().to(query)
        positive = (query * key).sum(1, keepdim=True)
        return torch.cat([positive, query @ rows.T], dim=1) / temperature
