"""Recorders of what the last layer of a classifier reads and returns, whoever built it."""

from collections.abc import Callable, Iterable
from typing import Any

from mmrazor.models.task_modules import ModuleOutputsRecorder
from torch import Tensor, nn

from crd_plugin.registry import TASK_UTILS

from .backbone_recorders import find_module


class MemberRecorder(ModuleOutputsRecorder):
    """Record each member of an ensemble: ``record_idx`` is its index, ``'all'`` a list of all.

    A subclass defines ``find``, which returns the module to hook and the hook, and
    ``record_output``, the hook of a module that ``source`` names.
    """

    find: Callable[[Any], tuple[nn.Module, Callable]]
    record_output: Callable

    def __init__(self, source: str | None = None) -> None:
        super().__init__(source or 'head')
        self._given = source

    def prepare_from_model(self, model: Any = None) -> None:
        """Register a hook on the given module, or on one of each member."""
        if self._given is not None:
            find_module(model, self._given).register_forward_hook(self.record_output)
            return
        for network in members_of(model):
            module, hook = self.find(network)
            module.register_forward_hook(hook)

    def get_record_data(self, record_idx: int | str = 0, data_idx: int | None = None) -> Any:
        """Return the record of one member, or a list of the records of all members."""
        if record_idx == 'all':
            return list(self.data_buffer)
        return super().get_record_data(record_idx, data_idx)


@TASK_UTILS.register_module()
class LogitsRecorder(MemberRecorder):
    """Record the logits ``(B, classes)`` of any classifier of MMPretrain, timm or Hugging Face.

    They are what the ``head`` returns, or the wrapped network where a classifier has no head. In a
    distiller: ``dict(type='crd_plugin.Logits')``. Of an ensemble it holds a record per member.

    Args:
        source (str, optional): Name of the module that returns the logits, for other networks.
            Defaults to None: found by itself.

    Raises:
        ValueError: If there is no such module.
        TypeError: In the forward pass, if it does not return logits.
    """

    def find(self, network: nn.Module) -> tuple:
        """Return the module that returns the logits."""
        return find_scores(network), self.record_output

    def record_output(self, module: nn.Module, inputs: tuple, outputs: Any) -> None:
        """Record the logits of one call."""
        logits = getattr(outputs, 'logits', outputs)  # Hugging Face returns an object
        if not isinstance(logits, Tensor) or logits.dim() != 2:
            kind = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise TypeError(
                f'{type(module).__name__} returns {kind}, expected logits of shape (B, classes); '
                "set the recorder's source to the module that returns them."
            )
        self.forward_hook(module, inputs, logits)


@TASK_UTILS.register_module()
class PenultimateFeatureRecorder(MemberRecorder):
    """Record the penultimate feature ``(B, C)`` of any classifier of MMPretrain, timm or others.

    It is the input of the classification layer, the last layer with as many outputs as there are
    classes. Of a network without a head, such as a self-supervised teacher, it is what the neck or
    else the backbone returns last. In a distiller: ``dict(type='crd_plugin.PenultimateFeature')``.
    Of an ensemble it holds a record per member.

    Args:
        source (str, optional): Name of the module whose last output is the feature, for other
            networks. Defaults to None: found by itself.

    Raises:
        ValueError: If there is no such module, or the feature is a map.
    """

    def find(self, network: nn.Module) -> tuple:
        """Return the module that returns the feature, or the layer that reads it."""
        if getattr(network, 'head', None) is None and hasattr(network, 'backbone'):
            return getattr(network, 'neck', None) or network.backbone, self.record_output
        return find_classification_layer(network), self._record_input

    def record_output(self, module: nn.Module, inputs: tuple, outputs: Any) -> None:
        """Record the last output of one call."""
        feature = outputs[-1] if isinstance(outputs, (list, tuple)) else outputs
        if feature.dim() != 2:
            raise ValueError(
                f'{type(module).__name__} returns a feature of shape {tuple(feature.shape)}, '
                "expected (B, C); add neck=dict(type='GlobalAveragePooling'), or for a transformer "
                "out_type='cls_token' or 'avg_featmap'."
            )
        self.forward_hook(module, inputs, feature)

    def _record_input(self, module: nn.Module, inputs: tuple, outputs: Any) -> None:
        """Record the input of one call, flattened."""
        self.forward_hook(module, inputs, inputs[0].flatten(1))


def members_of(model: Any) -> Iterable[Any]:
    """Return the members of an ensemble, or any other model as its only member."""
    members = getattr(model, 'members', None)
    return members if isinstance(members, nn.ModuleList) else [model]


def find_scores(model: nn.Module) -> nn.Module:
    """Return the module whose output is the logits: the head, or the network inside a wrapper."""
    # MMPretrain's wrappers of timm and Hugging Face hold the whole network as `model`.
    for name in ('head', 'model'):
        module = getattr(model, name, None)
        if isinstance(module, nn.Module):
            return module
    raise ValueError(
        f"{type(model).__name__} has neither a 'head' nor a 'model' that returns logits; name "
        'another module as source, or take a method that reads features alone, such as crd or rrd.'
    )


def find_classification_layer(model: nn.Module) -> nn.Module:
    """Return the layer whose input is the penultimate feature and whose output are the logits."""
    scores: Any = find_scores(model)
    owners: tuple[Any, ...] = (scores, getattr(model, 'backbone', None))
    for owner in owners:
        layer = owner.get_classifier() if hasattr(owner, 'get_classifier') else None  # timm
        if isinstance(layer, nn.Module) and not isinstance(layer, nn.Identity):
            return layer
    for scope in (scores, model):  # VGG and Inception classify in the backbone
        layers = [layer for layer in scope.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
        if layers:
            classes = getattr(scores, 'num_classes', None)
            fitting = [layer for layer in layers if len(layer.weight) == classes]
            return (fitting or layers)[-1]
    raise ValueError(
        f'{type(model).__name__} has no linear layer that could be the classification layer; name '
        'the module that returns the feature as source.'
    )
