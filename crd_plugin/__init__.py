"""Contrastive Representation Distillation for OpenMMLab.

Importing the package makes the installed versions of MMEngine, MMPretrain and
MMRazor work together (see :mod:`crd_plugin.compat`) and declares the
registries of the scope ``crd_plugin``. Nothing heavy is imported: models, data
sets and hooks load when a config first asks for one.
"""

from . import compat

compat.apply()

from . import registry  # noqa: E402
from .version import __version__  # noqa: E402

__all__ = ['__version__', 'compat', 'registry']
