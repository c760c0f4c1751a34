"""crd_plugin/launch.py: processes, records, locks and progress."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crd_plugin.cli import launch
from crd_plugin.cli.arguments import UsageError

REPO = Path(__file__).parents[2]
CONFIG = REPO / 'configs' / 'vanilla' / 'vanilla_resnet8w4_b20-100e_digits.py'


@pytest.fixture
def run(tmp_path):
    return launch.Run('net', CONFIG, 3, tmp_path / 'run', ['a.b=1'])


def _fake(run, code):
    """Let a run be a few lines of Python."""
    run.command = lambda resume=None: [sys.executable, '-c', code]


def _wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'waited in vain'
        time.sleep(0.02)


def _alive(pid):
    """Whether a process runs; one that waits to be collected does not."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().split()[2] != 'Z'
    except FileNotFoundError:
        return False


def test_command_names_all_that_the_training_depends_on(run):
    command = run.command('auto')
    assert command[0] == sys.executable
    assert command[1:] == [
        str(REPO / 'tools' / 'train.py'),
        str(CONFIG),
        '--work-dir',
        str(run.run_dir),
        '--resume',
        'auto',
        '--cfg-options',
        'randomness.seed=3',
        'a.b=1',
    ]
    assert '--resume' not in run.command()


def test_signature_depends_on_seed_and_options(tmp_path):
    signatures = {
        launch.Run('n', CONFIG, seed, tmp_path / name, options).signature()
        for seed, name, options in [
            (0, 'a', []),
            (0, 'b', []),
            (1, 'a', []),
            (0, 'a', ['train_cfg.max_epochs=3']),
        ]
    }
    assert len(signatures) == 3
    config = launch.load_config(CONFIG, ['train_cfg.max_epochs=3'])
    assert config.train_cfg.max_epochs == 3


def test_output_epochs_and_record_of_a_training(run):
    _fake(
        run,
        'import os\n'
        'print("Epoch(train)  [1][5/5]  loss: 1.0")\n'
        'print("other", os.environ.get("COLOUR"))\n'
        'print("Epoch(val) [1][4/4]  eta: 0:00:01")\n'
        'print("x - Epoch(val) [1][4/4]  accuracy/top1: 50.0")',
    )
    seen, started = [], []
    launch.execute(
        run,
        dict(signature='s'),
        lambda *args: seen.append(args),
        env=dict(COLOUR='blue'),
        on_start=started.append,
    )
    assert seen == [
        (1, False, 'Epoch(train)  [1][5/5]  loss: 1.0'),
        (1, True, 'Epoch(val) [1][4/4]  accuracy/top1: 50.0'),
    ]
    assert started[0].poll() == 0
    log = (run.run_dir / launch.LOG).read_text()
    assert log.startswith('$ ') and 'other blue' in log
    assert run.seconds > 0
    assert run.read_record() == dict(signature='s', finished=True, seconds=run.seconds)

    # The time before an interruption is not known, so the sum is not.
    launch.execute(run, dict(signature='s'), lambda *args: None, 'auto')
    assert run.seconds is None and run.read_record()['seconds'] is None


def test_a_failure_keeps_the_last_lines(run):
    _fake(run, 'for i in range(50): print("line", i)\nraise SystemExit(7)')
    with pytest.raises(launch.TrainingFailed, match='code 7') as caught:
        launch.execute(run, {}, lambda *args: None)
    assert caught.value.code == 7
    assert caught.value.tail == [f'line {i}' for i in range(30, 50)]
    assert caught.value.log.read_text().count('line') == 51  # and the command
    assert run.read_record()['finished'] is False


def test_stop_ends_children_and_those_that_will_not():
    code = (
        'import signal, subprocess, sys, time\n'
        'if len(sys.argv) > 1: signal.signal(signal.SIGTERM, '
        'signal.SIG_IGN)\n'
        'child = subprocess.Popen([sys.executable, "-c", '
        '"import time; time.sleep(60)"])\n'
        'print(child.pid, flush=True)\n'
        'time.sleep(60)'
    )
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', code, *more],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for more in ([], ['ignore'])
    ]
    children = [int(process.stdout.readline()) for process in processes]
    assert all(map(_alive, children))
    started = time.monotonic()
    launch.stop(*processes, grace=0.5)
    assert time.monotonic() - started < 5
    assert [process.returncode for process in processes] == [-signal.SIGTERM, -signal.SIGKILL]
    _wait_for(lambda: not any(map(_alive, children)))
    launch.stop(*processes)  # those that have ended are passed over


def test_a_folder_is_locked_as_long_as_anything_trains_there(run):
    """Also when the tool is killed and its training goes on alone."""
    helper = subprocess.Popen(
        [
            sys.executable,
            '-c',
            'import sys\n'
            'from pathlib import Path\n'
            'from crd_plugin.cli import launch\n'
            'run = launch.Run("n", Path("c.py"), 0, Path(sys.argv[1]), [])\n'
            'run.command = lambda resume: [sys.executable, "-c", '
            '"import os, time; print(os.getpid()); time.sleep(60)"]\n'
            'launch.execute(run, {}, print)',
            str(run.run_dir),
        ],
        env=dict(os.environ, PYTHONPATH=str(REPO)),
    )
    log = run.run_dir / launch.LOG
    _wait_for(lambda: log.is_file() and len(log.read_text().splitlines()) > 1)
    orphan = int(log.read_text().splitlines()[1])
    helper.kill()
    helper.wait()
    assert _alive(orphan) and launch.in_use(run.run_dir)
    with pytest.raises(UsageError, match='another process trains there'):
        launch.execute(run, {}, lambda *args: None)
    with pytest.raises(UsageError, match='another process trains there'):
        launch.make_room(run.run_dir, keep=False)
    os.kill(orphan, signal.SIGKILL)
    _wait_for(lambda: not launch.in_use(run.run_dir))


def test_unfinished_runs_make_room_and_finished_ones_are_kept(tmp_path):
    for content in ('first', 'second', 'unfinished'):
        run_dir = tmp_path / 'kd_seed0'
        run_dir.mkdir()
        (run_dir / 'note').write_text(content)
        launch.make_room(run_dir, keep=content != 'unfinished')
    assert {p.name: (p / 'note').read_text() for p in tmp_path.iterdir()} == {
        'kd_seed0_old1': 'first',
        'kd_seed0_old2': 'second',
    }


def test_the_checkpoint_to_go_on_from(run):
    assert run.is_empty()
    run.run_dir.mkdir()
    (run.run_dir / launch.LOCK).touch()
    assert run.is_empty() and run.latest_checkpoint() is None
    for epoch in (8, 9, 10):
        (run.run_dir / f'epoch_{epoch}.pth').touch()
    pointer = run.run_dir / 'last_checkpoint'
    # Work dirs may be moved: the name counts, not the folder.
    pointer.write_text('somewhere/else/epoch_9.pth')
    assert not run.is_empty()
    assert run.latest_checkpoint().name == 'epoch_9.pth'
    assert run.latest_checkpoint(before=9).name == 'epoch_8.pth'
    assert run.latest_checkpoint(before=8) is None
    for torn in ('', 'gone/epoch_11.pth'):
        pointer.write_text(torn)
        assert run.latest_checkpoint() == run.run_dir / 'epoch_10.pth'
    assert launch.epoch_of(run.latest_checkpoint()) == 10
    assert launch.epoch_of(Path('iter_500.pth')) == 0
    assert launch.epoch_of(None) == 0


def test_a_damaged_record_is_told(run):
    assert run.read_record() is None
    run.run_dir.mkdir()
    run.record.write_text(json.dumps(dict(finished=True))[:-3])
    with pytest.raises(UsageError, match='run.json is damaged .* move'):
        run.read_record()


def test_configs_and_tools_are_found_in_both_places(tmp_path, monkeypatch):
    assert launch.locate('tools/train.py') == REPO / 'tools' / 'train.py'
    installed = tmp_path / 'site-packages' / 'crd_plugin'
    (tmp_path / 'site-packages' / 'configs').mkdir(parents=True)  # another's
    monkeypatch.setattr(launch, 'PACKAGE', installed)
    assert launch.locate('configs') == installed / '.mim' / 'configs'


def test_progress_counts_only_what_was_trained_here(monkeypatch):
    now = [0.0]
    monkeypatch.setattr('time.perf_counter', lambda: now[0])
    # One resumed after 50 of 100 epochs, and two whole runs.
    progress = launch.Progress(work=2.5)
    progress.start('resumed', 100, reached=50)
    progress.start('whole', 100)
    assert progress.left == '?'
    now[0] = 60.0
    assert progress.update('resumed', 75, True) is False
    assert progress.update('whole', 25, True) is False
    # Half a run in a minute, two are left.
    assert progress.done == 0.5 and progress.left == '4:00'
    # What a failed run leaves undone is not waited for.
    progress.finish('whole')
    assert progress.done == 0.5 and progress.left == '2:30'
    progress.update('resumed', 100, True)
    progress.finish('resumed')
    assert progress.done == 0.75 and progress.left == '1:20'
    assert progress.elapsed == '1:00'


def test_one_line_of_each_kind_in_every_tenth_is_shown():
    progress = launch.Progress(1)
    progress.start('run', 30)
    shown = [
        (epoch, validated)
        for epoch in range(1, 31)
        for validated in (False, False, True)
        if progress.update('run', epoch, validated)
    ]
    assert shown == [(epoch, validated) for epoch in range(3, 31, 3) for validated in (False, True)]
