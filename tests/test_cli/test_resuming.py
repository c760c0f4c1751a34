"""Where --resume goes on, and trainings that are refused, interrupted or out of disk space."""

import logging
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub

from crd_plugin.cli import launch
from crd_plugin.cli.arguments import UsageError
from crd_plugin.cli.resuming import guarded, resume
from tests import small_runs
from tests.tables import wait_for

WHOLE = dict(meta={}, state_dict={}, message_hub={}, optimizer={})


@pytest.fixture
def work_dir(tmp_path):
    """Two checkpoints, the best one, and a pointer to the latest."""
    folder = tmp_path / 'run'
    folder.mkdir()
    for name in ('epoch_9.pth', 'epoch_10.pth'):
        torch.save(WHOLE, folder / name)
    weights = {key: value for key, value in WHOLE.items() if key != 'optimizer'}
    torch.save(weights, folder / 'best_accuracy_epoch_11.pth')
    (folder / 'last_checkpoint').write_text('elsewhere/epoch_10.pth')
    return folder


def config(work_dir, **more):
    return Config(dict(work_dir=str(work_dir), launcher='none', **more))


def resumed(work_dir, wanted='auto', **more):
    """Name of the checkpoint that a run goes on from, and the remark for the log."""
    cfg = config(work_dir, **more)
    remark = resume(cfg, wanted)
    return cfg.get('resume') and Path(cfg.load_from).name, remark


# --- where a run goes on ---------------------------------------------------- #


def test_the_pointer_counts(work_dir):
    assert resumed(work_dir) == (
        'epoch_10.pth',
        f'--resume auto: go on from {work_dir}/epoch_10.pth',
    )
    (work_dir / 'epoch_10.pth').rename(work_dir / 'iter_1000.ckpt')
    for name in ('notes_7.txt', 'iter_9999.pth.part'):
        (work_dir / name).touch()
    assert resumed(work_dir)[0] == 'iter_1000.ckpt'
    (work_dir / 'last_checkpoint').write_text('epoch_9.pth\n')
    assert resumed(work_dir)[0] == 'epoch_9.pth'
    assert resumed(work_dir, None) == (None, '')
    assert resumed(work_dir, None, resume=True, load_from=None)[0] == 'epoch_9.pth'
    path = str(work_dir / 'iter_1000.ckpt')
    assert resumed(work_dir, path) == ('iter_1000.ckpt', f'resume from {path}')


@pytest.mark.parametrize(
    'content',
    [None, b'', b'\xff\xfe', b'a\0b', b'/nowhere/epoch_77.pth', b'..', b'epoch_10.pth.part'],
    ids=['missing', 'empty', 'binary', 'NUL', 'gone', 'folder', 'part'],
)
def test_without_a_sound_pointer_the_newest_checkpoint_counts(work_dir, content):
    """It ended with an error, or started again over good checkpoints."""
    pointer = work_dir / 'last_checkpoint'
    pointer.unlink() if content is None else pointer.write_bytes(content)
    name, remark = resumed(work_dir)
    assert name == 'epoch_10.pth'
    assert remark.endswith(', because last_checkpoint does not name one that is there')


def test_damaged_checkpoints_are_passed_over(work_dir):
    (work_dir / 'epoch_10.pth').write_bytes(b'torn')
    name, remark = resumed(work_dir)
    assert name == 'epoch_9.pth' and remark.endswith(', because epoch_10.pth is damaged')
    torch.save(dict(state_dict={}), work_dir / 'epoch_9.pth')
    with pytest.raises(
        UsageError,
        match=r'no whole checkpoint \(epoch_10.pth is damaged, epoch_9.pth has no message_hub\)',
    ):
        resumed(work_dir)


def test_a_run_begins_where_there_is_no_checkpoint(tmp_path, work_dir):
    name, remark = resumed(tmp_path / 'new', resume=True)
    assert not name and remark.endswith('new yet, start from the beginning')
    with pytest.raises(UsageError, match='--resume gone.pth does not exist'):
        resumed(work_dir, 'gone.pth')


def test_checkpoints_in_another_folder(tmp_path, work_dir):
    """As default_hooks.checkpoint.out_dir puts them there."""
    (tmp_path / 'out').mkdir()
    work_dir.rename(tmp_path / 'out' / 'run')
    work_dir.mkdir()
    hooks = dict(checkpoint=dict(out_dir=str(tmp_path / 'out')))
    assert resumed(work_dir, default_hooks=hooks)[0] == 'epoch_10.pth'
    (work_dir / 'last_checkpoint').write_text(f'{tmp_path}/out/run/epoch_9.pth')
    assert resumed(work_dir, default_hooks=hooks)[0] == 'epoch_9.pth'
    with pytest.raises(KeyboardInterrupt, match=f'goes on from {tmp_path}/out/run/epoch_9.pth.$'):
        with guarded(config(work_dir, default_hooks=hooks)):
            raise KeyboardInterrupt


# --- while it trains -------------------------------------------------------- #


def test_a_second_training_is_refused(work_dir, monkeypatch):
    before = sorted(work_dir.iterdir())
    with guarded(config(work_dir)):
        with pytest.raises(UsageError, match='in use.*wait for it or end it.*another --work-dir'):
            with guarded(config(work_dir)):
                raise AssertionError('trained')
        # Of a distributed run, rank 0 alone holds the lock.
        monkeypatch.setattr(launch, 'end_with_parent', lambda: None)
        monkeypatch.setenv('RANK', '1')
        with guarded(Config(dict(work_dir=str(work_dir), launcher='pytorch'))):
            pass
    assert sorted(work_dir.iterdir()) == [work_dir / launch.LOCK, *before]
    with guarded(config(work_dir)):
        pass


def test_a_file_system_without_locks(work_dir, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(37, 'No locks available')

    monkeypatch.setattr('filelock.lock_descriptor', fail)
    with guarded(config(work_dir)), guarded(config(work_dir)):
        pass


@pytest.mark.parametrize('code', ['ENOSPC', 'EDQUOT'])
def test_a_full_disk(work_dir, code):
    number = getattr(__import__('errno'), code)
    path = work_dir / 'epoch_11.pth'
    with pytest.raises(UsageError) as caught, guarded(config(work_dir)):
        raise OSError(number, 'It is full', str(path))
    assert str(caught.value) == (
        f'{path} cannot be written: It is full; free some space. The earlier checkpoints are '
        'whole; the same command with --resume goes on from the latest.'
    )
    with pytest.raises(UsageError, match='run cannot be written'), guarded(config(work_dir)):
        raise OSError(number, 'It is full')
    with guarded(config(work_dir)):
        assert not logging.raiseExceptions  # no traceback per line of the log
    assert logging.raiseExceptions
    with pytest.raises(PermissionError), guarded(config(work_dir)):
        raise PermissionError(13, 'Not this')


@pytest.mark.parametrize('raised', [KeyboardInterrupt, SyntaxError])
def test_an_interrupted_training(work_dir, monkeypatch, raised):
    """Some code turns a KeyboardInterrupt into an error of its own."""
    monkeypatch.setattr(launch, '_RECEIVED', [signal.SIGTERM])
    with pytest.raises(KeyboardInterrupt) as caught, guarded(config(work_dir)):
        raise raised
    line = f'the same command with --resume goes on from {work_dir}/epoch_10.pth.'
    assert str(caught.value) == f'interrupted; {line}'
    empty = work_dir / 'empty'
    with pytest.raises(KeyboardInterrupt) as caught, guarded(config(empty)):
        raise KeyboardInterrupt
    assert str(caught.value) == f'interrupted; {empty} has no checkpoint yet, start again.'


def test_a_tool_ends_by_a_signal_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(launch, '_RECEIVED', [signal.SIGTERM])
    lines = {(): 'interrupted.\n', ('gone on from here.',): 'gone on from here.\n', ('',): ''}
    for arguments, line in lines.items():
        with pytest.raises(SystemExit) as caught:
            launch.leave(KeyboardInterrupt(*arguments))
        assert caught.value.code == 128 + signal.SIGTERM
        assert capsys.readouterr().err == line


def test_after_a_failed_training_nothing_trains(work_dir):
    """A loss by hand, as in a notebook, must not go on with the run's epoch."""
    hub = MessageHub.get_current_instance()
    for error in (KeyboardInterrupt, ValueError):
        hub.update_info('loop_stage', 'train')
        with pytest.raises(error), guarded(config(work_dir)):
            raise error
        assert hub.get_info('loop_stage') is None


@pytest.mark.slow
def test_train_ends_by_a_signal_in_one_line_and_goes_on(tmp_path):
    work_dir, log = tmp_path / 'run', tmp_path / 'log'
    workers = dict(train_dataloader__num_workers=1, train_dataloader__persistent_workers=True)
    changes = dict(workers, train_cfg__max_epochs=10**6)
    path = small_runs.write_config(tmp_path / 'config.py', work_dir, **changes)
    process = small_runs.start('train.py', path, log=log)
    try:
        wait_for((work_dir / 'epoch_1.pth').exists, process)
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
    finally:
        process.kill()
    *_, line = log.read_text().splitlines()
    assert line.startswith('interrupted; the same command with --resume goes on from')
    assert 'Traceback' not in log.read_text()
    cfg = Config.fromfile(path)
    assert resume(cfg, 'auto') and Path(cfg.load_from).name in line


def test_a_process_ends_with_the_one_that_started_it():
    code = (
        'import subprocess, sys, time\n'
        'child = "from crd_plugin.cli import launch; launch.end_with_parent(); '
        'print(flush=True); import time; time.sleep(60)"\n'
        'subprocess.run([sys.executable, "-c", child])'
    )
    parent = subprocess.Popen(
        [sys.executable, '-c', code], stdout=subprocess.PIPE, cwd=small_runs.REPO
    )
    with parent:
        assert parent.stdout.readline() == b'\n'  # the child is ready
        parent.kill()
        # Ends as soon as the child has closed its side.
        started = time.monotonic()
        assert parent.stdout.read() == b'' and time.monotonic() - started < 30
