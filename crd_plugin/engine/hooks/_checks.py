"""Checks that hooks share: nothing else may change what they keep in step."""

import torch
from mmengine.dist import all_gather, get_rank
from mmengine.hooks import Hook, SyncBuffersHook
from torch import Tensor

# Rows whose bits are added up at once.
_ROWS_AT_ONCE = 1 << 16


def check_alone(hook: Hook, runner, what: str) -> None:
    """Raise a ValueError if a second hook, or a ``SyncBuffersHook``, would write to something."""
    number = sum(isinstance(other, type(hook)) for other in runner.hooks)
    if number > 1:
        raise ValueError(
            f'{type(hook).__name__} is registered {number} times, expected once; remove it from '
            'custom_hooks where a base config already has it.'
        )
    if any(isinstance(other, SyncBuffersHook) for other in runner.hooks):
        raise ValueError(
            f'SyncBuffersHook averages every buffer over the ranks, which is wrong for {what}; '
            'remove it from custom_hooks (batch norm: use sync_bn).'
        )


def check_ranks_agree(hook: Hook, name: str, checksum: Tensor) -> None:
    """Raise a RuntimeError if checksums of the ranks differ; every rank must call it."""
    sums = all_gather(checksum)
    for rank, other in enumerate(sums):
        if not other.equal(sums[0]):
            raise RuntimeError(
                f'{name} differs between rank 0 and rank {rank} (seen on rank {get_rank()}); '
                f'something other than {type(hook).__name__} changes its buffers, such as a hook '
                'that averages or overwrites them.'
            )


def bit_sum(tensor: Tensor) -> Tensor:
    """Return the position-weighted sum of the bits of a float tensor ``(N, ...)``, as int64."""
    word = torch.int16 if tensor.element_size() == 2 else torch.int32
    words = tensor.contiguous().view(-1).view(word).view(tensor.size(0), -1)
    # A few rows at a time: torch widens what it adds up to int64 first.
    bits = torch.cat([rows.sum(1, dtype=torch.int64) for rows in words.split(_ROWS_AT_ONCE)])
    weight = torch.arange(1, bits.numel() + 1, device=bits.device)
    return (bits * weight).sum()
