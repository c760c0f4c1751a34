"""Run trainings as subprocesses: watch, lock and stop them; files that they leave.

Only light modules are imported at the top, so that a mistyped argument is answered at once.
"""

from __future__ import annotations

import collections
import contextlib
import importlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from .arguments import UsageError

PACKAGE = Path(__file__).resolve().parents[1]
LOG = 'train.log'
LOCK = '.lock'
# MMEngine's lines: Epoch(train)  [3][5/5]  lr: ...  Epoch(val) [3][4/4] ...
EPOCH_LINE = re.compile(r'(Epoch\((train|val)\)\s+\[(\d+)\].*)')
# Receives the number of an epoch, whether it was validated, and MMEngine's line.
OnEpoch = Callable[[int, bool, str], None]


class TrainingFailed(RuntimeError):
    """A training that ended with another exit code than 0.

    Args:
        code (int): Exit code; negative for a signal.
        tail (Sequence[str]): Last lines of its output.
        log (Path): File with all of its output.
    """

    def __init__(self, code: int, tail: Sequence[str], log: Path) -> None:
        super().__init__(f'training ended with code {code}; see {log}')
        self.code, self.tail, self.log = code, list(tail), log


class Trainings:
    """Subprocesses that are stopped together, also those that start meanwhile."""

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self._processes: set[subprocess.Popen] = set()

    def watch(
        self,
        command: Sequence[str],
        log: Path,
        on_epoch: OnEpoch,
        env: Mapping[str, str] | None = None,
        lock: int | None = None,
    ) -> None:
        """Run a command, append its output to a file and report its epochs.

        Args:
            command (Sequence[str]): Program and arguments.
            log (Path): File for the output.
            on_epoch (Callable): Called once per line about an epoch; for a validation, with the
                line that has the metrics.
            env (Mapping, optional): Environment variables to change.
            lock (int, optional): File descriptor that the subprocess inherits.

        Raises:
            TrainingFailed: If the command does not end with code 0.
        """
        tail: collections.deque[str] = collections.deque(maxlen=20)
        with open(log, 'a', encoding='utf-8') as file:
            file.write(f'$ {shlex.join(command)}\n')
            with _start(command, env or {}, lock) as process:
                # Add, then ask: stop() works in the other order.
                self._processes.add(process)
                try:
                    if self.stopping.is_set():
                        stop(process)
                    for line in process.stdout or ():
                        file.write(line)
                        file.flush()
                        tail.append(line.rstrip())
                        match = EPOCH_LINE.search(line)
                        # The last line of a validation has the metrics.
                        if match and not (match[2] == 'val' and ' eta: ' in match[1]):
                            on_epoch(int(match[3]), match[2] == 'val', match[1])
                    process.wait()
                finally:
                    stop(process)
                    self._processes.discard(process)
        if process.returncode:
            raise TrainingFailed(process.returncode, tail, log)

    def stop(self) -> None:
        """Stop what runs, and whatever is started from now on."""
        self.stopping.set()
        stop(*self._processes.copy())


def _start(command: Sequence[str], env: Mapping[str, str], lock: int | None) -> subprocess.Popen:
    """Start a subprocess that imports the package of this checkout."""
    env = {**os.environ, 'PYTHONUNBUFFERED': '1', **env}
    # Threads that spin while they wait slow small networks down when the machine is busy.
    env.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    path = [str(PACKAGE.parent), env.get('PYTHONPATH')]
    env['PYTHONPATH'] = os.pathsep.join(part for part in path if part)
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors='replace',
        env=env,
        start_new_session=True,  # a process group of its own, so that data workers stop with it
        pass_fds=() if lock is None or os.name != 'posix' else (lock,),
    )


def stop(*processes: subprocess.Popen, grace: float = 10.0) -> None:
    """End subprocesses, each the leader of its process group, and their children.

    Args:
        *processes (subprocess.Popen): Those that have ended are skipped.
        grace (float): Seconds from SIGTERM to SIGKILL. Defaults to 10.
    """
    alive = [process for process in processes if process.poll() is None]
    for process in alive:
        _signal(process, signal.SIGTERM)
    deadline = time.monotonic() + grace
    for process in alive:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _signal(process, getattr(signal, 'SIGKILL', signal.SIGTERM))
            process.wait()


def _signal(process: subprocess.Popen, number: int) -> None:
    if not hasattr(os, 'killpg'):
        process.send_signal(number)
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def interrupt_on_signals() -> None:
    """Let ``kill`` and a closed terminal end a tool as Ctrl-C does.

    The trainings have sessions of their own, so the terminal does not reach them.
    """

    def interrupt(*_: object) -> None:
        for number in numbers:  # once is enough; stopping must not be interrupted
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    numbers = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, 'SIGHUP', None)
    if hangup and signal.getsignal(hangup) != signal.SIG_IGN:  # nohup asks to go on
        numbers.append(hangup)
    for number in numbers:
        signal.signal(number, interrupt)


@contextlib.contextmanager
def hold(run_dir: Path) -> Iterator[int]:
    """Lock the folder of a run, or raise a UsageError if another process has locked it.

    Yields the descriptor of the locked file. A subprocess that inherits it keeps the lock, even if
    this process is killed.
    """
    from filelock import lock_descriptor

    with open(run_dir / LOCK, 'a') as file:
        with contextlib.suppress(OSError):  # a file system without locks
            if not lock_descriptor(file.fileno(), blocking=False):
                raise UsageError(
                    f'{run_dir} is in use: another process trains there; wait for it or end it '
                    'first.'
                )
        yield file.fileno()


def make_room(run_dir: Path, keep: bool) -> None:
    """Move a run aside to ``<name>_old<number>``, or remove it; refuse one that is in use."""
    with hold(run_dir):
        pass
    if not keep:
        shutil.rmtree(run_dir)
        return
    number = 1
    while (old := run_dir.with_name(f'{run_dir.name}_old{number}')).exists():
        number += 1
    run_dir.rename(old)


def write_whole(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    part = path.with_name(path.name + '.part')
    part.write_text(text, encoding='utf-8')
    part.replace(path)


def locate(name: str) -> Path:
    """Find a path such as 'tools/train.py' in the checkout, or where ``mim`` installs it."""
    # Beside an installed package, `tools` may be another project's.
    if (PACKAGE.parent / 'model-index.yml').is_file():
        return PACKAGE.parent / name
    return PACKAGE / '.mim' / name


def require(*modules: str) -> None:
    """Raise a UsageError if an optional package that a tool needs cannot be imported."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UsageError(
                f'this tool needs {module} ({error}); install it with '
                '`pip install -r requirements/demo.txt`.'
            ) from error
