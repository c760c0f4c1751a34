"""Lookup of a recorder's backbone."""

from __future__ import annotations

from torch import nn


def find_backbone(model: nn.Module | None, source: str) -> nn.Module:
    """Return the module of that name, or raise a ValueError that says what is expected."""
    modules = {} if model is None else dict(model.named_modules())
    if source not in modules:
        raise ValueError(
            f"source='{source}' is not a module of the {type(model).__name__}; expected the name "
            "of its backbone, such as 'backbone'."
        )
    return modules[source]
