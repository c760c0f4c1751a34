"""Uniform random subsets of rows, one or one for each anchor."""

from typing import Optional

import torch
from torch import Tensor

__all__ = ['random_rows', 'random_subsets']

# Ids are moved in runs of this many: one cache line instead of one number.
_BLOCK = 32


def random_rows(
    num_rows: int, most: int, device: torch.device, generator: Optional[torch.Generator]
) -> Tensor:
    """A uniform subset of at most ``most`` rows in random order.

    Args:
        num_rows (int): Rows N to draw from.
        most (int): Rows wanted.
        device (torch.device): Of the result and of ``generator``.
        generator (torch.Generator, optional): Source of randomness.

    Returns:
        Tensor: ``(min(most, N),)`` int64. Nothing is read back from a GPU.
    """
    if device.type == 'cpu' and 8 * most < num_rows:
        return _first_distinct(num_rows, most, generator)
    # A CPU is faster with half the bytes, a GPU with one call less.
    dtype = torch.int32 if device.type == 'cpu' else torch.int64
    return torch.randperm(num_rows, dtype=dtype, device=device, generator=generator)[:most].long()


def random_subsets(
    num_sets: int,
    size: int,
    length: int,
    device: torch.device,
    generator: Optional[torch.Generator],
) -> Tensor:
    """Uniform subsets of ``range(size)``, of one permutation.

    The positions taken from one random permutation are an arithmetic
    progression of blocks modulo a prime, with an offset and a stride of each
    set's own. Any fixed set of positions of a uniform permutation is a
    uniform subset, so each set alone is exactly that. int32: half the bytes.

    Args:
        num_sets (int): How many.
        size (int): Numbers to draw from.
        length (int): Numbers of a set, at most ``size``.
        device (torch.device): Of the result and of ``generator``.
        generator (torch.Generator, optional): Source of randomness.

    Returns:
        Tensor: ``(num_sets, length)`` int32.
    """
    permutation = torch.randperm(size, dtype=torch.int32, device=device, generator=generator)
    block = _BLOCK if size >= _BLOCK * _BLOCK else 1
    num_blocks = _largest_prime(size // block)
    if num_blocks * block < length:
        block, num_blocks = 1, size
    need = -(-length // block)
    offset = torch.randint(num_blocks, (num_sets, 1), device=device, generator=generator)
    if num_blocks == size and block == 1:
        # Nearly the whole permutation is taken; any order of it will do.
        stride = torch.ones_like(offset)
    else:
        stride = torch.randint(
            1, max(num_blocks, 2), (num_sets, 1), device=device, generator=generator
        )
    steps = torch.arange(need, device=device)
    blocks = (offset + stride * steps) % num_blocks
    sets = permutation[: num_blocks * block].view(num_blocks, block)[blocks]
    sets = sets.view(num_sets, need * block)
    return sets[:, :length].contiguous()


def _first_distinct(num_rows: int, number: int, generator: Optional[torch.Generator]) -> Tensor:
    """The first distinct ones of independent draws, ``(number,)``.

    That is a uniform subset, for a fraction of what a permutation of all
    rows costs where few of them are needed. Only on the host, where looking
    at how many are distinct does not wait for a GPU.
    """
    # About number**2 / (2 N) repeat: below a sixteenth.
    draws = torch.randint(num_rows, (number + number // 8 + 8,), generator=generator)
    value, place = draws.sort(stable=True)
    repeated = place[1:][value[1:] == value[:-1]]
    first = torch.ones_like(draws, dtype=torch.bool)
    first[repeated] = False
    distinct = draws[first][:number]
    if distinct.numel() == number:
        return distinct
    # Nearly never; starting anew with a permutation leaves it uniform.
    return torch.randperm(num_rows, generator=generator)[:number]


def _largest_prime(limit: int) -> int:
    """Largest prime that does not exceed ``limit`` (1 below 2)."""
    for number in range(limit, 1, -1):
        if all(number % d for d in range(2, int(number**0.5) + 1)):
            return number
    return 1
