"""Mends for the installed versions of MMEngine, MMCV, MMRazor and torch.

This is the only module that touches the inside of other packages. A mend is a
small function that looks first and changes something only where it is really
broken. It runs when the package that it mends is imported, so importing
``crd_plugin`` costs next to nothing; what is already imported is mended at
once.
"""

import errno
import functools
import importlib.abc
import importlib.metadata
import importlib.util
import os
import os.path as osp
import pickle
import re
import sys
import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Callable, Dict, Iterator, List, Optional

MMCV_MINIMUM = '2.0.0'
MMCV_MAXIMUM = '2.1.0'

# torch.library forgets what a Library declared once the object is collected.
_LIBRARIES: List[Any] = []


class CheckpointError(RuntimeError):
    """A checkpoint file that is there but cannot be read."""


# --------------------------------------------------------------------------- #
# MMCV
# --------------------------------------------------------------------------- #


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
    advice = (f'install one with `pip install mmcv-lite=={MMCV_MAXIMUM}` or, '
              'for its compiled operators, the full `mmcv` of that version, '
              'but never both, because they share the package `mmcv`')
    if version is None:
        raise ImportError(
            f'MMCV is missing, but MMRazor needs {MMCV_MINIMUM} <= mmcv <= '
            f'{MMCV_MAXIMUM}; {advice}.')
    if not _release(MMCV_MINIMUM) <= _release(version) <= _release(
            MMCV_MAXIMUM):
        raise ImportError(
            f'MMCV {version} was found, but MMRazor needs {MMCV_MINIMUM} <= '
            f'mmcv <= {MMCV_MAXIMUM}; uninstall it, then {advice}.')


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
            found = re.search(r'''__version__ = ['"]([^'"]+)''', file.read())
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
        'ignore',
        message='Fail to import ``MultiScaleDeformableAttention``',
        category=UserWarning)


# --------------------------------------------------------------------------- #
# torchvision
# --------------------------------------------------------------------------- #


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
        fragment.define(f'{name}(Tensor dets, Tensor scores, '
                        'float iou_threshold) -> Tensor')
    _LIBRARIES.append(fragment)


# --------------------------------------------------------------------------- #
# MMRazor
# --------------------------------------------------------------------------- #


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
    message = ('Quantization of MMRazor 1.0 needs torch<2 '
               '(open-mmlab/mmrazor#615); everything else of MMRazor works '
               f'with the installed torch. MMRazor said: {error}')

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


# --------------------------------------------------------------------------- #
# Checkpoints
# --------------------------------------------------------------------------- #


def allow_checkpoint_globals(torch: ModuleType) -> None:
    """Let ``torch.load(weights_only=True)`` read MMEngine's checkpoints.

    What breaks: since torch 2.6 only tensors and plain containers are loaded
    by default, but MMEngine saves its log history as ``HistoryBuffer`` with
    NumPy arrays and scalars, so ``--resume`` fails
    (open-mmlab/mmengine#1655).
    Mend: allow exactly those classes, under the names of NumPy 1 and 2. None
    of them runs code of the file. ``HistoryBuffer`` also refers to its own
    four methods through ``getattr``; the real one would let a file reach
    anything, so it is stood in for by one that knows these four.
    No longer needed: when MMEngine registers them itself.

    Args:
        torch (ModuleType): The module ``torch``.
    """
    add = getattr(torch.serialization, 'add_safe_globals', None)
    if add is None:
        return  # torch<2.4 knows no list
    import numpy as np
    from mmengine.logging import HistoryBuffer
    allowed: List[Any] = [
        HistoryBuffer, np.ndarray, np.dtype,
        (_history_buffer_method, 'builtins.getattr')
    ]
    core = getattr(np, '_core', None) or np.core
    for name in ('_reconstruct', 'scalar'):
        function = getattr(core.multiarray, name)
        for package in ('numpy.core', 'numpy._core'):
            allowed.append((function, f'{package}.multiarray.{name}'))
    # One class a number type: numpy.dtypes.Float64DType and so on.
    for code in '?bBhHiIlLqQefd':
        allowed.append(type(np.dtype(code)))
    add(allowed)


def _history_buffer_method(owner: Any, name: str) -> Callable:
    """The only attributes a checkpoint may ask for.

    Args:
        owner: Object whose attribute the checkpoint wants.
        name (str): Name of the attribute.

    Returns:
        Callable: A statistic of MMEngine's ``HistoryBuffer``.

    Raises:
        pickle.UnpicklingError: If it is anything else.
    """
    from mmengine.logging import HistoryBuffer
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current',
                                                  'mean'):
        raise pickle.UnpicklingError(
            f'GLOBAL getattr({owner!r}, {name!r}) is not allowed')
    return getattr(HistoryBuffer, name)


def load_checkpoint_file(filename: str,
                         map_location: Any = 'cpu') -> Dict[str, Any]:
    """Load a local checkpoint safely and say clearly why it fails.

    Args:
        filename (str): The checkpoint file.
        map_location: See :func:`torch.load`. Defaults to ``'cpu'``.

    Returns:
        dict: The checkpoint.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is empty, cut short, no checkpoint at
            all, or holds more than tensors and plain data.
    """
    import torch
    path = osp.expanduser(os.fspath(filename))
    if not osp.isfile(path):
        kind = 'is a folder' if osp.isdir(path) else 'does not exist'
        raise FileNotFoundError(
            f'checkpoint {filename} {kind}; give the path of a .pth file, '
            'for example one named in `last_checkpoint` of a work dir.')
    size = osp.getsize(path)
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r'GLOBAL (\S+)', str(error))
        if found is None:
            raise _broken_checkpoint(filename, size, error) from error
        raise CheckpointError(
            f'checkpoint {filename} holds an object of class '
            f'{found.group(1)}, but only tensors, numbers and plain '
            'containers are loaded, because anything else may run code; '
            'save it again with its `state_dict` alone.') from error
    except Exception as error:
        # A damaged file makes the reader fail in any way whatever. These
        # three are not the file's fault; EINVAL is how the reader says that
        # an index points past the end.
        if (isinstance(error, MemoryError) or 'CUDA' in str(error) or
            (isinstance(error, OSError) and error.errno != errno.EINVAL)):
            raise
        raise _broken_checkpoint(filename, size, error) from error


def _broken_checkpoint(filename: str, size: int,
                       error: Exception) -> CheckpointError:
    """The error for a file whose content is no checkpoint."""
    # torch appends paragraphs of advice to what went wrong.
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    reason = reason.split('. ')[0]
    return CheckpointError(
        f'checkpoint {filename} ({size} bytes) is truncated or no checkpoint '
        f'of torch ({reason}); copy or download it again, or give an earlier '
        'one of the same work dir.')


def load_local_checkpoints_clearly(checkpoint: ModuleType) -> None:
    """Give MMEngine's loader for local files our checks and messages.

    What breaks: a truncated file ends in ``PytorchStreamReader failed reading
    zip archive`` with neither file name nor advice; before torch 2.6 any
    object in the file was loaded.
    Mend: the local loader calls :func:`load_checkpoint_file`, so ``--resume``,
    ``load_from``, ``init_cfg`` and ``teacher_ckpt`` all give one message.
    No longer needed: never, as long as the messages are wanted.

    Args:
        checkpoint (ModuleType): ``mmengine.runner.checkpoint``.
    """
    loader = checkpoint.load_from_local

    @functools.wraps(loader)
    def load_from_local(filename, map_location=None):
        return load_checkpoint_file(filename, map_location)

    checkpoint.load_from_local = load_from_local
    checkpoint.CheckpointLoader.register_scheme(
        prefixes='', loader=load_from_local, force=True)


def write_files_at_once(local_backend: ModuleType) -> None:
    """Keep a file whole when its writer is killed or the disk is full.

    What breaks: MMEngine writes a checkpoint into its final place, so a run
    killed meanwhile leaves a truncated file under a good name. No upstream
    report known.
    Mend: write beside it, then rename.
    No longer needed: when ``LocalBackend.put`` does so.

    Args:
        local_backend (ModuleType): ``mmengine.fileio.backends.local_backend``.
    """
    backend = local_backend.LocalBackend
    put = backend.put

    @functools.wraps(put)
    def put_at_once(self, obj, filepath):
        target = osp.realpath(filepath)
        if osp.exists(target) and not osp.isfile(target):
            return put(self, obj, filepath)  # a device or a pipe
        partial = f'{target}.{os.getpid()}.part'
        try:
            put(self, obj, partial)
            os.replace(partial, target)
        finally:
            if osp.exists(partial):
                os.remove(partial)

    backend.put = put_at_once


def save_before_removing(checkpoint_hook: ModuleType) -> None:
    """Keep the earlier checkpoint until the new one is written.

    What breaks: with ``max_keep_ckpts`` or ``save_best`` the hook removes the
    outdated checkpoint first, so a run that dies while it saves, or finds
    the disk full, may be left with none. No upstream report known.
    Mend: put the removals off until the method has returned.
    No longer needed: when ``CheckpointHook`` saves first.

    Args:
        checkpoint_hook (ModuleType): ``mmengine.hooks.checkpoint_hook``.
    """
    hook = checkpoint_hook.CheckpointHook
    for name in ('_save_checkpoint_with_step', '_save_best_checkpoint'):
        setattr(hook, name, _removing_last(getattr(hook, name)))


class _RemoveLater:
    """A file backend that only notes down what is to be removed."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.removals: List[tuple] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        """Note down a file."""
        self.removals.append((self._backend.remove, path))

    def rmtree(self, path: str) -> None:
        """Note down a folder."""
        self.removals.append((self._backend.rmtree, path))


def _removing_last(save: Callable) -> Callable:
    """Wrap a method of ``CheckpointHook``."""

    @functools.wraps(save)
    def wrapper(self, *args, **kwargs):
        backend = self.file_backend
        self.file_backend = later = _RemoveLater(backend)
        try:
            save(self, *args, **kwargs)
        finally:
            self.file_backend = backend
        # What has just been written again under the same name stays.
        current = {
            self.last_ckpt,
            getattr(self, 'best_ckpt_path', None),
            *getattr(self, 'best_ckpt_path_dict', {}).values()
        }
        for remove, path in later.removals:
            if path not in current:
                remove(path)

    return wrapper


def format_config_once(config: ModuleType) -> None:
    """Format the text of a config once, not for every checkpoint.

    What breaks: nothing, but ``Config.pretty_text`` runs yapf over the whole
    config, about two seconds, for every checkpoint that is saved; short runs
    spent most of their time there. No upstream report known.
    Mend: keep the last text until the config changes.
    No longer needed: when ``Runner.save_checkpoint`` keeps the text.

    Args:
        config (ModuleType): ``mmengine.config.config``.
    """
    pretty_text = config.Config.pretty_text.fget
    last = [None, None]

    def format_once(self):
        content = repr(self._cfg_dict)
        if last[0] != content:
            last[:] = content, pretty_text(self)
        return last[1]

    config.Config.pretty_text = property(format_once, doc=pretty_text.__doc__)


# --------------------------------------------------------------------------- #
# Loops
# --------------------------------------------------------------------------- #


def read_data_when_training_starts(loops: ModuleType) -> None:
    """Let hooks and a checkpoint seed the data of an ``IterBasedTrainLoop``.

    What breaks: the loop starts its data workers, which draw from the sampler
    at once, when it is built: before any hook has run and before a checkpoint
    is loaded, so a resumed run cannot repeat the order of samples. No
    upstream report known.
    Mend: make the iterator when the first batch is asked for.
    No longer needed: when the loop makes its iterator in ``run``.

    Args:
        loops (ModuleType): ``mmengine.runner.loops``.
    """
    iterator = loops._InfiniteDataloaderIterator

    def __init__(self, dataloader):
        self._dataloader = dataloader
        self._epoch = 0

    def __getattr__(self, name):
        if name != '_iterator':
            raise AttributeError(name)
        self._iterator = iter(self._dataloader)
        return self._iterator

    iterator.__init__ = __init__
    iterator.__getattr__ = __getattr__


# --------------------------------------------------------------------------- #
# Several processes without a GPU
# --------------------------------------------------------------------------- #


def init_dist_on_cpu(dist_utils: ModuleType) -> None:
    """Let ``--launcher pytorch|slurm|mpi`` run on a machine without a GPU.

    What breaks: MMEngine calls ``torch.cuda.set_device`` first and starts
    the backend of the config, ``nccl`` by default; neither works on CPU. No
    upstream report known.
    Mend: without an accelerator the call is left out and ``nccl`` becomes
    ``gloo``. On GPUs everything stays as it is.
    No longer needed: when ``init_dist`` asks for the device first.

    Args:
        dist_utils (ModuleType): ``mmengine.dist.utils``.
    """
    for name in ('_init_dist_pytorch', '_init_dist_slurm', '_init_dist_mpi'):
        setattr(dist_utils, name, _on_cpu(getattr(dist_utils, name)))


def _on_cpu(init: Callable) -> Callable:
    """Wrap one of MMEngine's start functions."""

    @functools.wraps(init)
    def wrapper(backend, *args, **kwargs):
        if _has_accelerator():
            return init(backend, *args, **kwargs)
        # Without it, MMEngine divides by the number of GPUs.
        if 'SLURM_PROCID' in os.environ:
            os.environ.setdefault('SLURM_LOCALID', '0')
        with _no_set_device():
            return init('gloo' if backend == 'nccl' else backend, *args,
                        **kwargs)

    return wrapper


@contextmanager
def _no_set_device() -> Iterator[None]:
    """Make ``torch.cuda.set_device`` do nothing for a moment."""
    import torch
    set_device = torch.cuda.set_device
    torch.cuda.set_device = lambda device: None
    try:
        yield
    finally:
        torch.cuda.set_device = set_device


def _has_accelerator() -> bool:
    """Whether MMEngine would put a model on anything but the CPU."""
    from mmengine.device import (is_cuda_available, is_mlu_available,
                                 is_musa_available, is_npu_available)
    return any((is_cuda_available(), is_mlu_available(), is_npu_available(),
                is_musa_available()))


def wrap_model_on_cpu(wrappers: ModuleType) -> None:
    """Wrap a model on CPU for several processes.

    What breaks: the runner passes ``device_ids=[LOCAL_RANK]`` whatever the
    device, which ``DistributedDataParallel`` refuses for a model on CPU. No
    upstream report known.
    Mend: drop the argument for such a model.
    No longer needed: when ``Runner.wrap_model`` asks for the device first.

    Args:
        wrappers (ModuleType): ``mmengine.model.wrappers.distributed``.
    """
    wrapper = wrappers.MMDistributedDataParallel
    init = wrapper.__init__

    @functools.wraps(init)
    def __init__(self, module, *args, **kwargs):
        if all(p.device.type == 'cpu' for p in module.parameters()):
            kwargs.pop('device_ids', None)
            kwargs.pop('output_device', None)
        init(self, module, *args, **kwargs)

    wrapper.__init__ = __init__


# --------------------------------------------------------------------------- #
# Mixed precision
# --------------------------------------------------------------------------- #


def amp_on_cpu(amp_wrapper: ModuleType) -> None:
    """Let ``AmpOptimWrapper``, and with it ``--amp``, train on CPU.

    What breaks: the wrapper asserts that there is a GPU, although torch casts
    on CPU too, and ``torch.cuda.amp.GradScaler`` disables itself without CUDA
    (open-mmlab/mmpretrain#1556).
    Mend: without an accelerator, take the CPU for a valid device and use its
    scaler. On GPUs everything stays as it is.
    No longer needed: when MMEngine uses ``torch.amp.GradScaler``.

    Args:
        amp_wrapper (ModuleType):
            ``mmengine.optim.optimizer.amp_optimizer_wrapper``.
    """
    import torch
    if _has_accelerator() or not hasattr(torch.amp, 'GradScaler'):
        return  # the latter means torch<2.3
    amp_wrapper.GradScaler = functools.partial(torch.amp.GradScaler, 'cpu')
    # The wrapper uses the name for nothing but its assertion.
    amp_wrapper.is_cuda_available = lambda: True


def autocast_half_on_cpu(amp: ModuleType) -> None:
    """Let ``autocast`` compute in float16 on CPU.

    What breaks: MMEngine asserts that CPU autocast is bfloat16 only, which
    torch gave up in 2.3.
    Mend: hand float16 on CPU straight to ``torch.autocast``.
    No longer needed: when MMEngine drops the assertion.

    Args:
        amp (ModuleType): ``mmengine.runner.amp``.
    """
    import torch
    autocast = amp.autocast

    @functools.wraps(autocast)
    @contextmanager
    def wrapper(device_type=None,
                dtype=None,
                enabled=True,
                cache_enabled=None):
        device = device_type or amp.get_device()
        if device == 'cpu' and dtype == torch.float16:
            context = torch.autocast(
                'cpu',
                dtype=dtype,
                enabled=enabled,
                cache_enabled=cache_enabled)
        else:
            context = autocast(device_type, dtype, enabled, cache_enabled)
        with context:
            yield

    _replace('mmengine', autocast, wrapper)


# --------------------------------------------------------------------------- #
# Packages
# --------------------------------------------------------------------------- #


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
            raise RuntimeError(
                f'{package} is a namespace package, which has no single path.')
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
        _replace('mmengine', original, function)


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


def _find_top_level(name: str):
    """Spec of a top-level module, or None; a dash makes it no module."""
    return importlib.util.find_spec(name) if name.isidentifier() else None


def _replace(package: str, old: Any, new: Any) -> None:
    """Rebind every module-level name of a package that refers to ``old``."""
    for name, module in list(sys.modules.items()):
        if name.split('.')[0] != package or module is None:
            continue
        for attribute, value in list(vars(module).items()):
            if value is old:
                setattr(module, attribute, new)


# --------------------------------------------------------------------------- #
# When a mend runs
# --------------------------------------------------------------------------- #

# Called before a module's code runs.
_BEFORE: Dict[str, Callable[[], None]] = {
    'torchvision': declare_torchvision_ops,
}
# Called with the module, once its code has run.
_AFTER: Dict[str, Callable[[ModuleType], None]] = {
    'torch': allow_checkpoint_globals,
    'mmengine.config.config': format_config_once,
    'mmengine.utils.package_utils': find_packages_without_setuptools,
    'mmengine.config.utils': name_our_configs,
    'mmengine.dist.utils': init_dist_on_cpu,
    'mmengine.model.wrappers.distributed': wrap_model_on_cpu,
    'mmengine.optim.optimizer.amp_optimizer_wrapper': amp_on_cpu,
    'mmengine.runner.amp': autocast_half_on_cpu,
    'mmengine.runner.checkpoint': load_local_checkpoints_clearly,
    'mmengine.runner.loops': read_data_when_training_starts,
    'mmengine.fileio.backends.local_backend': write_files_at_once,
    'mmengine.hooks.checkpoint_hook': save_before_removing,
}
# Called with the module and the ImportError that its code raised.
_RESCUE: Dict[str, Callable[[ModuleType, ImportError], None]] = {
    'mmrazor.structures.quantization.backend_config':
    stand_in_for_quantization,
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
