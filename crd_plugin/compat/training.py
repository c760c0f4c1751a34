"""Patches of training: data, loops, several processes and mixed precision."""

import functools
import inspect
import os
from types import ModuleType
from typing import Any

from .packages import rebind


def copy_parts_of_data_afresh(base_dataset: ModuleType) -> None:
    """Let a part of a data set, as a fold is one, be a copy of that data set alone.

    Breaks: ``BaseDataset.get_subset`` copies with one memory for all copies of a process, which
    finds an object by its address. So parts share their pipelines, and when a data set is gone and
    its address used again, the new object is replaced by the old data set. The patch gives each
    copy a memory of its own. Upstream report: none known.
    """
    dataset = base_dataset.BaseDataset
    copy_without = dataset._copy_without_annotation
    if not isinstance(inspect.signature(copy_without).parameters['memo'].default, dict):
        return

    @functools.wraps(copy_without)
    def _copy_without_annotation(self, memo=None):
        return copy_without(self, {} if memo is None else memo)

    dataset._copy_without_annotation = _copy_without_annotation


def start_data_loading_late(loops: ModuleType) -> None:
    """Let hooks and a checkpoint seed the data of an ``IterBasedTrainLoop``.

    Breaks: the loop starts its data workers, which draw from the sampler at once, when it is built:
    before a checkpoint is loaded, so a resumed run cannot repeat the order of samples. With the
    patch, the first batch starts them. Upstream report: none known; MMEngine 0.10.12 of OneDL does
    the same.
    """
    iterator = loops._InfiniteDataloaderIterator
    if 'iter(self' not in inspect.getsource(iterator.__init__):
        return

    def __init__(self, dataloader):
        self._dataloader = dataloader
        self._epoch = 0

    started = functools.cached_property(lambda self: iter(self._dataloader))
    started.__set_name__(iterator, '_iterator')
    iterator.__init__, iterator._iterator = __init__, started


def init_dist_on_cpu(dist_utils: ModuleType) -> None:
    """Let ``--launcher pytorch|slurm|mpi`` run on a machine without a GPU.

    Breaks: MMEngine calls ``torch.cuda.set_device`` first and starts the backend of the config,
    ``nccl`` by default; neither works on a CPU. Without an accelerator, the patch skips the call
    and starts ``gloo`` instead of ``nccl``. Upstream report: none known.
    """
    init_dist = dist_utils.init_dist

    @functools.wraps(init_dist)
    def wrapper(launcher, backend='nccl', *args, **kwargs):
        import torch

        if _has_accelerator():
            return init_dist(launcher, backend, *args, **kwargs)
        if launcher == 'slurm':  # else MMEngine divides by the number of GPUs
            os.environ.setdefault('SLURM_LOCALID', '0')
        set_device = torch.cuda.set_device
        torch.cuda.set_device = lambda device: None
        try:
            return init_dist(launcher, 'gloo' if backend == 'nccl' else backend, *args, **kwargs)
        finally:
            torch.cuda.set_device = set_device

    rebind('mmengine', init_dist, wrapper)


def _has_accelerator() -> bool:
    """Whether MMEngine would put a model on anything but the CPU."""
    from mmengine import device

    kinds = ('cuda', 'mlu', 'npu', 'musa')
    return any(getattr(device, f'is_{kind}_available')() for kind in kinds)


def wrap_model_on_cpu(wrappers: ModuleType) -> None:
    """Let a model on a CPU be trained by several processes.

    Breaks: the runner passes ``device_ids=[LOCAL_RANK]`` whatever the device, which torch refuses
    for a model on a CPU; the patch drops it there. Upstream report: none known.
    """
    wrapper = wrappers.MMDistributedDataParallel
    init = wrapper.__init__

    @functools.wraps(init)
    def __init__(self, module, *args, **kwargs):
        if all(parameter.device.type == 'cpu' for parameter in module.parameters()):
            kwargs.pop('device_ids', None)
            kwargs.pop('output_device', None)
        init(self, module, *args, **kwargs)

    wrapper.__init__ = __init__


def scale_gradients_on_cpu(amp_wrapper: Any) -> None:
    """Let ``AmpOptimWrapper``, and with it ``--amp``, train on a CPU.

    Breaks: the wrapper asserts that there is a GPU, although torch casts on CPUs too, and the
    scaler of ``torch.cuda`` is disabled without one (open-mmlab/mmpretrain#1556).
    """
    import torch

    if _has_accelerator():
        return
    try:
        amp_wrapper.AmpOptimWrapper(optimizer=torch.optim.SGD([torch.zeros(1)], lr=1.0))
    except AssertionError:
        amp_wrapper.GradScaler = functools.partial(torch.amp.GradScaler, 'cpu')
        # The module uses this name in its assertion only.
        amp_wrapper.is_cuda_available = lambda: True


def turn_off_inplace_layers(algorithms: ModuleType) -> None:
    """Let MMRazor turn off layers that overwrite what is recorded.

    Breaks: ``BaseAlgorithm.set_module_inplace_false`` looks for an ``OrderedDict`` of submodules,
    which is a plain ``dict`` since torch 2. So it changes nothing, and an in-place ReLU overwrites
    the recorded output of the layer before it. Upstream report: none known.
    """
    from torch import nn

    if 'OrderedDict' not in inspect.getsource(algorithms.BaseAlgorithm.set_module_inplace_false):
        return

    def set_module_inplace_false(self, architecture, varstr):
        for module in architecture.modules() if isinstance(architecture, nn.Module) else ():
            if hasattr(module, 'inplace'):
                module.inplace = False

    algorithms.BaseAlgorithm.set_module_inplace_false = set_module_inplace_false


def find_default_weight_decay(constructors: ModuleType) -> None:
    """Let ``LearningRateDecayOptimWrapperConstructor`` take an optimizer without ``weight_decay``.

    Breaks: the constructor logs the weight decay of each parameter, and so raises a KeyError where
    the config leaves it to the optimizer. The patch looks up the optimizer's default. Upstream
    report: none known.
    """
    from mmengine.registry import OPTIMIZERS

    constructor = constructors.LearningRateDecayOptimWrapperConstructor
    call = constructor.__call__

    @functools.wraps(call)
    def __call__(self, model):
        if self.base_wd is None and isinstance(self.optimizer_cfg.get('type'), str):
            optimizer = OPTIMIZERS.get(self.optimizer_cfg['type'])
            default = optimizer and inspect.signature(optimizer).parameters.get('weight_decay')
            if default is not None and default.default is not default.empty:
                self.base_wd = default.default
        return call(self, model)

    constructor.__call__ = __call__
