"""Options of a model that make it faster and change nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

__all__ = ['channels_last', 'compile_backbone']


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
