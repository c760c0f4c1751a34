"""Options of a model that make it faster and change nothing else."""

import inspect
from typing import Any, Mapping, Union

import torch
from torch import Tensor, nn

__all__ = ['begin_step', 'channels_last', 'compile_backbone']


def channels_last(inputs: Any) -> Any:
    """Lay images out with the channels of a pixel side by side.

    Args:
        inputs (Tensor | Sequence[Tensor]): Images ``(B, C, H, W)``, or views
            of them.

    Returns:
        Tensor | Sequence[Tensor]: The same values.
    """
    if isinstance(inputs, (list, tuple)):
        return type(inputs)(channels_last(view) for view in inputs)
    if isinstance(inputs, Tensor) and inputs.dim() == 4:
        return inputs.contiguous(memory_format=torch.channels_last)
    return inputs


def begin_step() -> None:
    """Tell compiled backbones that the outputs of the step before are done.

    With CUDA graphs (``mode='reduce-overhead'`` or ``'max-autotune'``) torch
    takes each compiled call without a pending backward pass for a new step
    and gives the memory of earlier outputs away: the student's call would
    overwrite the maps recorded of the teacher. Source: documentation of
    ``torch.compiler.cudagraph_mark_step_begin``. Without CUDA graphs nothing
    happens.
    """
    torch.compiler.cudagraph_mark_step_begin()


def compile_backbone(
    network: nn.Module, role: str, options: Union[bool, Mapping[str, Any]]
) -> None:
    """Let ``torch.compile`` translate the backbone of a network, in place.

    Names of parameters stay as they are and copies of the network are not
    compiled. Recorders work by forward hooks, which become part of what is
    compiled, wherever in the backbone they are. The rest of the network
    takes hardly any time and reads data samples, which cannot be compiled.

    Args:
        network (nn.Module): Teacher or student.
        role (str): ``'teacher'`` or ``'student'``, for messages.
        options (bool | dict): Arguments of ``torch.compile``; True: none.

    Raises:
        TypeError: If ``options`` is no bool and no dict.
        ValueError: If ``torch.compile`` has no such argument or refuses its
            value, or the network has no backbone.
    """
    if isinstance(options, bool):
        options = {}
    if not isinstance(options, Mapping):
        raise TypeError(
            f'compile is {options!r}, expected True, False or a dict with '
            "arguments of torch.compile such as dict(mode='max-autotune')."
        )
    known = set(inspect.signature(torch.compile).parameters) - {'model'}
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(
            f'compile has {unknown}, expected arguments of torch.compile: {sorted(known)}.'
        )
    backbone = getattr(network, 'backbone', None)
    if not isinstance(backbone, nn.Module):
        raise ValueError(
            f'compile: the {role}, a {type(network).__name__}, has no '
            'backbone to be compiled; leave compile out.'
        )
    try:
        backbone.compile(**options)
    except Exception as error:  # Of many types, all of them from options.
        raise ValueError(
            f'compile is {dict(options)}, which torch.compile refuses: {error}'
        ) from error
