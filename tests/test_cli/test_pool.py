"""Runs side by side, progress lines, and the time that is left."""

import os
import signal
import sys
import threading

import pytest

from crd_plugin.cli.pool import Display, train_all
from crd_plugin.cli.runs import Run, Settings
from tests.tables import CRD, STUDENT


@pytest.fixture
def runs(tmp_path):
    """Four seeds of the student alone, 100 epochs."""
    settings = Settings(STUDENT, [])
    return [Run('net', settings, seed, tmp_path / f'seed_{seed}') for seed in range(4)]


def _fake(run, code, *args):
    """Let a run be a few lines of Python."""
    run.command = lambda resume: [sys.executable, '-c', code, *map(str, args)]


def test_one_run_per_gpu_and_failures_do_not_stop_others(runs, tmp_path, capsys):
    """Two runs wait for each other, so they must be side by side."""
    code = """
import os, sys, time
from pathlib import Path
seed, folder = int(sys.argv[1]), Path(sys.argv[2])
(folder / f'started_{seed}').touch()
end = time.time() + 20
while seed < 2 and not (folder / f'started_{1 - seed}').exists():
    assert time.time() < end
    time.sleep(0.01)
print('Epoch(train) [100][5/5]', 'GPU', os.environ['CUDA_VISIBLE_DEVICES'])
print('Epoch(val) [100][5/5]', 'GPU', os.environ['CUDA_VISIBLE_DEVICES'])
lock = folder / ('gpu_' + os.environ['CUDA_VISIBLE_DEVICES'])
lock.touch(exist_ok=False)
time.sleep(0.2)
lock.unlink()
sys.exit(f'cause of seed {seed}' if seed == 1 else 0)
"""
    for run in runs:
        _fake(run, code, run.seed, tmp_path)
    orphan = Run('crd', Settings(CRD, ['model.teacher_ckpt=gone.pth']), 0, tmp_path / 'crd')
    broken = Run('broken', runs[0].settings, 0, tmp_path / 'broken')
    broken.train = lambda *args: 1 / 0
    devices = [(f'gpu {gpu}', dict(CUDA_VISIBLE_DEVICES=str(gpu))) for gpu in (3, 5)]
    with pytest.raises(SystemExit) as caught:
        train_all([*runs, orphan, broken], devices)
    assert caught.value.code == 1
    for run in runs:
        run.examine()
    assert [run.state for run in runs] == ['done', 'new', 'done', 'done']
    out, error = capsys.readouterr()
    assert '1/6 (gpu 3)' in out and '2/6 (gpu 5)' in out
    assert 'GPU 3' in out and 'GPU 5' in out
    assert error.count('failed: ') == 3 and 'error: 3 run(s) failed' in error
    log = tmp_path / 'seed_1' / 'train.log'
    assert f'failed: net, seed 1: training ended with code 1; last lines of {log}:' in error
    assert '\n    cause of seed 1\n' in error
    assert 'model.teacher_ckpt gone.pth does not exist; give the path of a trained' in error
    assert 'ZeroDivisionError: division by zero' in error


def test_an_interruption_stops_what_runs_and_starts_nothing_else(runs, tmp_path, capsys):
    started = tmp_path / 'started'
    code = 'import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(60)'
    for run in runs:
        _fake(run, code, started)

    def interrupt():
        while not started.exists():
            pass
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    # A suite that runs in the background of a shell is told to ignore this signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        thread.start()
        with pytest.raises(SystemExit) as caught:
            train_all(runs, [('cpu', {})], 'try again')
        thread.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert caught.value.code == 130
    out, error = capsys.readouterr()
    assert error == 'interrupted; try again.\n'
    assert '2/4' not in out and not runs[1].run_dir.exists()


def test_only_what_was_trained_here_counts(monkeypatch):
    now = [0.0]
    monkeypatch.setattr('time.perf_counter', lambda: now[0])
    # One resumed after 50 of 100 epochs, and two whole runs.
    display = Display(250)
    with display.run('resumed', 100, reached=50) as resumed:
        with display.run('whole', 100) as whole:
            assert display.left == '?'
            now[0] = 60.0
            resumed(75, True, '')
            whole(25, True, '')
            # Half a run in a minute, two are left.
            assert display.left == '4:00'
        # What a failed run leaves undone is not waited for.
        assert display.left == '2:30'
        resumed(100, True, '')
    assert display.left == '1:20'


def test_one_line_of_each_kind_in_every_tenth_is_shown(capsys):
    with Display(30) as display, display.run('KD, seed 0', 30) as on_epoch:
        for epoch in range(1, 31):
            for kind, validated in (('train', False), ('train', False), ('val', True)):
                on_epoch(epoch, validated, f'Epoch({kind})   [{epoch}]  text')
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition('] ')[2] for line in lines] == [
        f'Epoch({kind}) [{epoch}] text' for epoch in range(3, 31, 3) for kind in ('train', 'val')
    ]
    assert all(line.startswith('  [KD, seed 0, 0:00 left] ') for line in lines)


def test_bars_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr('sys.stdout.isatty', lambda: True)
    with Display(2) as display, display.run('KD, seed 0', 1) as on_epoch:
        on_epoch(1, True, 'the line')
        display.say('said [above]')
    shown = capsys.readouterr().out
    for text in ('all runs', '50%', '[KD, seed 0, 0:00 left] the line', 'said [above]'):
        assert text in shown


def test_trainings_do_not_depend_on_a_reader(monkeypatch):
    def broken(text):
        called.append(text)
        raise BrokenPipeError

    called = []
    monkeypatch.setattr('sys.stdout.write', broken)
    Display(1).say('nobody reads this')
    assert called
