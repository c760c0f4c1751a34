"""Run trainings as subprocesses: watch, lock and stop them; files that they leave.

Only light modules are imported at the top, so that a mistyped argument is answered at once.
"""

import contextlib
import ctypes
import importlib
import itertools
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from .arguments import UsageError

PACKAGE = Path(__file__).resolve().parents[1]
LOG = 'train.log'
LOCK = '.lock'
# Environment variable of a training that has inherited the lock of its folder.
_HELD = 'CRD_PLUGIN_LOCK'
# Signals that end this process.
_RECEIVED: list[int] = []
# MMEngine's lines: Epoch(train)  [3][5/5]  lr: ...  Epoch(val) [3][4/4] ...
EPOCH_LINE = re.compile(r'(Epoch\((train|val)\)\s+\[(\d+)\].*)')
# Receives the number of an epoch, whether it was validated, and MMEngine's line.
OnEpoch = Callable[[int, bool, str], None]


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
        """Run a command, which keeps ``lock``; append its output to ``log``, report its epochs."""
        env = {**os.environ, 'PYTHONUNBUFFERED': '1', **(env or {})}
        # Threads that spin while they wait slow small networks down when the machine is busy.
        env.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
        # The subprocess imports the package of this checkout.
        paths = [str(PACKAGE.parent), env.get('PYTHONPATH', '')]
        env['PYTHONPATH'] = os.pathsep.join(filter(None, paths))
        if lock is not None:
            env[_HELD] = 'inherited'
        with open(log, 'a', encoding='utf-8') as file:
            file.write(f'$ {shlex.join(command)}\n')
            with subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors='replace',
                env=env,
                start_new_session=True,  # data workers are in its process group and stop with it
                pass_fds=() if lock is None or os.name != 'posix' else (lock,),
            ) as process:
                # Add, then ask: stop() works in the other order.
                self._processes.add(process)
                try:
                    if self.stopping.is_set():
                        stop(process)
                    for line in process.stdout or ():
                        file.write(line)
                        file.flush()
                        match = EPOCH_LINE.search(line)
                        # The last line of a validation has the metrics.
                        if match and not (match[2] == 'val' and ' eta: ' in match[1]):
                            on_epoch(int(match[3]), match[2] == 'val', match[1])
                    process.wait()
                finally:
                    stop(process)
                    self._processes.discard(process)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)

    def stop(self) -> None:
        """Stop what runs, and whatever is started from now on."""
        self.stopping.set()
        stop(*self._processes.copy())


def stop(*processes: subprocess.Popen, grace: float = 10.0) -> None:
    """End subprocesses that lead a process group, and their children; SIGKILL after ``grace`` s."""
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
    """Let ``kill`` and a closed terminal end a tool as Ctrl-C does, by a KeyboardInterrupt.

    Some code turns it into another exception; :func:`received` tells.
    """
    numbers = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, 'SIGHUP', None)
    if hangup and signal.getsignal(hangup) != signal.SIG_IGN:  # nohup asks to go on
        numbers.append(hangup)

    def interrupt(number: int, _: object) -> None:
        for other in numbers:  # once is enough; stopping must not be interrupted
            signal.signal(other, signal.SIG_IGN)
        if hasattr(signal, 'SIGCHLD'):  # torch's handler tells of data workers that end too
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _RECEIVED.append(number)
        raise KeyboardInterrupt

    for number in numbers:
        signal.signal(number, interrupt)


def received(error: BaseException) -> bool:
    """Tell whether an exception is the end of an interrupted process."""
    return isinstance(error, KeyboardInterrupt) or bool(_RECEIVED)


def leave(interrupt: KeyboardInterrupt) -> NoReturn:
    """End this process with a line on stderr and the status of one that a signal has ended."""
    number = (_RECEIVED or [signal.SIGINT])[0]
    # Without a text, nothing was trained yet.
    line = interrupt.args[0] if interrupt.args else 'interrupted.'
    sys.stderr.write(f'{line}\n' if line else '')
    sys.stderr.flush()
    torch = sys.modules.get('torch')
    if torch and torch.distributed.is_available() and torch.distributed.is_initialized():
        os._exit(128 + number)  # the other ranks, which are waited for otherwise, end as well
    raise SystemExit(128 + number)


def is_watched() -> bool:
    """Tell whether :class:`Trainings` started this process, which has inherited a run's lock."""
    return _HELD in os.environ


def end_with_parent() -> None:
    """Have this process killed as soon as the one that started it is gone; Linux only."""
    # SIGKILL, because a rank that waits for others in a collective does not see signals.
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


@contextlib.contextmanager
def hold(run_dir: Path) -> Iterator[int]:
    """Lock the folder of a run; yield a file descriptor, with which subprocesses keep the lock."""
    from filelock import lock_descriptor

    with open(run_dir / LOCK, 'a') as file:
        with contextlib.suppress(OSError):  # a file system without locks
            if not lock_descriptor(file.fileno(), blocking=False):
                raise UsageError(
                    f'{run_dir} is in use: another process trains there; wait for it or end it '
                    'first, or train in another --work-dir.'
                )
        yield file.fileno()


def make_room(run_dir: Path, keep: bool) -> None:
    """Move a run aside to ``<name>_old<number>``, or remove it; refuse one that is in use."""
    with hold(run_dir):
        pass
    if not keep:
        shutil.rmtree(run_dir)
        return
    olds = (run_dir.with_name(f'{run_dir.name}_old{number}') for number in itertools.count(1))
    run_dir.rename(next(old for old in olds if not old.exists()))


def share_cores(jobs: int) -> dict[str, str]:
    """Environment variables that give each of several trainings an equal share of the cores."""
    if jobs == 1 or 'OMP_NUM_THREADS' in os.environ:
        return {}
    return dict(OMP_NUM_THREADS=str(max(1, (os.cpu_count() or 1) // jobs)))


def processor() -> str:
    """Name of the CPU."""
    info = Path('/proc/cpuinfo')
    match = re.search(r'model name\s*:\s*(.+)', info.read_text() if info.is_file() else '')
    return match[1] if match else platform.processor() or platform.machine()


def write_whole(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    part = path.with_name(path.name + '.part')
    try:
        part.write_text(text, encoding='utf-8')
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


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
