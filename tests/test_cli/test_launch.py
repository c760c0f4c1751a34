"""Subprocesses, locks and files of trainings."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from crd_plugin.cli import launch
from crd_plugin.cli.arguments import UsageError
from tests.tables import REPO, wait_for


def _python(code):
    return [sys.executable, '-c', code]


def _ignore(*args):
    pass


def _alive(pid):
    """Whether a process runs; one that waits to be collected does not."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().split()[2] != 'Z'
    except FileNotFoundError:
        return False


def test_output_epochs_and_failure_of_a_training(tmp_path):
    code = (
        'import os\n'
        'print("Epoch(train)  [1][5/5]  loss: 1.0")\n'
        'print("other", os.environ.get("COLOUR"))\n'
        'print("Epoch(val) [1][4/4]  eta: 0:00:01")\n'
        'print("x - Epoch(val) [1][4/4]  accuracy/top1: 50.0")\n'
        'for i in range(50): print("line", i)\n'
        'raise SystemExit(7)'
    )
    seen, log = [], tmp_path / launch.LOG
    watch = launch.Trainings().watch
    with pytest.raises(subprocess.CalledProcessError, match='status 7'):
        watch(_python(code), log, lambda *args: seen.append(args), dict(COLOUR='blue'))
    assert seen == [
        (1, False, 'Epoch(train)  [1][5/5]  loss: 1.0'),
        (1, True, 'Epoch(val) [1][4/4]  accuracy/top1: 50.0'),
    ]
    first, *lines = log.read_text().splitlines()
    assert first.startswith('$ ') and 'other blue' in lines
    assert lines[-50:] == [f'line {i}' for i in range(50)]


def test_a_training_that_starts_while_others_are_stopped(tmp_path):
    trainings = launch.Trainings()
    trainings.stop()
    with pytest.raises(subprocess.CalledProcessError) as caught:
        trainings.watch(_python('import time; time.sleep(60)'), tmp_path / launch.LOG, _ignore)
    assert caught.value.returncode == -signal.SIGTERM


def test_stop_ends_children_and_those_that_will_not():
    code = (
        'import signal, subprocess, sys, time\n'
        'if len(sys.argv) > 1: signal.signal(signal.SIGTERM, signal.SIG_IGN)\n'
        'child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])\n'
        'print(child.pid, flush=True)\n'
        'time.sleep(60)'
    )
    processes = [
        subprocess.Popen(
            [*_python(code), *more], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        for more in ([], ['ignore'])
    ]
    children = [int(process.stdout.readline()) for process in processes]
    assert all(map(_alive, children))
    launch.stop(*processes, grace=0.5)
    assert [process.returncode for process in processes] == [-signal.SIGTERM, -signal.SIGKILL]
    wait_for(lambda: not any(map(_alive, children)))
    launch.stop(*processes)  # those that have ended are skipped


def test_a_folder_is_locked_as_long_as_anything_trains_there(tmp_path):
    """Also when the tool is killed and its training goes on alone."""
    code = (
        'import sys\n'
        'from pathlib import Path\n'
        'from crd_plugin.cli import launch\n'
        'folder = Path(sys.argv[1])\n'
        'with launch.hold(folder) as lock:\n'
        '    launch.Trainings().watch([sys.executable, "-c", '
        '"import os, time; print(os.getpid()); time.sleep(60)"], folder / "log", print, {}, lock)'
    )
    helper = subprocess.Popen(
        [*_python(code), str(tmp_path)], env=dict(os.environ, PYTHONPATH=str(REPO))
    )
    log = tmp_path / 'log'
    wait_for(lambda: log.is_file() and len(log.read_text().splitlines()) > 1)
    orphan = int(log.read_text().splitlines()[-1])
    helper.kill()
    helper.wait()
    assert _alive(orphan)
    for refused in (
        lambda: launch.hold(tmp_path).__enter__(),
        lambda: launch.make_room(tmp_path, 0),
    ):
        with pytest.raises(UsageError, match='in use: another process trains there'):
            refused()
    os.kill(orphan, signal.SIGKILL)
    wait_for(lambda: not _alive(orphan))
    with launch.hold(tmp_path):
        pass


def test_unfinished_runs_make_room_and_finished_ones_are_kept(tmp_path):
    for content in ('first', 'second', 'unfinished'):
        run_dir = tmp_path / 'kd_seed0'
        run_dir.mkdir()
        (run_dir / 'note').write_text(content)
        launch.make_room(run_dir, keep=content != 'unfinished')
    assert {path.name: (path / 'note').read_text() for path in tmp_path.iterdir()} == {
        'kd_seed0_old1': 'first',
        'kd_seed0_old2': 'second',
    }


def test_configs_and_tools_are_found_in_both_places(tmp_path, monkeypatch):
    assert launch.locate('tools/train.py') == REPO / 'tools' / 'train.py'
    installed = tmp_path / 'site-packages' / 'crd_plugin'
    (tmp_path / 'site-packages' / 'configs').mkdir(parents=True)  # another's
    monkeypatch.setattr(launch, 'PACKAGE', installed)
    assert launch.locate('configs') == installed / '.mim' / 'configs'


def test_a_missing_package_is_named_with_the_fix(monkeypatch):
    launch.require('json', 'rich')
    monkeypatch.setitem(sys.modules, 'pandas', None)
    with pytest.raises(UsageError, match='needs pandas .*`pip install -r requirements/demo.txt'):
        launch.require('json', 'pandas')


@pytest.mark.parametrize(('before', 'status'), [('SIG_DFL', 129), ('SIG_IGN', 0)])
def test_a_closed_terminal_ends_a_tool_unless_nohup_asks_to_go_on(before, status):
    code = f"""
import os, signal
signal.signal(signal.SIGHUP, signal.{before})
from crd_plugin.cli import launch
launch.interrupt_on_signals()
try:
    os.kill(os.getpid(), signal.SIGHUP)
except KeyboardInterrupt as interrupt:
    launch.leave(interrupt)
"""
    assert subprocess.run([sys.executable, '-c', code]).returncode == status
