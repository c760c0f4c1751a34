"""Checks that hooks share: nothing else may change what they keep in step."""

import torch
from mmengine.dist import all_gather, get_rank
from mmengine.hooks import Hook, SyncBuffersHook
from torch import Tensor, nn
from torch.utils.data import DataLoader

# Rows whose bits are added up at once.
_ROWS_AT_ONCE = 1 << 16


def check_once(hook: Hook, runner) -> None:
    """Refuse a hook that is registered twice.

    Args:
        hook (Hook): One of them.
        runner (Runner): The runner.

    Raises:
        ValueError: If there are several of its class.
    """
    number = sum(isinstance(other, type(hook)) for other in runner.hooks)
    if number > 1:
        raise ValueError(
            f'{type(hook).__name__} is registered {number} times, expected '
            'once; remove it from custom_hooks where a base config already '
            'has it.'
        )


def check_buffers_are_ours(runner, what: str) -> None:
    """Refuse a hook that averages every buffer over the ranks.

    Args:
        runner (Runner): The runner.
        what (str): What it would damage, for the message.

    Raises:
        ValueError: If there is a ``SyncBuffersHook``.
    """
    if any(isinstance(hook, SyncBuffersHook) for hook in runner.hooks):
        raise ValueError(
            'SyncBuffersHook averages every buffer over the ranks, which is '
            f'wrong for {what}; remove it from custom_hooks (batch norm: use '
            'sync_bn).'
        )


def check_ranks_agree(hook: Hook, name: str, checksum: Tensor) -> None:
    """Compare checksums of all ranks; every rank must call it.

    Args:
        hook (Hook): That keeps the ranks in step.
        name (str): What the checksum is of, for the message.
        checksum (Tensor): This rank's, of one shape everywhere.

    Raises:
        RuntimeError: If two ranks differ.
    """
    sums = all_gather(checksum)
    for rank, other in enumerate(sums):
        if not other.equal(sums[0]):
            raise RuntimeError(
                f'{name} differs between rank 0 and rank {rank} (seen on '
                f'rank {get_rank()}); something other than '
                f'{type(hook).__name__} changes its buffers, such as a hook '
                'that averages or overwrites them.'
            )


def check_kinds(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Refuse integers in place of weights, which loading would cast.

    Args:
        model (nn.Module): The model that is resumed.
        weights (dict[str, Tensor]): Its state in the checkpoint.

    Raises:
        ValueError: If one is floating point and the other is not.
    """
    for name, own in model.state_dict().items():
        saved = weights.get(name, own)
        if isinstance(saved, Tensor) and saved.is_floating_point() != own.is_floating_point():
            raise ValueError(
                f'{name} is {saved.dtype} in the checkpoint, expected {own.dtype}: the file is '
                'damaged; resume from an earlier checkpoint.'
            )


def check_equal_batches(loader: DataLoader) -> None:
    """Refuse ranks that would wait for each other for ever; every rank must call it.

    Args:
        loader (DataLoader): The training data of this rank.

    Raises:
        ValueError: If the ranks have unequal numbers of batches.
    """
    numbers = [int(number) for number in all_gather(torch.tensor([len(loader)]))]
    if len(set(numbers)) > 1:
        raise ValueError(
            f'The {len(numbers)} ranks have {", ".join(map(str, numbers))} batches per epoch, and '
            'those with more would wait for the others for ever; set '
            'train_dataloader.sampler.round_up=True, or use a sampler that gives each rank as many.'
        )


def bit_sum(tensor: Tensor) -> Tensor:
    """Position-weighted sum of the bits of a tensor.

    Args:
        tensor (Tensor): ``(N, ...)``, of two, four or eight bytes an element.

    Returns:
        Tensor: Scalar int64, modulo 2**64.
    """
    word = torch.int16 if tensor.element_size() == 2 else torch.int32
    words = tensor.contiguous().view(-1).view(word).view(tensor.size(0), -1)
    # A few rows at a time: torch widens what it adds up to int64 first.
    bits = torch.cat([rows.sum(1, dtype=torch.int64) for rows in words.split(_ROWS_AT_ONCE)])
    weight = torch.arange(1, bits.numel() + 1, device=bits.device)
    return (bits * weight).sum()
