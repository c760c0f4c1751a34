"""Mends for the installed versions of MMEngine, MMCV, MMRazor and torch.

This is the only package that touches the inside of others. A mend is a small
function that looks first and changes something only where it is really
broken. It runs when the module that it mends is imported, so importing
``crd_plugin`` costs next to nothing; what is already imported is mended at
once.
"""

import importlib.abc
import sys
from types import ModuleType
from typing import Callable, Dict

from .checkpoints import (
    CheckpointError,
    allow_checkpoint_globals,
    load_checkpoint_file,
    load_local_checkpoints_clearly,
    save_before_removing,
    write_files_at_once,
)
from .logs import read_numbers_when_asked
from .memory import keep_freed_memory
from .packages import (
    check_mmcv,
    declare_torchvision_ops,
    find_packages_without_setuptools,
    leave_our_configs_their_scope,
    name_our_configs,
    quiet_mmcv,
    stand_in_for_quantization,
)
from .training import (
    amp_on_cpu,
    autocast_half_on_cpu,
    format_config_once,
    init_dist_on_cpu,
    read_data_when_training_starts,
    switch_inplace_off,
    wrap_model_on_cpu,
)

__all__ = ['CheckpointError', 'apply', 'keep_freed_memory', 'load_checkpoint_file']


def _mend_config(config: ModuleType) -> None:
    """Both mends of ``mmengine.config.config``."""
    format_config_once(config)
    leave_our_configs_their_scope(config)


# Called before a module's code runs.
_BEFORE: Dict[str, Callable[[], None]] = {
    'torchvision': declare_torchvision_ops,
}
# Called with the module, once its code has run.
_AFTER: Dict[str, Callable[[ModuleType], None]] = {
    'torch': allow_checkpoint_globals,
    'mmengine.config.config': _mend_config,
    'mmengine.utils.package_utils': find_packages_without_setuptools,
    'mmengine.config.utils': name_our_configs,
    'mmengine.dist.utils': init_dist_on_cpu,
    'mmengine.logging.message_hub': read_numbers_when_asked,
    'mmengine.model.wrappers.distributed': wrap_model_on_cpu,
    'mmengine.optim.optimizer.amp_optimizer_wrapper': amp_on_cpu,
    'mmengine.runner.amp': autocast_half_on_cpu,
    'mmengine.runner.checkpoint': load_local_checkpoints_clearly,
    'mmengine.runner.loops': read_data_when_training_starts,
    'mmengine.fileio.backends.local_backend': write_files_at_once,
    'mmengine.hooks.checkpoint_hook': save_before_removing,
    'mmrazor.models.algorithms.base': switch_inplace_off,
}
# Called with the module and the ImportError that its code raised.
_RESCUE: Dict[str, Callable[[ModuleType, ImportError], None]] = {
    'mmrazor.structures.quantization.backend_config': stand_in_for_quantization,
}
_DONE = set()


class _Mender(importlib.abc.MetaPathFinder):
    """Runs the mends of a module while it is imported."""

    def find_spec(self, fullname, path=None, target=None):
        """Find a module to be mended as the other finders do."""
        if fullname not in {*_BEFORE, *_AFTER, *_RESCUE}:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, 'find_spec', None)
            if finder is self or find is None:
                continue
            spec = find(fullname, path, target)
            if spec is not None:
                break
        else:
            return None
        if hasattr(spec.loader, 'exec_module'):
            self._wrap(spec)
        return spec

    @staticmethod
    def _wrap(spec) -> None:
        """Make one loader, which serves this module only, call the mends."""
        loader, run = spec.loader, spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            vars(loader).pop('exec_module', None)
            if spec.name in _BEFORE:
                _BEFORE[spec.name]()
            try:
                run(module)
            except ImportError as error:
                if spec.name not in _RESCUE:
                    raise
                _RESCUE[spec.name](module, error)
            if spec.name in _AFTER:
                _mend(spec.name, module)

        loader.exec_module = exec_module


def _mend(name: str, module: ModuleType) -> None:
    """Run the mend of an imported module, once for each module object."""
    if (name, id(module)) not in _DONE:
        _DONE.add((name, id(module)))
        _AFTER[name](module)


def apply() -> None:
    """Mend what is imported already and watch for what will be.

    Calling it again changes nothing.

    Raises:
        ImportError: If MMCV is missing or of a wrong version.
    """
    check_mmcv()
    quiet_mmcv()
    if not any(isinstance(finder, _Mender) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Mender())
    for name in _AFTER:
        module = sys.modules.get(name)
        if module is not None:
            _mend(name, module)
