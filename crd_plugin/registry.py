"""Registries of the scope ``crd_plugin``, children of MMEngine's roots.

A config names a class as ``crd_plugin.CRDLoss``. The prefix keeps our names
apart from equal ones elsewhere (MMRazor registers a ``CRDLoss`` too) and
resolves from any default scope. ``locations`` are imported on first lookup.
"""

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import FUNCTIONS as MMENGINE_FUNCTIONS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import LOOPS as MMENGINE_LOOPS
from mmengine.registry import MODEL_WRAPPERS as MMENGINE_MODEL_WRAPPERS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import TASK_UTILS as MMENGINE_TASK_UTILS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import Registry

_SCOPE = 'crd_plugin'

# Algorithms, losses, connectors, backbones.
MODELS = Registry('model', parent=MMENGINE_MODELS, scope=_SCOPE, locations=['crd_plugin.models'])
# Recorders, which MMRazor looks up among its task utilities.
TASK_UTILS = Registry(
    'task util', parent=MMENGINE_TASK_UTILS, scope=_SCOPE, locations=['crd_plugin.models']
)
DATASETS = Registry(
    'dataset', parent=MMENGINE_DATASETS, scope=_SCOPE, locations=['crd_plugin.datasets']
)
TRANSFORMS = Registry(
    'transform', parent=MMENGINE_TRANSFORMS, scope=_SCOPE, locations=['crd_plugin.datasets']
)
# Functions that join the samples of a batch.
FUNCTIONS = Registry(
    'function', parent=MMENGINE_FUNCTIONS, scope=_SCOPE, locations=['crd_plugin.datasets']
)
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope=_SCOPE, locations=['crd_plugin.engine'])
LOOPS = Registry('loop', parent=MMENGINE_LOOPS, scope=_SCOPE, locations=['crd_plugin.engine'])
MODEL_WRAPPERS = Registry(
    'model_wrapper', parent=MMENGINE_MODEL_WRAPPERS, scope=_SCOPE, locations=['crd_plugin.engine']
)

__all__ = [
    'DATASETS',
    'FUNCTIONS',
    'HOOKS',
    'LOOPS',
    'MODELS',
    'MODEL_WRAPPERS',
    'TASK_UTILS',
    'TRANSFORMS',
]
