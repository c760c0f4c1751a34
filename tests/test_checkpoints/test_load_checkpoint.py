"""Checkpoints behind URLs: nothing in them runs, and each URL is its own file."""

import os
import threading
from functools import partial
from hashlib import sha256
from http.server import HTTPServer, SimpleHTTPRequestHandler

import pytest
import torch

from crd_plugin.compat import CheckpointError, load_checkpoint
from tests import small_runs
from tests.test_cli.test_arguments import run


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f'touch {self.path}',)


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
    save(tmp_path, 'x.pth', dict(state_dict=dict(a=Payload(mark)), meta={}))
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
