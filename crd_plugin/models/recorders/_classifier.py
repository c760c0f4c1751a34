"""Find the classification layer of a network, whoever built it."""

from __future__ import annotations

from typing import Any

from torch import nn


def find_module(model: nn.Module, source: str) -> nn.Module:
    """Return the module of that name, or raise a ValueError that names the source."""
    modules = dict(model.named_modules())
    if source not in modules:
        raise ValueError(f"source='{source}' is not a module of the {type(model).__name__}.")
    return modules[source]


def find_scores(model: nn.Module) -> nn.Module:
    """Return the module whose output is the logits: the head, or the network inside a wrapper.

    Raises:
        ValueError: If the model has neither.
    """
    # MMPretrain's wrappers of timm and Hugging Face hold the whole network as `model`.
    for name in ('head', 'model'):
        module = getattr(model, name, None)
        if isinstance(module, nn.Module):
            return module
    raise ValueError(
        f"{type(model).__name__} has neither a 'head' nor a 'model' that returns logits. If some "
        'other module does, name it as source; if none does, take a method that reads features '
        'alone, such as crd, rrd or cc.'
    )


def find_classification_layer(model: nn.Module) -> nn.Module:
    """Return the layer whose input is the penultimate feature and whose output are the logits.

    Raises:
        ValueError: If there is none.
    """
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
        'the module that returns the penultimate feature as source.'
    )
