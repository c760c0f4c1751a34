"""Contrastive Representation Distillation for OpenMMLab.

Importing the package makes the installed versions of MMEngine, MMPretrain and MMRazor work together
(see :mod:`crd_plugin.compat`) and declares the registries of the scope ``crd_plugin``. Models, data
sets and hooks are imported when a config or ``from crd_plugin import CRDLoss`` first asks for one,
losses, connectors and the bank without MMPretrain and MMRazor.
"""

from typing import TYPE_CHECKING

from . import compat

compat.apply_patches()

from . import registry  # noqa: E402  needs the patches
from ._lazy import lazy_names  # noqa: E402
from .models import MODULES as _MODULES  # noqa: E402
from .version import __version__  # noqa: E402

if TYPE_CHECKING:
    from .cli.one_call import distill
    from .datasets import *  # noqa: F403
    from .engine import *  # noqa: F403
    from .models import *  # noqa: F403

__all__ = ['__version__', 'compat', 'distill', 'registry']

# Modules whose public classes can be imported from here.
_find, __dir__ = lazy_names(__name__, (*_MODULES, f'{__name__}.datasets', f'{__name__}.engine'))


def __getattr__(name: str) -> object:
    """Import a class, or the one function, when it is first asked for."""
    if name == 'distill':
        from .cli.one_call import distill

        return distill
    return _find(name)
