"""Cases of crd_plugin.compat, run by test_compat.py in a process of their own.

``python compat_probes.py bare|early|late OUT`` runs them without the package, with the package
imported first, or with upstream imported first. Writes ``{case: what it returned, or the error}``
as JSON.
"""

import importlib
import importlib.util
import json
import os
import os.path as osp
import socket
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from unittest import mock

# --- what is broken upstream: named after the patch that repairs it ---------------------------- #


def load_config(text):
    """Load a config beside a ``base.py``."""
    from mmengine.config import Config

    folder = Path(os.environ['PROBE_DIR'])
    (folder / 'base.py').write_text('lr = 1\n')
    (folder / 'config.py').write_text(text)
    return Config.fromfile(folder / 'config.py')


def find_installed_packages():
    """Inherit from a config of another package."""
    cfg = load_config("_base_ = 'mmpretrain::_base_/default_runtime.py'\n")
    assert cfg.default_scope == 'mmpretrain'


def recognize_standard_library():
    """Load a config that imports from the standard library before it names its base."""
    cfg = load_config(
        'import os\nimport json.decoder\nfrom math import pi\nimport os.path as osp\n'
        "_base_ = ['base.py']\nangle = pi\nname = osp.basename(os.path.join('a', 'b'))\n"
    )
    assert (cfg.lr, cfg.angle, cfg.name) == (1, 3.141592653589793, 'b'), cfg


def inherit_our_configs():
    from mmengine.config.utils import MODULE2PACKAGE

    assert MODULE2PACKAGE['crd_plugin'] == 'crd_plugin'


def init_dist_on_cpu_pytorch():
    start_process_group('pytorch', RANK='0', LOCAL_RANK='0', WORLD_SIZE='1')


def init_dist_on_cpu_slurm():
    start_process_group('slurm', SLURM_PROCID='0', SLURM_NTASKS='1', SLURM_NODELIST='localhost')


def start_process_group(launcher, **variables):
    """Start and end a group of one process with the default backend."""
    import torch.distributed
    from mmengine.dist import init_dist

    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    with mock.patch.dict(os.environ, MASTER_ADDR='127.0.0.1', MASTER_PORT=port, **variables):
        init_dist(launcher)
        backend = torch.distributed.get_backend()
        torch.distributed.destroy_process_group()
        assert backend == 'gloo', backend


def wrap_model_on_cpu():
    """Wrap a model as Runner.wrap_model does."""
    import torch
    from mmengine.model import MMDistributedDataParallel

    torch.distributed.init_process_group('gloo', store=torch.distributed.HashStore(), **ONE_RANK)
    wrapped = MMDistributedDataParallel(module=torch.nn.Linear(2, 1), device_ids=[0])
    KEPT.append(wrapped)
    wrapped(torch.ones(1, 2)).sum().backward()
    assert wrapped.module.weight.grad.tolist() == [[1, 1]]


def scale_gradients_on_cpu():
    """One optimizer step in the default precision of a CPU."""
    import torch
    from mmengine.optim import AmpOptimWrapper

    model = torch.nn.Linear(4, 2)
    before = model.weight.detach().clone()
    wrapper = AmpOptimWrapper(optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    with wrapper.optim_context(model):
        output = model(torch.ones(3, 4))
    assert output.dtype == torch.bfloat16, output.dtype
    wrapper.update_params(output.float().sum() / 100)
    # Gradient 0.03 times learning rate 0.1, whatever the loss scale.
    change = before - model.weight
    assert torch.allclose(change, torch.full_like(change, 0.003), rtol=1e-2), change
    assert wrapper.state_dict()['loss_scaler'], 'the scaler is disabled'


def copy_parts_of_data_afresh():
    """Take two parts of a data set."""
    from mmengine.dataset import BaseDataset

    data = BaseDataset(lazy_init=True)
    data.data_list, data.serialize_data, data._fully_initialized = [{}, {}], False, True
    one, other = (data.get_subset([number]) for number in range(2))
    assert len(one) == len(other) == 1
    assert one.pipeline is not other.pipeline, 'parts share their pipeline'


def start_data_loading_late():
    """Build the iterator of an IterBasedTrainLoop, load a checkpoint, read."""
    from mmengine.runner.loops import _InfiniteDataloaderIterator

    class Loader:
        state = 'of the start'

        def __iter__(self):
            return iter([self.state])

    loader = Loader()
    iterator = _InfiniteDataloaderIterator(loader)
    loader.state = 'of the checkpoint'
    assert next(iterator) == 'of the checkpoint', 'started when it was built'


def load_log_history():
    """Resume a project of MMEngine alone."""
    runner = build_project(max_epochs=2)
    runner.train()
    resumed = build_project(max_epochs=3, load_from=f'{runner.work_dir}/epoch_2.pth', resume=True)
    resumed.train()
    assert resumed.epoch == 3
    assert len(resumed.message_hub.get_scalar('train/loss').data[0]) == 6


def replace_quantization_tables():
    importlib.import_module('mmrazor.structures')
    importlib.import_module('mmrazor.models')


def turn_off_inplace_layers():
    """Build an algorithm around a network with an in-place ReLU."""
    from mmengine.model import BaseModel
    from torch import nn

    class Net(BaseModel):
        def __init__(self):
            super().__init__()
            self.layer = nn.Sequential(nn.Linear(1, 1), nn.ReLU(inplace=True))

        def forward(self, inputs, data_samples=None, mode='tensor'):
            pass

    base = import_from_mmrazor('models.algorithms.base')
    net = base.BaseAlgorithm(Net()).architecture
    assert not net.layer[1].inplace, 'the ReLU works in place'


def find_default_weight_decay():
    """Decay the learning rate per layer with an optimizer as it is by default."""
    import torch
    from mmpretrain.engine.optimizers import LearningRateDecayOptimWrapperConstructor

    net = torch.nn.Linear(2, 1)
    net.get_layer_depth = lambda name: (0, 2)
    constructor = LearningRateDecayOptimWrapperConstructor(
        dict(optimizer=dict(type='AdamW', lr=1.0)), dict(layer_decay_rate=0.5)
    )
    groups = constructor(net).optimizer.param_groups
    assert [(group['lr'], group['weight_decay']) for group in groups] == [(0.5, 0.01)] * 2


def find_soft_cross_entropy():
    import torch

    loss = import_from_mmrazor('models.losses.kd_soft_ce_loss').KDSoftCELoss(tau=2.0)
    student, teacher = torch.randn(2, 3, 5)
    expected = -((teacher / 2).softmax(1) * (student / 2).log_softmax(1)).sum(1).mean() * 4
    assert torch.allclose(loss(student, teacher), expected)


def import_from_mmrazor(name):
    """Import a module of MMRazor, without its packages where these cannot be imported."""
    name = f'mmrazor.{name}'
    if 'mmrazor.models' not in sys.modules:
        root = importlib.util.find_spec('mmrazor').submodule_search_locations[0]
        for end in (2, 3):
            package = ModuleType('.'.join(name.split('.')[:end]))
            package.__path__ = [osp.join(root, *name.split('.')[1:end])]
            sys.modules[package.__name__] = package
    return importlib.import_module(name)


def declare_torchvision_ops():
    """Import torchvision as built for CUDA, whatever is installed."""
    import torch

    def load_library(path):
        raise OSError(f'{path}: libcudart.so: cannot open shared object file')

    torch.version.cuda = None
    torch.ops.load_library = load_library
    import torchvision

    assert torchvision.transforms


def repair_torchvision():
    """Declare the operators of torchvision by hand, and forget the half-imported package."""
    import torch

    for name in [name for name in sys.modules if name.split('.')[0] == 'torchvision']:
        del sys.modules[name]
    library = torch.library.Library('torchvision', 'FRAGMENT')
    for name in ('nms', 'qnms'):
        library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
    return library


# --- what works upstream and has to work with the package -------------------------------------- #


def build_project(**settings):
    """Runner of a project that knows MMEngine alone."""
    import torch
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    class Net(BaseModel):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def forward(self, inputs, target, mode='tensor'):
            return dict(loss=((self.layer(inputs) - target) ** 2).mean())

    data = [dict(inputs=torch.tensor([i, 1.0]), target=torch.tensor([2.0 * i])) for i in range(4)]
    sampler, collate = dict(type='DefaultSampler', shuffle=True), dict(type='default_collate')
    torch.manual_seed(0)
    return Runner(
        model=Net(),
        work_dir=tempfile.mkdtemp(dir=os.environ['PROBE_DIR']),
        train_dataloader=dict(dataset=data, batch_size=2, sampler=sampler, collate_fn=collate),
        train_cfg=dict(by_epoch=True, max_epochs=settings.pop('max_epochs')),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        randomness=dict(seed=0),
        experiment_name=f'probe_{os.urandom(4).hex()}',
        **settings,
    )


def project_runs():
    """Train and resume: numbers, logs and files."""
    import torch

    allowed = sorted(map(str, torch.serialization.get_safe_globals()))
    runner = build_project(max_epochs=2)
    runner.train()
    file = f'{runner.work_dir}/epoch_2.pth'
    # Without it, MMEngine alone cannot load what it has written.
    with mock.patch.dict(os.environ, TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD='1'):
        resumed = build_project(max_epochs=3, load_from=file, resume=True)
        resumed.train()
    logged = {
        name: [float(value) for value in buffer.data[0]]
        for name, buffer in resumed.message_hub.log_scalars.items()
        if 'time' not in name
    }
    # Names of runs are times.
    folder = Path(runner.work_dir)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*'))
    files = [file.replace(runner.timestamp, 'TIME') for file in files]
    assert sorted(map(str, torch.serialization.get_safe_globals())) == allowed
    assert {'train/loss', 'train/lr'} <= set(logged), set(logged)
    hooks = sorted(type(hook).__name__ for hook in runner.hooks)
    return [runner.model.layer.weight.tolist(), logged, files, hooks]


def allowed_globals_are_kept():
    """Load with a list of classes of another library, before and after MMEngine loads."""
    import torch
    from mmengine.runner import CheckpointLoader

    def get_nothing(*args):
        return 'theirs'

    class Getattr:
        def __reduce__(self):
            return getattr, ('a', 'upper')

    torch.serialization.add_safe_globals([(get_nothing, 'builtins.getattr'), complex])
    before = sorted(map(str, torch.serialization.get_safe_globals()))
    file = str(Path(os.environ['PROBE_DIR'], 'theirs.pth'))
    torch.save(Getattr(), file)
    for load in (torch.load, CheckpointLoader.load_checkpoint, torch.load):
        assert load(file, map_location='cpu') == 'theirs'
    assert sorted(map(str, torch.serialization.get_safe_globals())) == before
    torch.serialization.clear_safe_globals()


# What upstream says without the package. When one of these no longer fails, upstream has been
# repaired and the patch can go.
BROKEN = {
    declare_torchvision_ops: 'torchvision::nms does not exist',
    find_installed_packages: 'pkg_resources',
    recognize_standard_library: 'inheritance chain',
    inherit_our_configs: 'KeyError',
    init_dist_on_cpu_pytorch: 'Error',
    init_dist_on_cpu_slurm: 'ZeroDivisionError',
    scale_gradients_on_cpu: 'only available training on gpu',
    copy_parts_of_data_afresh: 'parts share their pipeline',
    start_data_loading_late: 'started when it was built',
    load_log_history: 'Weights only load failed',
    replace_quantization_tables: 'torch>=1.13',
    turn_off_inplace_layers: 'the ReLU works in place',
    find_default_weight_decay: 'weight_decay',
    find_soft_cross_entropy: 'PlaceHolder',
    wrap_model_on_cpu: 'device_ids',  # the last one, because it leaves a process group behind
}
SOUND = (project_runs, allowed_globals_are_kept)
ONE_RANK = dict(rank=0, world_size=1)
KEPT = []  # until the process ends


def main(mode, out):
    # As with setuptools 82, and where Python lies outside /usr/lib/python.
    sys.modules['pkg_resources'] = None
    config_utils = importlib.import_module('mmengine.config.utils')
    config_utils.PYTHON_ROOT_DIR = config_utils.SYSTEM_PYTHON_PREFIX = '/nowhere'
    if mode == 'late':
        for name in ('torch', 'mmengine.runner', 'mmengine.hooks'):
            importlib.import_module(name)
    if mode != 'bare':
        importlib.import_module('crd_plugin')
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ['PROBE_DIR'] = folder
        *broken, last = BROKEN
        for case in (*broken, *SOUND, last):
            try:
                results[case.__name__] = case() or 'ok'
            except Exception as error:
                results[case.__name__] = f'{type(error).__name__}: {error}'
            if mode == 'bare' and case is declare_torchvision_ops:
                KEPT.append(repair_torchvision())  # the others need it
    Path(out).write_text(json.dumps(results))
    # torch may deadlock when it frees a model of several processes on a CPU: the last reference to
    # gloo's process group waits, with Python's lock, for a thread that waits for this lock.
    os._exit(0)


if __name__ == '__main__':
    main(*sys.argv[1:])
