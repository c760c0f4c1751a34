"""Checkpoints in files and behind URLs: nothing in them runs, and faults are named."""

import io
import os
import pickle
import threading
import zipfile
from functools import partial
from hashlib import sha256
from http.server import HTTPServer, SimpleHTTPRequestHandler

import numpy as np
import pytest
import torch
from mmengine import runner
from mmengine.logging import HistoryBuffer

from crd_plugin.compat import (
    CheckpointError,
    load_checkpoint,
    load_checkpoint_file,
    use_load_checkpoint_file,
)
from tests import small_runs
from tests.test_cli.test_arguments import run

# --- files ----------------------------------------------------------------- #


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


def test_numpy_and_log_history_load(tmp_path):
    """Numbers of every type, as NumPy 1 and 2 write them."""
    path = tmp_path / 'a.pth'
    kinds = 'bool int8 uint8 int16 int32 uint32 int64 float16 float32 float64'.split()
    arrays = [np.ones(3, dtype=kind) for kind in kinds]
    arrays.append(np.array([(1, 2.5)], dtype=[('a', 'i4'), ('b', 'f8')]))
    history = HistoryBuffer([1.0, 3.0], [1, 1])
    scalars = [array[0] for array in arrays[:-1]]
    torch.save(dict(arrays=arrays, scalars=scalars, history=history), path)
    names = [b'numpy._core', b'numpy.core']
    own, other = names if np.__version__ >= '2' else reversed(names)
    for change in (None, lambda data: data.replace(own, other)):
        if change:
            rewrite_pickle(path, change)
        loaded = load_checkpoint_file(path)
        for found, array in zip(loaded['arrays'], arrays, strict=True):
            assert found.dtype == array.dtype and found.tolist() == array.tolist()
        assert loaded['scalars'] == scalars
        assert list(map(type, loaded['scalars'])) == list(map(type, scalars))
        assert loaded['history'].mean() == 2 and loaded['history'].statistics('max') == 3


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
        (getattr, ('os', 'system')),
        (getattr, (HistoryBuffer, '__init__')),
        (getattr, (HistoryBuffer, 'update')),
        (getattr, (HistoryBuffer, 'register_statistics')),
    ],
    ids=lambda value: str(value)[:40],
)
def test_checkpoint_runs_no_code(tmp_path, monkeypatch, function, args):
    monkeypatch.chdir(tmp_path)
    torch.save(dict(state_dict={}, evil=Evil(function, *args)), 'a.pth')
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    with pytest.raises(CheckpointError, match='a.pth holds .* only tensors'):
        load_checkpoint_file('a.pth')
    assert not os.path.exists('harmed')


def test_file_that_is_not_a_dict_or_not_there(tmp_path):
    torch.save([1], tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='a.pth holds a list, expected a dict with'):
        load_checkpoint_file(tmp_path / 'a.pth')
    with pytest.raises(FileNotFoundError, match='nope.pth does not exist'):
        load_checkpoint_file(tmp_path / 'nope.pth')
    with pytest.raises(FileNotFoundError, match='is a folder'):
        load_checkpoint_file(tmp_path)


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
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint_file(path)
    assert '\n' not in str(caught.value)
    assert 'copy or download it again' in str(caught.value)


def test_every_way_to_a_local_file_gives_the_message(tmp_path, monkeypatch):
    monkeypatch.setattr(runner.CheckpointLoader, '_schemes', dict(runner.CheckpointLoader._schemes))
    use_load_checkpoint_file()
    path = tmp_path / 'broken.pth'
    path.write_bytes(b'')
    with pytest.raises(CheckpointError, match='0 bytes'):
        runner.CheckpointLoader.load_checkpoint(str(path))
    with pytest.raises(CheckpointError, match='0 bytes'):
        runner.load_checkpoint(torch.nn.Linear(1, 1), str(path))


@pytest.mark.parametrize('kind', ['script', 'device'])
def test_sound_file_is_not_called_truncated(tmp_path, kind):
    path = tmp_path / 'sound.pth'
    if kind == 'script':
        torch.jit.script(torch.nn.Linear(1, 1)).save(path)
    else:
        torch.save(dict(w=torch.zeros(3)), path)
        # The place of a storage; of equal length, so that the pickle stays whole.
        rewrite_pickle(path, lambda data: data.replace(b'cpu', b'xyz'))
    with pytest.raises(CheckpointError, match='sound.pth cannot be loaded') as caught:
        load_checkpoint_file(path, map_location=None)
    assert 'truncated' not in str(caught.value)


# --- URLs ------------------------------------------------------------------ #


@pytest.fixture
def url(tmp_path, monkeypatch):
    """Serve a folder; downloads go to a folder of the test."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'hub'))
    (tmp_path / 'served').mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            """Say nothing."""

    handler = partial(Handler, directory=str(tmp_path / 'served'))
    with HTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


def save(tmp_path, name, content):
    """Save a file to be served."""
    path = tmp_path / 'served' / name
    path.parent.mkdir(exist_ok=True)
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    'role', ['model.teacher_ckpt', 'model.student_ckpt', 'load_from', 'resume']
)
def test_nothing_behind_a_url_runs(url, tmp_path, role, capsys):
    mark = tmp_path / 'ran'
    save(tmp_path, 'x.pth', dict(state_dict=dict(a=Evil(os.system, f'touch {mark}')), meta={}))
    config = small_runs.write_config(tmp_path / 'config.py', tmp_path / 'work')
    option = f'--resume {url}/x.pth' if role == 'resume' else f'--cfg-options {role}={url}/x.pth'
    assert run(f'train {config} --no-validate {option}') == 1
    assert run(f'test {config} {url}/x.pth') == 1
    assert 'only tensors, numbers and plain' in capsys.readouterr().err
    assert not mark.exists()
    with pytest.raises(CheckpointError, match='holds an object of class'):
        load_checkpoint(f'{url}/x.pth')


def test_equal_names_are_different_files(url, tmp_path):
    for number in (1, 2):
        save(tmp_path, f'run{number}/epoch_100.pth', dict(number=number))
    for _ in range(2):
        for number in (1, 2):
            assert load_checkpoint(f'{url}/run{number}/epoch_100.pth') == dict(number=number)
    assert len(list((tmp_path / 'hub').rglob('*epoch_100.pth'))) == 2


def test_a_hash_in_the_name_is_compared(url, tmp_path):
    path = save(tmp_path, 'net-00000000.pth', dict(number=3))
    with pytest.raises(CheckpointError, match='cannot be downloaded .*invalid hash.*by hand'):
        load_checkpoint(f'{url}/net-00000000.pth')
    right = f'net-{sha256(path.read_bytes()).hexdigest()[:8]}.pth'
    path.rename(path.with_name(right))
    assert load_checkpoint(f'{url}/{right}') == dict(number=3)


def test_no_network(url):
    with pytest.raises(CheckpointError, match='nothing.pth cannot be downloaded .*404'):
        load_checkpoint(f'{url}/nothing.pth')


def test_a_download_that_was_cut_off_is_not_kept(url, tmp_path):
    path = save(tmp_path, 'net.pth', dict(w=torch.ones(1000)))
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match=f'{url}/net.pth: .* is truncated'):
        load_checkpoint(f'{url}/net.pth')
    assert not [found for found in (tmp_path / 'hub').rglob('*') if found.is_file()]
    path.write_bytes(whole)
    assert load_checkpoint(f'{url}/net.pth')['w'].sum() == 1000
