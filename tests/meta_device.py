"""A device without data in place of a GPU, to see what a GPU would wait for.

Tensors on torch's meta device have shapes and no values: whoever reads a value back to the host
gets an error, and code that asks for the type of the device is not told ``'cpu'``, as on a GPU.
:class:`Watch` adds what the meta device lets pass: tensors of host and device in one operator,
copies that the host would wait for, and operators that read in their CUDA code alone.
"""

import sys
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operators with a kernel for the meta device, which reads nothing, and one for CUDA that does:
# factorizations ("synchronizes that device with the CPU", documentation of torch.linalg), and
# multinomial, which checks probabilities.
_READING = ('_linalg_', 'linalg_', 'cholesky', 'multinomial')
_HARMLESS = ('linalg_vector_norm',)
_WRITES = ('index_put', 'index_put_', '_index_put_impl_', '_unsafe_index_put')
_FROM_NUMBERS = (torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor)
_INDEXING = (torch.Tensor.__getitem__, torch.Tensor.__setitem__)


def empty(*shape: int, dtype: torch.dtype | None = None, requires_grad: bool = False) -> Tensor:
    """Return a tensor on the device."""
    return torch.empty(shape, dtype=dtype, device='meta', requires_grad=requires_grad)


class Wait(NamedTuple):
    """Something that the host would wait for."""

    what: str  # 'copy' or 'numbers' from the host to the device, or the name of an operator.
    where: str  # Module whose code asked for it.


class Watch:
    """Context in which nothing may be read back, and waits are noted in ``waits``.

    A RuntimeError comes from the line that reads values back, writes several values by a mask, or
    mixes tensors of host and device, other than a single number, which CUDA takes along.
    """

    def __init__(self) -> None:
        self.waits: set[Wait] = set()
        self._stack = ExitStack()

    def __enter__(self) -> 'Watch':
        self._stack.enter_context(_Functions(self.waits))
        self._stack.enter_context(_Operators(self.waits))
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.close()


class _Functions(TorchFunctionMode):
    """Notes tensors made of numbers: a copy that no operator shows."""

    def __init__(self, waits: set[Wait]) -> None:
        super().__init__()
        self._waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        numbers = False
        if func in _FROM_NUMBERS:
            data = [*args, kwargs.get('data')][func is torch.Tensor.new_tensor]
            numbers = _is_meta(result) and not _is_meta(data)
        elif func in _INDEXING and _is_meta(args[0]):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            numbers = any(isinstance(part, (list, np.ndarray)) for part in index)
        if numbers:
            self._waits.add(Wait('numbers', _caller()))
        return result


class _Operators(TorchDispatchMode):
    """Looks at all that reaches a device, backward passes included."""

    def __init__(self, waits: set[Wait]) -> None:
        super().__init__()
        self._waits = waits

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.partition('::')[2]
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_meta = any(tensor.is_meta for tensor in given)
        if name in ('copy_', '_to_copy'):
            if name == 'copy_':
                source, target = given[1], given[0].device
                blocking = not (args[2:] or [kwargs.get('non_blocking')])[0]
            else:
                source, target = given[0], kwargs.get('device') or given[0].device
                blocking = not kwargs.get('non_blocking')
            if torch.device(target).type == 'meta' and not source.is_meta and blocking:
                self._waits.add(Wait('copy', _caller()))
        elif on_meta and any(tensor.dim() and not tensor.is_meta for tensor in given):
            raise RuntimeError(f'{name} is given tensors of host and device by {_caller()}.')
        elif on_meta and name in _WRITES and args[2].numel() > 1:
            if any(index is not None and index.dtype == torch.bool for index in args[1]):
                raise RuntimeError(
                    f'{name} is given a mask by {_caller()}: how many values it takes is read back.'
                )
        elif on_meta and name.startswith(_READING) and name not in _HARMLESS:
            self._waits.add(Wait(name, _caller()))
        return func(*args, **kwargs)


def replace_autocast(monkeypatch: Any) -> None:
    """Let ``torch.autocast('meta')`` be that of the CPU, and do nothing.

    torch refuses it; in training steps it only occurs as ``enabled=False``.
    """

    class Autocast(torch.autocast):
        def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
            super().__init__('cpu' if device_type == 'meta' else device_type, *args, **kwargs)

    monkeypatch.setattr(torch, 'autocast', Autocast)


def _is_meta(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_meta


def _caller() -> str:
    """Name the module of the innermost code that is neither torch's nor of this file."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get('__name__', '')
        if name != __name__ and name.partition('.')[0] != 'torch':
            return name
        frame = frame.f_back
    return 'unknown'
