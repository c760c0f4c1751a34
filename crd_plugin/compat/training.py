"""Mends of training: loops, several processes and mixed precision."""

import functools
import os
from contextlib import contextmanager
from types import ModuleType
from typing import Callable, Iterator

from ._common import replace


def format_config_once(config: ModuleType) -> None:
    """Format the text of a config once, not for every checkpoint.

    What breaks: nothing, but ``Config.pretty_text`` runs yapf over the whole
    config for every checkpoint that is saved: 0.29 s for CRD on the digits
    (one core of an AMD EPYC), more than such a short epoch. No upstream
    report known.
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
            return init('gloo' if backend == 'nccl' else backend, *args, **kwargs)

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
    from mmengine.device import (
        is_cuda_available,
        is_mlu_available,
        is_musa_available,
        is_npu_available,
    )

    return any((is_cuda_available(), is_mlu_available(), is_npu_available(), is_musa_available()))


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
    def wrapper(device_type=None, dtype=None, enabled=True, cache_enabled=None):
        device = device_type or amp.get_device()
        if device == 'cpu' and dtype == torch.float16:
            context = torch.autocast(
                'cpu', dtype=dtype, enabled=enabled, cache_enabled=cache_enabled
            )
        else:
            context = autocast(device_type, dtype, enabled, cache_enabled)
        with context:
            yield

    replace('mmengine', autocast, wrapper)


def switch_inplace_off(algorithms: ModuleType) -> None:
    """Let MMRazor switch off layers that overwrite what is recorded.

    What breaks: ``BaseAlgorithm.set_module_inplace_false`` looks for an
    ``OrderedDict`` of submodules; that of torch >= 2 is a plain ``dict``, so
    it changes nothing, and an in-place ReLU overwrites the record of the
    layer before it. No upstream report known.
    Mend: look at ``modules()``.
    No longer needed: when MMRazor does.

    Args:
        algorithms (ModuleType): ``mmrazor.models.algorithms.base``.
    """

    def set_module_inplace_false(self, architecture, varstr):
        if not hasattr(architecture, 'modules'):
            return
        for module in architecture.modules():
            if hasattr(module, 'inplace'):
                module.inplace = False

    algorithms.BaseAlgorithm.set_module_inplace_false = set_module_inplace_false
