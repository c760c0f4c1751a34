"""Run a function of tensors as a CUDA graph, so that a step costs one launch instead of many."""

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

_Function = Callable[..., tuple[Tensor, ...]]


class CapturedStep:
    """Replay a function as a CUDA graph, one graph per shape of its inputs.

    The function must have no data-dependent shape and read nothing back; besides its inputs it may
    read and write tensors that stay where they are. A shape is captured when it comes for the
    second time in a row: the call before has compiled and allocated what the function needs, and
    the odd last batch of an epoch is not worth a graph.
    """

    def __init__(self) -> None:
        self._settings: Hashable = None
        self._graphs: dict[Hashable, _Function] = {}
        self._last: Hashable = None

    def __reduce__(self) -> tuple[type['CapturedStep'], tuple[()]]:
        """Copy and save without the graphs, which belong to this module's tensors."""
        return type(self), ()

    def __call__(
        self, function: _Function, settings: Hashable, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        """Call a function, or replay it.

        Args:
            function (Callable): Takes the inputs, returns tensors.
            settings (Hashable): What else the function depends on: numbers, and the addresses of
                the tensors that it reads and writes. Graphs of other settings are dropped.
            *inputs (Tensor): Inputs without gradient.

        Returns:
            tuple[Tensor, ...]: What the function returns, in memory of its own.
        """
        if settings != self._settings:
            self._settings, self._last = settings, None
            self._graphs.clear()
        shape = tuple((given.shape, given.dtype, given.device) for given in inputs)
        again, self._last = shape == self._last, shape
        if again and shape not in self._graphs:
            self._graphs[shape] = _capture(function, inputs)
        return self._graphs.get(shape, function)(*inputs)


def _capture(function: _Function, inputs: tuple[Tensor, ...]) -> _Function:
    """Capture a function with memory for its inputs and outputs; return its replay."""
    own = [given.clone() for given in inputs]
    graph = torch.cuda.CUDAGraph()
    # The device's generator is registered with every graph: a replay goes on in its stream of
    # random numbers, from its current seed. 'thread_local', because the thread of a data loader
    # that pins memory may allocate meanwhile.
    with torch.cuda.graph(graph, capture_error_mode='thread_local'):
        outputs = function(*own)

    def replay(*inputs: Tensor) -> tuple[Tensor, ...]:
        for memory, given in zip(own, inputs, strict=True):
            memory.copy_(given)
        graph.replay()
        return tuple(output.clone() for output in outputs)

    return replay
