"""Patches of importing packages and of finding them."""

import functools
import importlib.metadata
import importlib.util
import inspect
import os.path as osp
import runpy
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

MMCV_MINIMUM = '2.0.0'
MMCV_MAXIMUM = '2.1.0'

# torch.library removes the operators of a Library when the object is collected.
_LIBRARIES: list[Any] = []


def rebind(package: str, old: Any, new: Any) -> None:
    """Replace an object in every module of a package that has imported it."""
    for name, module in list(sys.modules.items()):
        if name.split('.')[0] == package and module is not None:
            for attribute, value in list(vars(module).items()):
                if value is old:
                    setattr(module, attribute, new)


def check_mmcv() -> None:
    """Raise one clear error if MMCV is missing, too old or too new for MMRazor."""
    from mmengine.utils import digit_version

    spec = importlib.util.find_spec('mmcv')
    advice = (
        f'MMRazor needs {MMCV_MINIMUM} <= mmcv <= {MMCV_MAXIMUM}; uninstall others, then install '
        f'one with `pip install mmcv-lite=={MMCV_MAXIMUM}` or, for its compiled operators, the '
        'full `mmcv` of that version, but never both, because they share the package `mmcv`.'
    )
    if spec is None or spec.origin is None:
        raise ImportError(f'MMCV is missing, but {advice}')
    # Importing MMCV takes a second or two; this file of it does not.
    version = runpy.run_path(str(Path(spec.origin).with_name('version.py')))['__version__']
    low, found, high = map(digit_version, (MMCV_MINIMUM, version, MMCV_MAXIMUM))
    if not low <= found <= high:
        raise ImportError(f'MMCV {version} was found, but {advice}')


def declare_torchvision_ops(extension: ModuleType) -> None:
    """Let a torchvision built for CUDA be imported beside a CPU-only torch.

    Breaks: the compiled operators of such a wheel cannot be loaded, so ``import torchvision`` ends
    in ``operator torchvision::nms does not exist`` (pytorch/vision#9085). With the two signatures
    declared, calling the operators still fails; classification never does.
    """
    import torch

    if extension._has_ops() or torch.version.cuda is not None or torch.version.hip is not None:
        return  # sound, or a mismatch that the user has to know about
    fragment = torch.library.Library('torchvision', 'FRAGMENT')
    for name in ('nms', 'qnms'):
        fragment.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
    _LIBRARIES.append(fragment)


def replace_quantization_tables(mmrazor: ModuleType) -> None:
    """Let ``mmrazor.models`` be imported with torch 2.

    Breaks: MMRazor builds its quantization tables at import with functions that torch 2.0 removed
    (open-mmlab/mmrazor#615). The module put in their place has the same names, which raise an
    ImportError with this reason when they are used.
    """
    name = 'mmrazor.structures.quantization.backend_config'
    source = Path(mmrazor.__path__[0], *name.split('.')[1:], 'common_operator_config_utils.py')
    if name in sys.modules or not source.is_file() or 'reverse2' not in source.read_text():
        return  # imported already, or a version that does not use what torch removed

    def refuse(*args: Any) -> NoReturn:
        raise ImportError(
            'quantization with MMRazor 1.0 needs torch<2; everything else works (see '
            'open-mmlab/mmrazor#615).'
        )

    tables: Any = ModuleType(name)
    tables.BackendConfigs = type('NoBackendConfigs', (dict,), {'__missing__': refuse})()
    for backend in ('academic', 'native', 'openvino', 'tensorrt'):
        for suffix in ('', '_dict'):
            setattr(tables, f'get_{backend}_backend_config{suffix}', refuse)
    sys.modules[name] = tables


def find_soft_cross_entropy(kd_soft_ce_loss: Any) -> None:
    """Let ``mmrazor.KDSoftCELoss`` compute.

    Breaks: it takes ``soft_cross_entropy`` from ``mmcls``, which was renamed to ``mmpretrain``, and
    so raises "`mmcls` is not installed properly". Upstream report: none known.
    """
    if not isinstance(kd_soft_ce_loss.soft_cross_entropy, type):
        return  # a function, not MMRazor's placeholder class

    def soft_cross_entropy(*args, **kwargs):
        from mmpretrain.models.losses import cross_entropy_loss

        return cross_entropy_loss.soft_cross_entropy(*args, **kwargs)

    kd_soft_ce_loss.soft_cross_entropy = soft_cross_entropy


def find_installed_packages(package_utils: ModuleType) -> None:
    """Look packages up with the standard library.

    Breaks: ``_base_ = 'mmpretrain::...'``, ``get_model`` and others use ``pkg_resources``, which
    setuptools 82 removed (open-mmlab/mmcv#3325 reports it for MMCV).
    """
    if (
        'pkg_resources' not in inspect.getsource(package_utils)
        or importlib.util.find_spec('pkg_resources') is not None
    ):
        return

    def get_installed_path(package: str) -> str:
        """Folder of an installed package, by module or distribution name."""
        spec = importlib.util.find_spec(package)
        if spec is None:
            owners = importlib.metadata.packages_distributions()
            module = next((name for name in owners if package in owners[name]), '')
            spec = importlib.util.find_spec(module) if module else None
        if spec is None or spec.origin is None:
            raise importlib.metadata.PackageNotFoundError(package)
        return osp.dirname(spec.origin)

    def is_installed(package: str) -> bool:
        """Whether a distribution or a module of that name is installed."""
        with suppress(importlib.metadata.PackageNotFoundError):
            return bool(get_installed_path(package))
        return False

    rebind('mmengine', package_utils.get_installed_path, get_installed_path)
    rebind('mmengine', package_utils.is_installed, is_installed)


def recognize_standard_library(config_utils: ModuleType) -> None:
    """Let configs import from the standard library, wherever Python is installed.

    Breaks: MMEngine 0.10.7 takes modules outside ``/usr/lib/python`` (pyenv, uv, conda) and frozen
    ones for third-party packages: a config that imports ``os`` before ``_base_`` is not loaded, and
    ``math.pi`` becomes the text ``'pi'``. Upstream report: none known; MMEngine 0.10.12 of OneDL
    fixes it.
    """
    is_builtin_module = config_utils._is_builtin_module
    if all(map(is_builtin_module, ('json', 'math', 'os'))):
        return

    @functools.wraps(is_builtin_module)
    def wrapper(module_name: str) -> bool:
        top_level = module_name.split('.')[0]
        return top_level in sys.stdlib_module_names or is_builtin_module(module_name)

    rebind('mmengine', is_builtin_module, wrapper)


def inherit_our_configs(config: ModuleType) -> None:
    """Let a config inherit one of this package: ``_base_ = 'crd_plugin::...'``.

    Breaks: MMEngine inherits only from the packages on a list of its own, and then sets ``_scope_``
    to the name of the package, so ``type='ImageNet'`` would not be looked up in the
    ``default_scope`` of the config, which is MMPretrain's.
    """
    from mmengine.config.utils import MODULE2PACKAGE

    MODULE2PACKAGE.setdefault('crd_plugin', 'crd_plugin')
    find_path = config.Config._get_cfg_path

    @functools.wraps(find_path)
    def _get_cfg_path(cfg_path, filename):
        path, scope = find_path(cfg_path, filename)
        return path, None if scope == 'crd_plugin' else scope

    config.Config._get_cfg_path = staticmethod(_get_cfg_path)
