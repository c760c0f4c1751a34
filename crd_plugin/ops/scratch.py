"""Memory of a CPU that is kept from step to step."""

import math
import threading
from typing import Dict, Sequence, Tuple

import torch
from torch import Tensor

__all__ = ['release', 'scratch']


class _Kept(threading.local):
    """Flat tensors by name and dtype, of each thread its own."""

    def __init__(self) -> None:
        self.tensors: Dict[Tuple[str, torch.dtype], Tensor] = {}


_KEPT = _Kept()


def scratch(name: str, shape: Sequence[int], like: Tensor) -> Tensor:
    """Memory for a short while: the next tensor of this name overwrites it.

    On a CPU a new tensor of a megabyte costs more than most functions of it,
    since the system has to give, and to clear, its pages: 1.3 ms became 5 ms
    for 46,000 gathered rows of 128 (two cores of an AMD EPYC). The memory of
    the largest tensor asked for by a name is kept. A GPU's memory is kept by
    torch itself; there it is a new tensor.

    Args:
        name (str): Of the purpose.
        shape (Sequence[int]): Of the tensor.
        like (Tensor): Has its dtype and device.

    Returns:
        Tensor: Of undefined values, without gradient.
    """
    if like.device.type != 'cpu' or type(like) is not Tensor:
        # Those of other types, such as fake tensors, are not to be kept.
        return like.new_empty(shape)
    number = math.prod(shape)
    kept = _KEPT.tensors.get((name, like.dtype))
    if kept is None or kept.numel() < number:
        with torch.inference_mode(False):
            kept = torch.empty(number, dtype=like.dtype, device='cpu')
        _KEPT.tensors[name, like.dtype] = kept
    return kept[:number].view(tuple(shape))


def release() -> None:
    """Give back what this thread keeps."""
    _KEPT.tensors.clear()
