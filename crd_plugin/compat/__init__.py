"""Patches for what is broken in the installed MMEngine, MMRazor and torchvision.

This is the only package that touches upstream internals. ``PATCHES`` is the table: each patch says
what breaks and where that is reported, looks first, and changes nothing where upstream works.
``tests/test_compat.py`` runs a case for each of them, with and without this package.
"""

import importlib.abc
import logging
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from . import checkpoints, packages, training
from .checkpoints import (
    CheckpointError,
    load_checkpoint,
    load_checkpoint_file,
    use_load_checkpoint_file,
)

__all__ = [
    'PATCHES',
    'CheckpointError',
    'apply_patches',
    'load_checkpoint',
    'load_checkpoint_file',
    'use_load_checkpoint_file',
]

# Module of upstream: its patch, called with the module right after its own import.
PATCHES: dict[str, Callable[[Any], None]] = {
    'mmengine.config.config': packages.inherit_our_configs,
    'mmengine.config.utils': packages.recognize_standard_library,
    'mmengine.dataset.base_dataset': training.copy_parts_of_data_afresh,
    'mmengine.dist.utils': training.init_dist_on_cpu,
    'mmengine.model.wrappers.distributed': training.wrap_model_on_cpu,
    'mmengine.optim.optimizer.amp_optimizer_wrapper': training.scale_gradients_on_cpu,
    'mmengine.runner.checkpoint': checkpoints.load_log_history,
    'mmengine.runner.loops': training.start_data_loading_late,
    'mmengine.utils.package_utils': packages.find_installed_packages,
    'mmpretrain.engine.optimizers.layer_decay_optim_wrapper_constructor': (
        training.find_default_weight_decay
    ),
    'mmrazor': packages.replace_quantization_tables,
    'mmrazor.models.algorithms.base': training.turn_off_inplace_layers,
    'mmrazor.models.losses.kd_soft_ce_loss': packages.find_soft_cross_entropy,
    'torchvision.extension': packages.declare_torchvision_ops,
}


def apply_patches() -> None:
    """Patch what is imported already, and the rest as soon as it is imported.

    Calling it again changes nothing.

    Raises:
        ImportError: If MMCV is missing or of a wrong version.
    """
    packages.check_mmcv()
    if any(isinstance(finder, _PatchFinder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _PatchFinder())
    for module in filter(None, map(sys.modules.get, PATCHES)):
        _patch(module)


def _patch(module: ModuleType) -> None:
    """Run the patch of a module; one that does not fit this version is left out."""
    patch = PATCHES[module.__name__]
    try:
        patch(module)
    except Exception as error:
        logging.getLogger(__name__).warning(
            'crd_plugin does not know this version of %s and leaves out the patch %s (%r)',
            module.__name__,
            patch.__name__,
            error,
        )


class _PatchFinder(importlib.abc.MetaPathFinder):
    """Patch the modules of the table right after their import.

    Why a finder: MMRazor, and MMPretrain beside a CPU-only torch, cannot be imported unpatched, and
    the first act of MMEngine's runner starts the processes. So the patches cannot wait for
    `crd_plugin.models`, and importing all of it here would take 4 s instead of 0.2 s.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a module of the table as the other finders do, and have it patched."""
        if fullname not in PATCHES:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next(filter(None, found), None)
        loader: Any = spec and spec.loader
        if hasattr(loader, 'exec_module'):
            run_code = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run_code(module)
                _patch(module)

            loader.exec_module = exec_module
        return spec
