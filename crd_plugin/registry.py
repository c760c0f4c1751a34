"""Registries of the scope ``crd_plugin``, children of MMEngine's.

A config names a class as ``crd_plugin.CRDLoss``. The prefix keeps our names apart from equal ones
elsewhere (MMRazor registers a ``CRDLoss`` too) and is found from any default scope. The packages in
``locations`` are imported when a name is first looked up.
"""

from mmengine import registry as mmengine
from mmengine.registry import Registry

from .models import MODULES

__all__ = [
    'DATASETS',
    'FUNCTIONS',
    'HOOKS',
    'LOOPS',
    'METRICS',
    'MODELS',
    'TASK_UTILS',
    'TRANSFORMS',
]


def _child(parent: Registry, *locations: str) -> Registry:
    """Create the registry of this scope below one of MMEngine's."""
    return Registry(parent.name, parent=parent, scope='crd_plugin', locations=list(locations))


# Algorithms, losses, connectors, backbones.
MODELS = _child(mmengine.MODELS, *MODULES)
# Recorders: MMRazor looks them up among the task utilities.
TASK_UTILS = _child(mmengine.TASK_UTILS, 'crd_plugin.models.recorders')
DATASETS = _child(mmengine.DATASETS, 'crd_plugin.datasets')
TRANSFORMS = _child(mmengine.TRANSFORMS, 'crd_plugin.datasets')
# Functions that join the samples of a batch.
FUNCTIONS = _child(mmengine.FUNCTIONS, 'crd_plugin.datasets')
HOOKS = _child(mmengine.HOOKS, 'crd_plugin.engine')
LOOPS = _child(mmengine.LOOPS, 'crd_plugin.engine')
METRICS = _child(mmengine.METRICS, 'crd_plugin.engine')
