"""Recorder of a classifier's logits."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from crd_plugin.registry import TASK_UTILS

from ._classifier import find_module, find_scores
from ._members import MemberRecorder, members_of


@TASK_UTILS.register_module()
class LogitsRecorder(MemberRecorder):
    """Record the logits ``(B, classes)`` of any classifier of MMPretrain, timm or Hugging Face.

    They are what the ``head`` returns, or the wrapped network where a classifier has no head. In a
    distiller: ``dict(type='crd_plugin.Logits')``. Of an ensemble of teachers it holds one record
    per member: in a mapping ``record_idx=1`` is the second one, ``record_idx='all'`` a list.

    Args:
        source (str, optional): Name of the module that returns the logits, for other networks.
            Defaults to None: found by itself.

    Raises:
        ValueError: If there is no such module.
        TypeError: In the forward pass, if it does not return logits.
    """

    def __init__(self, source: str | None = None) -> None:
        super().__init__(source or 'head')
        self._given = source

    def prepare_from_model(self, model: Any = None) -> None:
        """Register a hook on the module that returns the logits."""
        if self._given is not None:
            find_module(model, self._given).register_forward_hook(self.forward_hook)
            return
        for network in members_of(model):
            find_scores(network).register_forward_hook(self.forward_hook)

    def forward_hook(self, module: nn.Module, inputs: tuple, outputs: Any) -> None:
        """Record the logits of one call."""
        logits = getattr(outputs, 'logits', outputs)  # Hugging Face returns an object
        if not isinstance(logits, Tensor) or logits.dim() != 2:
            kind = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise TypeError(
                f'{type(module).__name__} returns {kind}, expected logits of shape (B, classes); '
                "set the recorder's source to the module that returns them."
            )
        super().forward_hook(module, inputs, logits)
