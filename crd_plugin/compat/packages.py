"""Mends of what is missing, too new, or looked up in vain."""

import functools
import importlib.metadata
import importlib.util
import os.path as osp
import re
import sys
import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import Any, List, Optional

from ._common import replace

MMCV_MINIMUM = '2.0.0'
MMCV_MAXIMUM = '2.1.0'

# torch.library forgets what a Library declared once the object is collected.
_LIBRARIES: List[Any] = []


def check_mmcv() -> None:
    """Say in one sentence that MMCV is missing or of a wrong version.

    What breaks: MMRazor 1.0 and MMPretrain 1.2 assert the MMCV version when
    they are imported; MMRazor is the stricter one (at most 2.1.0). ``mmcv``
    and ``mmcv-lite`` install the same package ``mmcv``; either will do.
    No longer needed: when MMRazor lifts its limit.

    Raises:
        ImportError: If MMCV is missing, too old or too new.
    """
    version = _mmcv_version()
    advice = (
        f'install one with `pip install mmcv-lite=={MMCV_MAXIMUM}` or, '
        'for its compiled operators, the full `mmcv` of that version, '
        'but never both, because they share the package `mmcv`'
    )
    if version is None:
        raise ImportError(
            f'MMCV is missing, but MMRazor needs {MMCV_MINIMUM} <= mmcv <= '
            f'{MMCV_MAXIMUM}; {advice}.'
        )
    if not _release(MMCV_MINIMUM) <= _release(version) <= _release(MMCV_MAXIMUM):
        raise ImportError(
            f'MMCV {version} was found, but MMRazor needs {MMCV_MINIMUM} <= '
            f'mmcv <= {MMCV_MAXIMUM}; uninstall it, then {advice}.'
        )


def _mmcv_version() -> Optional[str]:
    """Version of the installed MMCV, without importing it if possible."""
    if sys.modules.get('mmcv') is not None:
        return sys.modules['mmcv'].__version__
    spec = importlib.util.find_spec('mmcv')
    if spec is None or spec.origin is None:
        return None
    # Importing MMCV takes a second or two; its version is one line of text.
    version_file = osp.join(osp.dirname(spec.origin), 'version.py')
    if osp.isfile(version_file):
        with open(version_file, encoding='utf-8') as file:
            found = re.search(r"""__version__ = ['"]([^'"]+)""", file.read())
        if found:
            return found.group(1)
    return importlib.import_module('mmcv').__version__


def _release(version: str) -> tuple:
    """``'2.1.0rc1'`` as ``(2, 1, 0)``."""
    return tuple(int(part) for part in re.findall(r'\d+', version)[:3])


def quiet_mmcv() -> None:
    """Drop the warning of ``mmcv-lite`` about an operator that nobody uses.

    What breaks: nothing; ``mmcv.cnn`` warns at import that the operator
    ``MultiScaleDeformableAttention`` is absent from ``mmcv-lite``.
    No longer needed: with the full ``mmcv``.
    """
    warnings.filterwarnings(
        'ignore', message='Fail to import ``MultiScaleDeformableAttention``', category=UserWarning
    )


def declare_torchvision_ops() -> None:
    """Let a torchvision built for CUDA be imported beside a CPU-only torch.

    What breaks: the compiled part of such a wheel cannot be loaded, so the
    operators ``nms`` and ``qnms`` stay undeclared and ``import torchvision``
    ends in ``operator torchvision::nms does not exist``
    (pytorch/vision#9085).
    Mend: declare the two signatures. Calling them still fails; classification
    never does.
    No longer needed: when torchvision guards its meta registrations.
    """
    import torch

    if torch.version.cuda is not None or getattr(torch.version, 'hip', None):
        return  # a real mismatch, which the user has to know about
    spec = importlib.util.find_spec('torchvision')
    if spec is None or not spec.submodule_search_locations:
        return
    if hasattr(torch.ops.torchvision, 'nms'):
        return
    for suffix in ('_C.so', '_C.pyd'):
        library = osp.join(spec.submodule_search_locations[0], suffix)
        if osp.isfile(library):
            try:
                torch.ops.load_library(library)
            except OSError:
                break
    if hasattr(torch.ops.torchvision, 'nms'):
        return
    fragment = torch.library.Library('torchvision', 'FRAGMENT')
    for name in ('nms', 'qnms'):
        fragment.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
    _LIBRARIES.append(fragment)


def stand_in_for_quantization(module: ModuleType, error: ImportError) -> None:
    """Put a stand-in for MMRazor's quantisation tables.

    What breaks: ``mmrazor.structures.quantization.backend_config`` builds its
    tables at import from helpers which torch 2.0 removed, and takes
    ``mmrazor.models`` down with it (open-mmlab/mmrazor#615).
    Mend: the same names, which explain themselves on first use.
    No longer needed: when MMRazor supports torch 2; the original module is
    tried first.

    Args:
        module (ModuleType): The half-imported module to fill.
        error (ImportError): What the original raised.
    """
    message = (
        'Quantization of MMRazor 1.0 needs torch<2 '
        '(open-mmlab/mmrazor#615); everything else of MMRazor works '
        f'with the installed torch. MMRazor said: {error}'
    )

    def refuse(*args, **kwargs):
        raise ImportError(message) from error

    class NoBackendConfigs(Mapping):
        """The four backend names, none of which can be looked up."""

        _names = ('academic', 'native', 'tensorrt', 'openvino')

        def __getitem__(self, name):
            refuse()

        def __iter__(self):
            return iter(self._names)

        def __len__(self):
            return len(self._names)

    functions = [
        f'get_{name}_backend_config{suffix}'
        for name in ('native', 'academic', 'openvino', 'tensorrt')
        for suffix in ('', '_dict')
    ]
    module.BackendConfigs = NoBackendConfigs()
    for name in functions:
        setattr(module, name, refuse)
    module.__all__ = ['BackendConfigs', *functions]


def find_packages_without_setuptools(package_utils: ModuleType) -> None:
    """Look packages up with the standard library.

    What breaks: MMEngine uses ``pkg_resources``, which setuptools 82 removed,
    for ``_base_ = 'mmpretrain::...'``, ``get_model`` and the like
    (open-mmlab/mmcv#3325 reports the same of MMCV).
    Mend: the same three functions on :mod:`importlib.metadata`.
    No longer needed: when MMEngine drops ``pkg_resources``; it is used
    wherever it exists.

    Args:
        package_utils (ModuleType): ``mmengine.utils.package_utils``.
    """
    if importlib.util.find_spec('pkg_resources') is not None:
        return

    def package2module(package: str) -> str:
        """Top-level module of a distribution."""
        distribution = importlib.metadata.distribution(package)
        text = distribution.read_text('top_level.txt')
        if text:
            return text.split()[0]
        # Not every build tool writes that file.
        for file in distribution.files or ():
            if file.name == '__init__.py' and len(file.parts) == 2:
                return file.parts[0]
        raise ValueError(f'can not infer the module name of {package}')

    def get_installed_path(package: str) -> str:
        """Folder of an installed package, by module or distribution name."""
        spec = _find_top_level(package)
        if spec is None:
            spec = _find_top_level(package2module(package))
        if spec is None:
            raise importlib.metadata.PackageNotFoundError(package)
        if spec.origin is None:
            raise RuntimeError(f'{package} is a namespace package, which has no single path.')
        return osp.dirname(spec.origin)

    def is_installed(package: str) -> bool:
        """Whether a distribution or a module of that name is installed."""
        try:
            importlib.metadata.distribution(package)
            return True
        except importlib.metadata.PackageNotFoundError:
            spec = _find_top_level(package)
            return spec is not None and spec.origin is not None

    for function in (package2module, get_installed_path, is_installed):
        original = getattr(package_utils, function.__name__)
        replace('mmengine', original, function)


def name_our_configs(config_utils: ModuleType) -> None:
    """Let a config inherit ours: ``_base_ = 'crd_plugin::...'``.

    What breaks: MMEngine inherits only from packages on a list of its own,
    ``MODULE2PACKAGE``, which has no place for plugins.
    Mend: add this package.
    No longer needed: when MMEngine takes any installed package.

    Args:
        config_utils (ModuleType): ``mmengine.config.utils``.
    """
    config_utils.MODULE2PACKAGE.setdefault('crd_plugin', 'crd_plugin')


def leave_our_configs_their_scope(config: ModuleType) -> None:
    """Let an inherited config of ours mean what it says.

    What breaks: what is inherited from another package gets its name as
    ``_scope_``, so ``type='ImageNet'`` in a config of ours would be looked for
    among our classes rather than in the ``default_scope`` of the config,
    which is MMPretrain's.
    Mend: no scope for configs of this package.
    No longer needed: when MMEngine takes the ``default_scope`` of the file.

    Args:
        config (ModuleType): ``mmengine.config.config``.
    """
    find_path = config.Config._get_cfg_path

    @functools.wraps(find_path)
    def _get_cfg_path(cfg_path, filename):
        path, scope = find_path(cfg_path, filename)
        return path, None if scope == 'crd_plugin' else scope

    config.Config._get_cfg_path = staticmethod(_get_cfg_path)


def _find_top_level(name: str):
    """Spec of a top-level module, or None; a dash makes it no module."""
    return importlib.util.find_spec(name) if name.isidentifier() else None
