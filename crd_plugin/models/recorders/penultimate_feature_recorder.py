"""Recorder of the feature that a classifier's last layer reads."""

from __future__ import annotations

from typing import Any

from torch import nn

from crd_plugin.registry import TASK_UTILS

from ._classifier import find_classification_layer, find_module
from ._members import MemberRecorder, members_of


@TASK_UTILS.register_module()
class PenultimateFeatureRecorder(MemberRecorder):
    """Record the penultimate feature ``(B, C)`` of any classifier of MMPretrain, timm or others.

    It is the input of the classification layer, the last layer with as many outputs as there are
    classes: a pooled map, a class token, or what hidden layers of the head make of it. In a
    distiller: ``dict(type='crd_plugin.PenultimateFeature')``. Of a network without a head, such as
    a self-supervised teacher, it is what the neck or else the backbone returns last. Of an ensemble
    of teachers it holds one record per member, as ``crd_plugin.Logits`` does.

    Args:
        source (str, optional): Name of the module whose last output is the feature, for other
            networks. Defaults to None: found by itself.

    Raises:
        ValueError: If there is no such module, or the feature is a map.
    """

    def __init__(self, source: str | None = None) -> None:
        super().__init__(source or 'head')
        self._given = source

    def prepare_from_model(self, model: Any = None) -> None:
        """Register a hook on the module that reads or returns the feature."""
        if self._given is not None:
            find_module(model, self._given).register_forward_hook(self._record_output)
            return
        for network in members_of(model):
            if getattr(network, 'head', None) is None and hasattr(network, 'backbone'):
                last = getattr(network, 'neck', None) or network.backbone
                last.register_forward_hook(self._record_output)
            else:
                find_classification_layer(network).register_forward_hook(self.forward_hook)

    def forward_hook(self, module: nn.Module, inputs: tuple, outputs: Any) -> None:
        """Record the input of one call, flattened."""
        super().forward_hook(module, inputs, inputs[0].flatten(1))

    def _record_output(self, module: nn.Module, inputs: tuple, outputs: Any) -> None:
        """Record the last output of one call."""
        feature = outputs[-1] if isinstance(outputs, (list, tuple)) else outputs
        if feature.dim() != 2:
            raise ValueError(
                f'{type(module).__name__} returns a feature of shape {tuple(feature.shape)}, '
                "expected (B, C); add neck=dict(type='GlobalAveragePooling'), or for a transformer "
                "out_type='cls_token' or 'avg_featmap'."
            )
        super().forward_hook(module, inputs, feature)
