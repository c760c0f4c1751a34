"""A device without data in place of a GPU, to see what a GPU would wait for.

Tensors on torch's meta device have shapes and no values. So whoever reads a
value back to the host gets an error, and whoever asks for the type of the
device is not told ``'cpu'``, as on a GPU. :class:`Watch` adds what the meta
device lets pass: tensors of host and device in one operator, copies that the
host would wait for, and operators that read in their CUDA code alone. It also
counts what a GPU would be called for.
"""

import sys
from contextlib import ExitStack
from typing import Any, Iterator, List, NamedTuple, Optional, Set

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Operators that have a kernel for the meta device, which reads nothing, and
# one for CUDA that does: factorizations ("synchronizes that device with the
# CPU", documentation of torch.linalg), and multinomial, which checks
# probabilities.
_READING = ('_linalg_', 'linalg_', 'cholesky', 'multinomial')
_HARMLESS = ('linalg_vector_norm',)
_WRITES = ('index_put', 'index_put_', '_index_put_impl_', '_unsafe_index_put')
# Neither work for a device nor a view.
_NO_WORK = ('empty', 'new_empty', 'empty_like', 'empty_strided', 'promote_types')
_FROM_NUMBERS = (torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor)
_INDEXING = (torch.Tensor.__getitem__, torch.Tensor.__setitem__)


def empty(*shape: int, dtype: Optional[torch.dtype] = None, requires_grad: bool = False) -> Tensor:
    """A tensor on the device."""
    return torch.empty(shape, dtype=dtype, device='meta', requires_grad=requires_grad)


class Wait(NamedTuple):
    """Something that the host would wait for.

    Attributes:
        what (str): ``'copy'`` or ``'numbers'`` from the host to the device,
            or the name of an operator.
        where (str): Module whose code asked for it.
    """

    what: str
    where: str


class Watch:
    """Context in which nothing may be read back, and waits are noted.

    Attributes:
        waits (set[Wait]): What was met.
        calls (list[str]): Names of the operators that were called, one after
            the other, but those that only view or find memory.

    Raises:
        RuntimeError: From the line that does it: if values are read back, by
            torch or as a mask with several values to write; if an operator
            is given tensors of host and device, other than a single number of
            the host, which CUDA takes along.
    """

    def __init__(self) -> None:
        self.waits: Set[Wait] = set()
        self.calls: List[str] = []
        self._stack = ExitStack()

    def __enter__(self) -> 'Watch':
        """Begin."""
        self._stack.enter_context(_Functions(self.waits))
        self._stack.enter_context(_Operators(self.waits, self.calls))
        return self

    def __exit__(self, *exception: Any) -> None:
        """End."""
        self._stack.close()


class _Functions(TorchFunctionMode):
    """Tensors that are made of numbers: a copy that no operator shows."""

    def __init__(self, waits: Set[Wait]) -> None:
        super().__init__()
        self._waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in _FROM_NUMBERS:
            given = [*args, kwargs.get('data')]
            data = given[func is torch.Tensor.new_tensor]
            if _is_meta(result) and not _is_meta(data):
                self._waits.add(Wait('numbers', _caller()))
        elif func in _INDEXING and _is_meta(args[0]):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(part, (list, np.ndarray)) for part in index):
                self._waits.add(Wait('numbers', _caller()))
        return result


class _Operators(TorchDispatchMode):
    """All that reaches a device, backward passes included."""

    def __init__(self, waits: Set[Wait], calls: List[str]) -> None:
        super().__init__()
        self._waits = waits
        self._calls = calls

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.partition('::')[2]
        if not func.is_view and name not in _NO_WORK:
            self._calls.append(name)
        given = list(_tensors((args, kwargs)))
        on_meta = [tensor.is_meta for tensor in given]
        if name in ('copy_', '_to_copy'):
            self._check_copy(name, given, args, kwargs)
        elif any(on_meta) and any(tensor.dim() and not tensor.is_meta for tensor in given):
            raise RuntimeError(f'{name} is given tensors of host and device by {_caller()}.')
        if any(on_meta):
            if (
                name in _WRITES
                and args[2].numel() > 1
                and any(index is not None and index.dtype == torch.bool for index in args[1])
            ):
                raise RuntimeError(
                    f'{name} is given a mask by {_caller()}: how many values it takes is read back.'
                )
            if name.startswith(_READING) and name not in _HARMLESS:
                self._waits.add(Wait(name, _caller()))
        return func(*args, **kwargs)

    def _check_copy(self, name: str, given: list, args: tuple, kwargs: dict) -> None:
        """Note a copy from the host that is waited for."""
        if name == 'copy_':
            source, target = given[1], given[0].device
            blocking = not (args[2:] or [kwargs.get('non_blocking')])[0]
        else:
            source, target = given[0], kwargs.get('device')
            blocking = not kwargs.get('non_blocking')
        to_meta = target is not None and torch.device(target).type == 'meta'
        if to_meta and not source.is_meta and blocking:
            self._waits.add(Wait('copy', _caller()))


def replace_autocast(monkeypatch: Any) -> None:
    """Let ``torch.autocast('meta')`` be that of the CPU, and do nothing.

    torch refuses it; in training steps it only occurs as ``enabled=False``.
    """

    class Autocast(torch.autocast):
        """Knows one device more."""

        def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
            if device_type == 'meta':
                device_type = 'cpu'
            super().__init__(device_type, *args, **kwargs)

    monkeypatch.setattr(torch, 'autocast', Autocast)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Tensors in arguments of an operator."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)


def _is_meta(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_meta


def _caller() -> str:
    """Module of the innermost code that is neither torch's nor of here."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get('__name__', '')
        if name != __name__ and name.partition('.')[0] != 'torch':
            return name
        frame = frame.f_back
    return 'unknown'
