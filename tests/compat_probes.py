"""Tries what crd_plugin.compat mends; run by test_compat.py.

``python compat_probes.py bare|mended|late OUT``: without the mends, with them
applied before, or with them applied after the upstream packages were
imported. Writes ``{probe: 'ok' or the error}`` as JSON.
"""

import importlib
import importlib.util
import io
import json
import os
import os.path as osp
import sys
import tempfile
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace


def no_cuda_libraries(path):
    """Stands in for torch.ops.load_library beside a CPU-only torch."""
    raise OSError(f'{path}: libcudart.so: cannot open shared object file')


def torchvision_imports():
    """Import torchvision as built for CUDA, whatever is installed."""
    import torch

    torch.version.cuda = None
    torch.ops.load_library = no_cuda_libraries
    import torchvision

    assert torchvision.transforms


def mmrazor_models_import():
    """Import MMRazor's models."""
    importlib.import_module('mmrazor.structures')
    importlib.import_module('mmrazor.models')


def records_are_not_overwritten():
    """Build an algorithm around a network with an in-place ReLU."""
    from mmengine.model import BaseModel
    from torch import nn

    # Comes after `mmrazor_models_import`, which leaves it here if it worked.
    base = sys.modules.get('mmrazor.models.algorithms.base')
    if base is None:
        root = importlib.util.find_spec('mmrazor').submodule_search_locations[0]
        for name in ('mmrazor.models', 'mmrazor.models.algorithms'):
            sys.modules[name] = ModuleType(name)
            sys.modules[name].__path__ = [osp.join(root, *name.split('.')[1:])]
        base = importlib.import_module('mmrazor.models.algorithms.base')

    class Net(BaseModel):
        """Any network."""

        def __init__(self):
            super().__init__()
            self.layer = nn.Sequential(nn.Linear(1, 1), nn.ReLU(inplace=True))

        def forward(self, inputs, data_samples=None, mode='tensor'):
            """Nothing is asked of it."""

    net = base.BaseAlgorithm(Net()).architecture
    assert not net.layer[1].inplace, 'the ReLU works in place'


def config_is_formatted_once():
    """Ask twice for the text of a config, then change it."""
    from unittest import mock

    from mmengine.config import Config, config

    cfg = Config(dict(a=1))
    with mock.patch.object(config, 'FormatCode', wraps=config.FormatCode) as formatter:
        text = cfg.pretty_text
        assert cfg.pretty_text == text == 'a = 1\n'
        times = formatter.call_count
        assert times == 1, f'formatted {times} times'
        cfg.a = 2
        assert cfg.pretty_text == 'a = 2\n'


def losses_are_read_when_asked():
    """Log a number that pretends to be on a GPU."""
    import torch
    from mmengine.logging import MessageHub

    class OnGpu(torch.Tensor):
        """Counts how often it is read back."""

        reads = 0
        device = torch.device('cuda')

        def item(self):
            """Read it."""
            OnGpu.reads += 1
            return super().item()

    hub = MessageHub('on_gpu')
    for number in (1.5, 2.5):
        hub.update_scalar('loss', torch.tensor(number).as_subclass(OnGpu))
    assert OnGpu.reads == 0, f'read {OnGpu.reads} times before it was asked'
    assert hub.get_scalar('loss').data[0].tolist() == [1.5, 2.5]


def checkpoint_loads():
    """Save and load the log history that every checkpoint holds."""
    import numpy as np
    import torch
    from mmengine.logging import HistoryBuffer

    history = HistoryBuffer()
    history.update(1.5)
    file = io.BytesIO()
    torch.save(dict(history=history, score=np.float64(2)), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert loaded['history'].mean() == 1.5 and loaded['score'] == 2


def truncated_checkpoint_is_explained():
    """Load a file that is cut short."""
    import torch
    from mmengine.runner.checkpoint import load_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        path = osp.join(folder, 'cut.pth')
        torch.save(dict(state_dict=dict(w=torch.zeros(1000))), path)
        with open(path, 'r+b') as file:
            file.truncate(500)
        try:
            load_checkpoint(torch.nn.Linear(1, 1), path)
        except RuntimeError as error:
            assert 'cut.pth (500 bytes) is truncated' in str(error), error


def failed_write_keeps_the_file():
    """Fail while a file is written again."""
    from mmengine.fileio import LocalBackend

    with tempfile.TemporaryDirectory() as folder:
        path = osp.join(folder, 'a.pth')
        LocalBackend().put(b'good', path)
        try:
            LocalBackend().put('not bytes', path)
        except TypeError:
            pass
        with open(path, 'rb') as file:
            content = file.read()
        assert content == b'good', f'the file now holds {content!r}'
        assert os.listdir(folder) == ['a.pth'], os.listdir(folder)


def failed_save_keeps_the_last_checkpoint():
    """Fail while the second checkpoint of at most one is saved."""
    from mmengine.hooks import CheckpointHook
    from mmengine.logging import MessageHub

    with tempfile.TemporaryDirectory() as folder:

        def save(out_dir, filename, *args, **kwargs):
            if filename == 'epoch_2.pth':
                raise OSError('No space left on device')
            with open(osp.join(out_dir, filename), 'wb') as file:
                file.write(b'state')

        runner = SimpleNamespace(
            work_dir=folder,
            save_checkpoint=save,
            message_hub=MessageHub('probe'),
            logger=SimpleNamespace(info=lambda text: None),
        )
        hook = CheckpointHook(max_keep_ckpts=1)
        hook.before_train(runner)
        hook._save_checkpoint_with_step(runner, 1, {})
        try:
            hook._save_checkpoint_with_step(runner, 2, {})
        except OSError:
            pass
        assert osp.isfile(osp.join(folder, 'epoch_1.pth')), os.listdir(folder)


@contextmanager
def environment(**variables):
    """Set environment variables for a moment."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def start_process_group(launcher, port, **variables):
    """Start and end a group of one process with the default backend."""
    import torch.distributed
    from mmengine.dist import init_dist

    with environment(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), **variables):
        init_dist(launcher)
        backend = torch.distributed.get_backend()
        torch.distributed.destroy_process_group()
        assert backend == 'gloo', backend


def pytorch_launcher():
    """--launcher pytorch."""
    start_process_group('pytorch', 29711, RANK='0', LOCAL_RANK='0', WORLD_SIZE='1')


def slurm_launcher():
    """--launcher slurm."""
    start_process_group(
        'slurm', 29712, SLURM_PROCID='0', SLURM_NTASKS='1', SLURM_NODELIST='localhost'
    )


def mpi_launcher():
    """--launcher mpi."""
    start_process_group(
        'mpi',
        29713,
        OMPI_COMM_WORLD_LOCAL_RANK='0',
        OMPI_COMM_WORLD_SIZE='1',
        OMPI_COMM_WORLD_RANK='0',
    )


def model_is_wrapped():
    """Wrap a model as Runner.wrap_model does."""
    import torch
    from mmengine.model import MMDistributedDataParallel

    torch.distributed.init_process_group(
        'gloo', init_method='tcp://127.0.0.1:29714', rank=0, world_size=1
    )
    try:
        wrapped = MMDistributedDataParallel(module=torch.nn.Linear(2, 1), device_ids=[0])
        wrapped(torch.ones(1, 2)).sum().backward()
        assert wrapped.module.weight.grad.tolist() == [[1, 1]]
    finally:
        torch.distributed.destroy_process_group()


def amp_trains():
    """One step of --amp in bfloat16, the default of a CPU."""
    amp_step(None, 'bfloat16')


def half_amp_trains():
    """One step of --amp in float16."""
    amp_step('float16', 'float16')


def amp_step(dtype, expected):
    """One optimizer step in mixed precision."""
    import torch
    from mmengine.optim import AmpOptimWrapper

    model = torch.nn.Linear(4, 2)
    before = model.weight.detach().clone()
    wrapper = AmpOptimWrapper(optimizer=torch.optim.SGD(model.parameters(), lr=0.1), dtype=dtype)
    with wrapper.optim_context(model):
        output = model(torch.ones(3, 4))
    assert output.dtype == getattr(torch, expected), output.dtype
    # Scaled by 65536, a gradient of 1 would overflow float16.
    wrapper.update_params(output.float().sum() / 100)
    change = before - model.weight
    # Gradient 0.03 times learning rate 0.1, whatever the loss scale.
    expected_change = torch.full_like(change, 0.003)
    assert torch.allclose(change, expected_change, rtol=1e-2), change
    assert wrapper.state_dict()['loss_scaler'], 'the scaler is disabled'


def external_config_is_inherited():
    """Inherit from a config of another package."""
    from mmengine.config import Config

    with tempfile.TemporaryDirectory() as folder:
        path = osp.join(folder, 'config.py')
        with open(path, 'w') as file:
            file.write("_base_ = 'mmpretrain::_base_/default_runtime.py'\n")
        assert Config.fromfile(path).default_scope == 'mmpretrain'


PROBES = (
    external_config_is_inherited,
    failed_write_keeps_the_file,
    config_is_formatted_once,
    losses_are_read_when_asked,
    checkpoint_loads,
    truncated_checkpoint_is_explained,
    failed_save_keeps_the_last_checkpoint,
    pytorch_launcher,
    slurm_launcher,
    mpi_launcher,
    model_is_wrapped,
    amp_trains,
    half_amp_trains,
    torchvision_imports,
    mmrazor_models_import,
    records_are_not_overwritten,
)


def main(mode, out):
    """Run all probes."""
    # Also where setuptools is old enough to have it.
    sys.modules['pkg_resources'] = None
    if mode == 'late':
        for name in ('torch', 'mmengine.runner', 'mmengine.hooks'):
            importlib.import_module(name)
    if mode != 'bare':
        importlib.import_module('crd_plugin')
    results = {}
    for probe in PROBES:
        try:
            probe()
            results[probe.__name__] = 'ok'
        except Exception as error:
            results[probe.__name__] = f'{type(error).__name__}: {error}'
    with open(out, 'w') as file:
        json.dump(results, file)


if __name__ == '__main__':
    main(*sys.argv[1:])
