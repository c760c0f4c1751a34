"""Options of a model that make it faster or smaller."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def channels_last(inputs: Any) -> Any:
    """Lay images ``(B, C, H, W)``, or each of several views, out with channels last."""
    if isinstance(inputs, (list, tuple)):
        return [channels_last(view) for view in inputs]
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs


def compile_backbone(network: nn.Module, role: str, options: bool | Mapping[str, Any]) -> None:
    """Compile the backbone of a teacher or student in place, recorders' hooks included."""
    # The rest takes hardly any time and reads data samples, which cannot be compiled.
    options = {} if options is True else options
    if not isinstance(options, Mapping):
        raise TypeError(
            f'compile is {options!r}, expected True, False or a dict with arguments of '
            "torch.compile such as dict(mode='max-autotune')."
        )
    backbone = getattr(network, 'backbone', None)
    if not isinstance(backbone, nn.Module):
        raise ValueError(
            f'compile: the {role}, a {type(network).__name__}, has no backbone to compile; leave '
            'compile out.'
        )
    try:
        backbone.compile(**options)
    except Exception as error:  # Of many types; options are the only cause.
        raise ValueError(
            f'compile is {dict(options)}, which torch.compile refuses: {error}'
        ) from error


def keep_in_dtype(network: nn.Module, dtype: torch.dtype) -> None:
    """Convert a network that is not trained, and the images that it is given from now on."""
    for name, part in network.named_children():
        if name != 'data_preprocessor':  # a mean and std, which is not part of the network
            part.to(dtype)
    network.register_forward_pre_hook(partial(_convert_images, dtype))


def in_float32(record: Any) -> Any:
    """Return a record, a tensor or nested lists of them, in float32."""
    if isinstance(record, (list, tuple)):
        return type(record)(map(in_float32, record))
    is_float = isinstance(record, Tensor) and record.is_floating_point()
    return record.float() if is_float else record


def _convert_images(dtype: torch.dtype, network: nn.Module, args: tuple) -> tuple:
    return (args[0].to(dtype), *args[1:])
