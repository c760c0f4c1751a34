"""Queue of teacher keys: the negatives of CoCoRD, the rows that RRD compares with."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crd_plugin.ops import enqueue
from crd_plugin.registry import MODELS

from ._numbers import count
from .collectives import gather_rows, gather_sizes

__all__ = ['KeyQueue']


@MODELS.register_module()
class KeyQueue(nn.Module):
    """Keep the K latest keys of all ranks.

    A forward pass reads the rows and leaves its keys with :meth:`stage`; :meth:`commit` writes
    them over the oldest rows after the step, as for :class:`MemoryBank`.

    Source: He et al., arXiv:1911.05722, section 3.2; behaviour matched: ShipengFu/CoCoRD
    ``cocord/builder.py`` @ 645b95d. Differs: a batch may be larger than the queue.

    Args:
        embed_dim (int): Width D of a key.
        size (int): Number K of keys in the queue. Defaults to 2048.

    State in checkpoints: ``keys`` ``(K, D)`` float32 with unit L2 norm, initially random
    directions; ``pointer``, scalar int64, the row that is written next.

    Raises:
        ValueError: If an argument is out of range.
    """

    keys: Tensor
    pointer: Tensor

    def __init__(self, embed_dim: int, size: int = 2048) -> None:
        super().__init__()
        count('embed_dim', embed_dim, ' (published: 2048)')
        count('size', size, ' (published: 2048)')
        self.register_buffer('keys', F.normalize(torch.randn(size, embed_dim), dim=1))
        self.register_buffer('pointer', torch.zeros((), dtype=torch.int64))
        self.pending: Tensor | None = None  # The staged keys, (B, D).

    def stage(self, keys: Tensor) -> None:
        """Leave keys of this rank with unit L2 norm, ``(B, D)``, for :meth:`commit`."""
        if self.pending is not None:
            raise RuntimeError(
                'The key queue has keys that were never committed: CoCoRDHook is missing; add '
                "dict(type='crd_plugin.CoCoRDHook') to custom_hooks (in a loop of your own, call "
                'update_averages() before and queue.commit() after each step).'
            )
        self.pending = keys.detach()

    def discard(self) -> None:
        """Drop the staged keys, if any."""
        self.pending = None

    def commit(self) -> None:
        """Write the staged keys of all ranks, in rank order; all ranks must call it.

        Raises:
            RuntimeError: If there is nothing to commit.
        """
        if self.pending is None:
            raise RuntimeError(
                'The key queue has no pending keys; run a training forward pass of CoCoRDLoss '
                'before commit().'
            )
        keys, self.pending = self.pending, None
        keys = gather_rows(keys, gather_sizes(len(keys), keys.device))
        enqueue(self.keys, self.pointer, keys)

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Refuse a queue of another size: MMEngine would only warn and keep random keys."""
        keys = state_dict.get(prefix + 'keys')
        if keys is not None and keys.shape != self.keys.shape:
            raise ValueError(
                f'The checkpoint\'s key queue "{prefix[:-1]}" has {keys.size(0)} keys of width '
                f'{keys.size(1)}, this one {self.keys.size(0)} of width {self.keys.size(1)}; set '
                'queue_size and embed_dim of the loss to those of that run.'
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.pending = None
