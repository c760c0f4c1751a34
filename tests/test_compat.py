"""Every mend works, is still needed, and leaves a sound upstream alone."""

import io
import json
import os
import pickle
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub

from crd_plugin import compat
from crd_plugin.compat import checkpoints, logs, training

ROOT = Path(__file__).resolve().parent.parent

# What upstream says without the mend. When one of these no longer fails,
# upstream has been repaired and the mend can go.
BROKEN = dict(
    external_config_is_inherited='pkg_resources',
    failed_write_keeps_the_file="now holds b''",
    config_is_formatted_once='formatted 2 times',
    losses_are_read_when_asked='read 2 times before it was asked',
    checkpoint_loads='Weights only load failed',
    truncated_checkpoint_is_explained='PytorchStreamReader failed',
    failed_save_keeps_the_last_checkpoint='last_checkpoint',
    pytorch_launcher='.',
    slurm_launcher='ZeroDivisionError',
    mpi_launcher='.',
    model_is_wrapped='device_ids',
    amp_trains='only available training on gpu',
    half_amp_trains='only available training on gpu',
    torchvision_imports='torchvision::nms does not exist',
    records_are_not_overwritten='the ReLU works in place',
    mmrazor_models_import='torch>=1.13',
)


def run_python(code, *paths, check=True):
    """Run code in a fresh interpreter without a GPU."""
    env = dict(
        os.environ, CUDA_VISIBLE_DEVICES='', PYTHONPATH=os.pathsep.join(map(str, [*paths, ROOT]))
    )
    result = subprocess.run(
        [sys.executable, '-c', textwrap.dedent(code)], env=env, capture_output=True, text=True
    )
    if check:
        assert result.returncode == 0, result.stderr
    return result


@pytest.fixture(scope='module', params=['bare', 'mended', 'late'])
def probed(request, tmp_path_factory):
    """Results of all probes without, with, and with belated mends."""
    out = tmp_path_factory.mktemp('probes') / 'results.json'
    env = dict(os.environ, CUDA_VISIBLE_DEVICES='', PYTHONPATH=str(ROOT))
    script = Path(__file__).with_name('compat_probes.py')
    subprocess.run(
        [sys.executable, script, request.param, out], env=env, check=True, capture_output=True
    )
    return request.param, json.loads(out.read_text())


@pytest.mark.parametrize('name', BROKEN)
def test_mend(probed, name):
    mode, results = probed
    if mode == 'bare':
        assert results[name] != 'ok', f'upstream no longer fails at {name}: remove the mend'
        assert BROKEN[name] in results[name] + '.'
    else:
        assert results[name] == 'ok'


def test_every_probe_is_checked(probed):
    assert set(probed[1]) == set(BROKEN)


# --- importing ------------------------------------------------------------- #


def test_import_is_light_and_initialises_nothing():
    run_python("""
        import sys
        import mmengine.registry
        before = set(sys.modules)
        import crd_plugin
        new = {name.split('.')[0] for name in set(sys.modules) - before}
        allowed = {'crd_plugin'} | set(sys.stdlib_module_names)
        assert new <= allowed, new - allowed
        for name in ('torch', 'mmcv', 'mmpretrain', 'mmrazor'):
            assert name not in sys.modules, name
        """)


def test_import_of_everything_needs_no_network_and_no_cuda():
    run_python("""
        import socket
        def refuse(*args):
            raise AssertionError(f'network: {args}')
        socket.socket.connect = refuse
        import crd_plugin, mmpretrain
        import mmrazor.datasets, mmrazor.engine, mmrazor.models
        import torch
        assert not torch.cuda.is_initialized()
        """)


def test_lite_warning_is_dropped():
    result = run_python('import crd_plugin, mmcv.cnn.bricks.transformer')
    assert 'MultiScaleDeformableAttention' not in result.stderr


def test_applying_twice_changes_nothing():
    from mmengine.model import MMDistributedDataParallel

    wrapped = MMDistributedDataParallel.__init__
    finders = list(sys.meta_path)
    filters = len(__import__('warnings').filters)
    compat.apply()
    assert sys.meta_path == finders
    assert MMDistributedDataParallel.__init__ is wrapped
    assert len(__import__('warnings').filters) <= filters + 1


def test_import_errors_still_reach_the_user(tmp_path):
    package = tmp_path / 'torchvision'
    package.mkdir()
    (package / '__init__.py').write_text('import no_such_module_anywhere')
    result = run_python('import crd_plugin, torchvision', tmp_path, check=False)
    assert 'no_such_module_anywhere' in result.stderr


# --- MMCV ------------------------------------------------------------------ #


def fake_mmcv(folder, version, own_file):
    """A package `mmcv` of some version."""
    package = folder / 'mmcv'
    package.mkdir()
    line = f"__version__ = '{version}'\n"
    if own_file:
        (package / 'version.py').write_text(line)
        line = 'from .version import __version__\n'
    (package / '__init__.py').write_text(line)


@pytest.mark.parametrize('own_file', [True, False])
@pytest.mark.parametrize('version', ['1.7.2', '2.1.1', '2.2.0'])
def test_wrong_mmcv_is_told_in_one_sentence(tmp_path, version, own_file):
    fake_mmcv(tmp_path, version, own_file)
    result = run_python('import crd_plugin', tmp_path, check=False)
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(f'ImportError: MMCV {version} was found, but ')
    assert 'pip install mmcv-lite==2.1.0' in last


@pytest.mark.parametrize('version', ['2.0.0', '2.0.1', '2.1.0'])
def test_any_fitting_mmcv_is_kept(tmp_path, version):
    fake_mmcv(tmp_path, version, own_file=True)
    result = run_python('import crd_plugin, mmcv; print(mmcv.__version__)', tmp_path)
    assert result.stdout.strip() == version


def test_missing_mmcv_is_told_in_one_sentence():
    result = run_python('import sys; sys.modules["mmcv"] = None; import crd_plugin', check=False)
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith('ImportError: MMCV is missing, but MMRazor needs')


# --- a sound upstream ------------------------------------------------------ #


def test_working_torchvision_is_untouched():
    run_python("""
        import torch
        from crd_plugin.compat import packages
        def load(path):
            library = torch.library.Library('torchvision', 'FRAGMENT')
            library.define('nms(Tensor d, Tensor s, float t) -> Tensor')
            kept.append(library)
        kept, torch.ops.load_library, torch.version.cuda = [], load, None
        packages.declare_torchvision_ops()
        assert kept and not packages._LIBRARIES
        """)


def test_mismatched_cuda_torchvision_is_left_to_fail():
    run_python("""
        import torch
        from crd_plugin.compat import packages
        torch.version.cuda = '13.0'
        packages.declare_torchvision_ops()
        assert not packages._LIBRARIES
        assert not hasattr(torch.ops.torchvision, 'nms')
        """)


def test_working_quantization_is_untouched(tmp_path):
    package = tmp_path
    for name in ('mmrazor', 'structures', 'quantization', 'backend_config'):
        package = package / name
        package.mkdir()
        (package / '__init__.py').write_text("BackendConfigs = dict(a='real')")
    run_python(
        """
        import crd_plugin
        from mmrazor.structures.quantization import backend_config
        assert backend_config.BackendConfigs == dict(a='real')
        assert not hasattr(backend_config, 'get_native_backend_config')
        """,
        tmp_path,
    )


def test_pkg_resources_is_used_where_it_exists(tmp_path):
    (tmp_path / 'pkg_resources.py').write_text('')
    run_python(
        """
        import crd_plugin
        from mmengine.utils import get_installed_path
        assert get_installed_path.__module__ == 'mmengine.utils.package_utils'
        assert not get_installed_path.__qualname__.startswith('find_')
        """,
        tmp_path,
    )


def test_gpus_keep_backend_and_device_ids(monkeypatch):
    called = []
    module = type(sys)('dist_utils')
    for name in ('_init_dist_pytorch', '_init_dist_slurm', '_init_dist_mpi'):
        setattr(module, name, lambda backend, **kw: called.append(backend))
    training.init_dist_on_cpu(module)
    monkeypatch.setattr(training, '_has_accelerator', lambda: True)
    module._init_dist_pytorch('nccl')
    monkeypatch.setattr(training, '_has_accelerator', lambda: False)
    module._init_dist_pytorch('nccl')
    module._init_dist_slurm('mpi')
    assert called == ['nccl', 'gloo', 'mpi']


def test_gpus_keep_their_scaler(monkeypatch):
    module = type(sys)('amp_optimizer_wrapper')
    monkeypatch.setattr(training, '_has_accelerator', lambda: True)
    training.amp_on_cpu(module)
    assert not hasattr(module, 'GradScaler')


def test_model_on_gpu_keeps_device_ids():
    given = {}

    class Wrapper:
        def __init__(self, module, **kwargs):
            given.update(kwargs)

    wrappers = type(sys)('distributed')
    wrappers.MMDistributedDataParallel = Wrapper
    training.wrap_model_on_cpu(wrappers)
    Wrapper(torch.nn.Linear(1, 1, device='meta'), device_ids=[3])
    assert given == dict(device_ids=[3])


# --- quantization ---------------------------------------------------------- #


def test_quantization_explains_itself():
    from mmrazor.structures.quantization import BackendConfigs, get_native_backend_config

    assert sorted(BackendConfigs) == ['academic', 'native', 'openvino', 'tensorrt']
    with pytest.raises(ImportError, match='needs torch<2'):
        BackendConfigs['native']
    with pytest.raises(ImportError, match='mmrazor#615'):
        get_native_backend_config()


# --- packages -------------------------------------------------------------- #


def test_packages_are_found():
    # Always in a setuptools without pkg_resources.
    run_python("""
        import sys
        sys.modules['pkg_resources'] = None
        import crd_plugin
        from importlib.metadata import PackageNotFoundError
        from mmengine.utils import get_installed_path, is_installed
        from mmengine.config.config import get_installed_path as in_config
        import mmengine
        assert get_installed_path is in_config
        assert get_installed_path('mmengine') == mmengine.__path__[0]
        assert is_installed('mmengine') and is_installed('ordered-set')
        assert get_installed_path('ordered-set').endswith('ordered_set')
        assert not is_installed('no_such_package')
        try:
            get_installed_path('no_such_package')
        except PackageNotFoundError:
            pass
        else:
            raise AssertionError('a missing package was found')
        """)


def test_our_configs_can_be_inherited():
    run_python("""
        from mmengine.config.utils import MODULE2PACKAGE
        assert 'crd_plugin' not in MODULE2PACKAGE, 'remove the mend'
        import crd_plugin
        assert MODULE2PACKAGE['crd_plugin'] == 'crd_plugin'
        """)


# --- checkpoints ----------------------------------------------------------- #


def rewrite_pickle(path, change):
    """Change the pickle inside a checkpoint of torch."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, 'w') as archive:
        for name, data in content.items():
            if name.endswith('data.pkl'):
                changed = change(data)
                assert changed != data
                data = changed
            archive.writestr(name, data)


@pytest.mark.parametrize(
    'dtype',
    ['bool', 'int8', 'uint8', 'int16', 'int32', 'uint32', 'int64', 'float16', 'float32', 'float64'],
)
def test_numpy_of_every_number_type_loads(tmp_path, dtype):
    path = tmp_path / 'a.pth'
    array = np.ones(3, dtype=dtype)
    torch.save(dict(array=array, scalar=array[0]), path)
    loaded = compat.load_checkpoint_file(path)
    assert loaded['array'].dtype == dtype
    assert loaded['array'].tolist() == array.tolist()
    assert loaded['scalar'] == 1 and type(loaded['scalar']) is type(array[0])


def test_checkpoint_written_under_numpy_1_loads(tmp_path):
    path = tmp_path / 'a.pth'
    torch.save(dict(array=np.arange(3), scalar=np.float64(2)), path)
    rewrite_pickle(path, lambda data: data.replace(b'numpy._core', b'numpy.core'))
    loaded = compat.load_checkpoint_file(path)
    assert loaded['array'].tolist() == [0, 1, 2] and loaded['scalar'] == 2


def test_message_hub_survives(tmp_path):
    path = tmp_path / 'a.pth'
    history = HistoryBuffer([1.0, 3.0], [1, 1])
    torch.save(dict(message_hub=dict(log_scalars=dict(loss=history))), path)
    loaded = compat.load_checkpoint_file(path)
    loss = loaded['message_hub']['log_scalars']['loss']
    assert loss.mean() == 2 and loss.statistics('max') == 3


class Evil:
    """Pickles into a call of something."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    'function, args',
    [
        (os.system, ('touch harmed',)),
        (eval, ('open("harmed", "w")',)),
        (getattr, (os, 'system')),
        (getattr, (HistoryBuffer, '__init__')),
        (getattr, (HistoryBuffer, 'update')),
        (getattr, (HistoryBuffer, 'register_statistics')),
    ],
    ids=lambda value: str(value)[:40],
)
def test_checkpoint_runs_no_code(tmp_path, monkeypatch, function, args):
    monkeypatch.chdir(tmp_path)
    data = dict(state_dict={}, evil=Evil(function, *args))
    if args[0] is os:  # a module cannot be pickled
        args = ('os', 'system')
        data = dict(state_dict={}, evil=Evil(function, *args))
    torch.save(data, 'a.pth')
    with pytest.raises(compat.CheckpointError, match='a.pth holds'):
        compat.load_checkpoint_file('a.pth')
    assert not os.path.exists('harmed')


def test_unsafe_loading_cannot_be_forced(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    torch.save(Evil(eval, '1'), tmp_path / 'a.pth')
    with pytest.raises(compat.CheckpointError, match='only tensors'):
        compat.load_checkpoint_file(tmp_path / 'a.pth')


def test_missing_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match='nope.pth does not exist'):
        compat.load_checkpoint_file(tmp_path / 'nope.pth')
    with pytest.raises(FileNotFoundError, match='is a folder'):
        compat.load_checkpoint_file(tmp_path)


def saved(content):
    """A checkpoint as bytes."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@pytest.mark.parametrize(
    'content',
    [
        b'',
        b'hello world, this is text',
        b'\x80\x02',
        saved(dict(w=torch.zeros(1000)))[:-100],
        saved(dict(w=torch.zeros(1000)))[:300],
        pickle.dumps(dict(a=1))[:-3],
    ],
    ids=['empty', 'text', 'header', 'tail', 'head', 'pickle'],
)
def test_broken_checkpoint_is_told_with_its_size(tmp_path, content):
    path = tmp_path / 'broken.pth'
    path.write_bytes(content)
    message = rf'broken\.pth \({len(content)} bytes\) is truncated or no'
    with pytest.raises(compat.CheckpointError, match=message) as caught:
        compat.load_checkpoint_file(path)
    assert '\n' not in str(caught.value)
    assert 'copy or download it again' in str(caught.value)


def test_every_way_to_a_local_file_gives_the_message(tmp_path):
    from mmengine.runner import CheckpointLoader, load_checkpoint

    path = tmp_path / 'broken.pth'
    path.write_bytes(b'')
    for load in (
        CheckpointLoader.load_checkpoint,
        lambda name: load_checkpoint(torch.nn.Linear(1, 1), name),
    ):
        with pytest.raises(compat.CheckpointError, match='0 bytes'):
            load(str(path))


# --- files ----------------------------------------------------------------- #


def test_writing_follows_links(tmp_path):
    from mmengine.fileio import LocalBackend

    target, link = tmp_path / 'target', tmp_path / 'link'
    target.write_bytes(b'old')
    link.symlink_to(target)
    LocalBackend().put(b'new', link)
    assert link.is_symlink() and target.read_bytes() == b'new'


def test_checkpoint_saved_again_under_its_name_stays(tmp_path):
    from mmengine.hooks import CheckpointHook

    hook = CheckpointHook(max_keep_ckpts=1)
    calls = []

    class Backend:
        def remove(self, path):
            calls.append(path)

    def save(self):
        self.file_backend.remove('epoch_1.pth')
        self.file_backend.remove('epoch_2.pth')
        calls.append('saved')

    hook.file_backend, hook.last_ckpt = Backend(), 'epoch_2.pth'
    checkpoints._removing_last(save)(hook)
    assert calls == ['saved', 'epoch_1.pth']
    assert isinstance(hook.file_backend, Backend)


# --- the log --------------------------------------------------------------- #


class OnGpu(torch.Tensor):
    """A tensor of the host that pretends to be on a GPU."""

    @property
    def device(self):
        """Not where it is."""
        return torch.device('cuda')


def on_gpu(number, dtype=torch.float32):
    """A number that is not on the host."""
    return torch.tensor(number, dtype=dtype).as_subclass(OnGpu)


def logged(hub, key):
    """All numbers and counts of a key."""
    return [part.tolist() for part in hub.get_scalar(key).data]


def test_numbers_on_a_gpu_keep_order_and_counts():
    hub = MessageHub('order')
    hub.update_scalar('loss', on_gpu(1.0), count=2)
    hub.update_scalar('other', on_gpu(7.0, torch.float64))
    hub.update_scalar('loss', on_gpu([2.0]))
    hub.update_scalar('loss', 3.0)  # of the host, after two of the GPU
    hub.update_scalar('loss', on_gpu(4.0, torch.float16))
    assert logged(hub, 'loss') == [[1.0, 2.0, 3.0, 4.0], [2, 1, 1, 1]]
    assert logged(hub, 'other') == [[7.0], [1]]
    with pytest.raises(AssertionError):
        hub.update_scalar('loss', on_gpu([1.0, 2.0]))
    with pytest.raises(AssertionError, match='resumed'):
        hub.update_scalar('loss', on_gpu(5.0), resumed=False)
    with pytest.raises(KeyError, match='absent'):
        hub.get_scalar('absent')


def test_reading_one_number_leaves_the_others_on_the_gpu():
    hub = MessageHub('one')
    hub.update_scalar('time', 0.5)
    hub.update_scalar('loss', on_gpu(1.0))
    assert logged(hub, 'time') == [[0.5], [1]]
    assert 'loss' not in hub._log_scalars
    assert list(hub.log_scalars) == ['time', 'loss']


def test_numbers_on_a_gpu_are_saved_and_loaded():
    hub = MessageHub('saved')
    hub.update_scalar('loss', on_gpu(1.0))
    state = hub.state_dict()
    hub.update_scalar('loss', on_gpu(2.0))
    for source, numbers in ((state, [1.0]), (hub, [1.0, 2.0])):
        other = MessageHub('loaded')
        other.update_scalar('stale', on_gpu(0.0))
        other.load_state_dict(source)
        assert logged(other, 'loss')[0] == numbers


def test_numbers_on_a_gpu_are_not_kept_for_ever(monkeypatch):
    monkeypatch.setattr(logs, '_MOST_KEPT', 3)
    hub = MessageHub('many')
    for number in range(7):
        hub.update_scalar('loss', on_gpu(float(number)))
    assert hub._log_scalars['loss'].data[0].tolist() == [0, 1, 2, 3, 4, 5]
    assert logged(hub, 'loss')[0] == [0, 1, 2, 3, 4, 5, 6]
