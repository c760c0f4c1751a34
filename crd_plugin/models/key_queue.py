"""Queue of teacher keys, the negatives of CoCoRD."""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crd_plugin.ops import enqueue
from crd_plugin.registry import MODELS


@MODELS.register_module()
class KeyQueue(nn.Module):
    """The K latest keys of all ranks, whatever samples they are of.

    A forward pass reads the rows and leaves its keys with :meth:`stage`;
    :meth:`commit` writes them over the oldest rows after the step. So a
    forward pass has no side effect on what it reads, and the keys of all
    ranks enter in one order everywhere.

    Source: He et al., arXiv:1911.05722, section 3.2; behaviour matched:
    ShipengFu/CoCoRD ``cocord/builder.py`` @ 645b95d. Differs: keys are rows
    (columns there); a batch may be larger than the queue, its last K keys
    stay (there, at most K are possible).

    Args:
        embed_dim (int): Width D of a key.
        size (int): Keys K in the queue. Defaults to 2048.

    Shape:
        ``keys``: ``(K, D)`` float32 with unit L2 norm, random directions at
        first. ``pointer``: scalar int64, the row that is written next.

    State in checkpoints: ``keys``, ``pointer``.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, embed_dim: int, size: int = 2048) -> None:
        super().__init__()
        if embed_dim < 1:
            raise ValueError(f'embed_dim is {embed_dim}, expected a positive width such as 2048.')
        if size < 1:
            raise ValueError(
                f'size of the key queue is {size}, expected at least 1 key (published: 2048).'
            )
        self.register_buffer('keys', F.normalize(torch.randn(size, embed_dim), dim=1))
        self.register_buffer('pointer', torch.zeros((), dtype=torch.int64))
        self._pending: Optional[Tensor] = None

    @property
    def size(self) -> int:
        """int: Keys K in the queue."""
        return self.keys.size(0)

    @property
    def pending(self) -> Optional[Tensor]:
        """Tensor: The keys that wait for :meth:`commit`, ``(B, D)``."""
        return self._pending

    def stage(self, keys: Tensor) -> None:
        """Leave keys for :meth:`commit`.

        Args:
            keys (Tensor): Unit keys of this rank, ``(B, D)``.

        Raises:
            RuntimeError: If the keys before were never committed.
            ValueError: If they are of another width.
        """
        if self._pending is not None:
            raise RuntimeError(
                'The key queue has keys that were never committed: '
                "CoCoRDHook is missing; add dict(type='crd_plugin.CoCoRDHook'"
                ') to custom_hooks (in a loop of your own, call '
                'model.update_averages() before and queue.commit() after '
                'each step).'
            )
        if keys.dim() != 2 or keys.size(1) != self.keys.size(1):
            raise ValueError(
                f'keys has shape {tuple(keys.shape)}, expected (B, '
                f'{self.keys.size(1)}): embed_dim of the queue.'
            )
        self._pending = keys.detach()

    def discard(self) -> None:
        """Drop the pending keys, if any."""
        self._pending = None

    def commit(self, keys: Optional[Tensor] = None, is_new: Optional[Tensor] = None) -> None:
        """Write keys over the oldest rows.

        Args:
            keys (Tensor, optional): Of all ranks, in rank order, ``(B, D)``.
                Defaults to None: the pending ones.
            is_new (Tensor, optional): ``(B,)`` bool, False for entries that
                only fill up a rank's batch by repeating its last key.
                Defaults to None: all are new.

        Raises:
            RuntimeError: If there is nothing to commit.
        """
        keys = self._pending if keys is None else keys
        if keys is None:
            raise RuntimeError(
                'The key queue has no pending keys; run a training forward '
                'pass of CoCoRDLoss before commit().'
            )
        self._pending = None
        enqueue(self.keys, self.pointer, keys, is_new)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        """Take over the keys of a checkpoint; another size is an error.

        MMEngine would only warn of it and go on with random keys.
        """
        keys = state_dict.get(prefix + 'keys')
        if keys is not None and keys.shape != self.keys.shape:
            raise ValueError(
                f'The checkpoint\'s key queue "{prefix[:-1]}" has '
                f'{keys.size(0)} keys of width {keys.size(1)}, this one '
                f'{self.size} of width {self.keys.size(1)}; set queue_size '
                'and embed_dim of CoCoRDLoss to those of that run.'
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._pending = None

    def extra_repr(self) -> str:
        """Sizes."""
        return f'size={self.size}, embed_dim={self.keys.size(1)}'
