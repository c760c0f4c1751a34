"""Contrastive Representation Distillation for OpenMMLab.

Importing the package makes the installed versions of MMEngine, MMPretrain and MMRazor work together
(see :mod:`crd_plugin.compat`) and declares the registries of the scope ``crd_plugin``. Models, data
sets and hooks are imported when a config or ``from crd_plugin import CRDLoss`` first asks for one.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import compat

compat.apply_patches()

from . import registry  # noqa: E402  needs the patches
from .version import __version__  # noqa: E402

if TYPE_CHECKING:
    from .datasets import *  # noqa: F403
    from .engine import *  # noqa: F403
    from .models import *  # noqa: F403

__all__ = ['__version__', 'compat', 'registry']

# Packages whose public classes can be imported from here.
_PACKAGES = ('models', 'datasets', 'engine')


def __getattr__(name: str) -> Any:
    """Import a public class when it is first asked for."""
    if name[0].isupper():  # the names of modules are in lower case
        for package in _PACKAGES:
            module = import_module(f'{__name__}.{package}')
            if name in module.__all__:
                return getattr(module, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    """List the public classes too."""
    packages = [import_module(f'{__name__}.{package}') for package in _PACKAGES]
    classes = {name for module in packages for name in module.__all__ if name[0].isupper()}
    return sorted({*globals(), *classes})
