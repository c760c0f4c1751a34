"""Trainings in processes of their own: start, watch, record, stop.

What ``tools/demo.py`` and ``tools/run_table.py`` have in common. Only light
modules are imported, so that both answer a mistyped argument at once.
"""

import argparse
import collections
import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from mmengine.config import Config, DictAction

from .arguments import UsageError

try:
    import fcntl
except ImportError:  # not on Windows; its runs are not locked
    fcntl = None

PACKAGE = Path(__file__).resolve().parents[1]
RECORD = 'run.json'
LOG = 'train.log'
LOCK = '.lock'
# MMEngine's lines: Epoch(train)  [3][5/5]  lr: ...  Epoch(val) [3][4/4] ...
EPOCH_LINE = re.compile(r'(Epoch\((train|val)\)\s+\[(\d+)\].*)')
# How a run tells its epochs: number, whether validated, MMEngine's line.
OnEpoch = Callable[[int, bool, str], None]


class TrainingFailed(RuntimeError):
    """A training that ended with another code than 0.

    Args:
        code (int): Exit code; negative for a signal.
        tail (Sequence[str]): Last lines of its output.
        log (Path): All of its output.
    """

    def __init__(self, code: int, tail: Sequence[str], log: Path) -> None:
        super().__init__(f'training ended with code {code}; see {log}')
        self.code = code
        self.tail = list(tail)
        self.log = log


def locate(name: str) -> Path:
    """A file or folder of the checkout, or of the installed package.

    Args:
        name (str): Such as 'configs' or 'tools/train.py'.

    Returns:
        Path: In the checkout if it is there, else where mim looks.
    """
    # Beside an installed package, `tools` may be another project's.
    if (PACKAGE.parent / 'model-index.yml').is_file():
        return PACKAGE.parent / name
    return PACKAGE / '.mim' / name


class Run:
    """One training: its config, options and folder.

    Args:
        name (str): What it is called in messages and tables.
        config (Path): Config file.
        seed (int): Seed.
        run_dir (Path): Work dir of the training.
        options (Sequence[str]): ``key=value`` for ``--cfg-options``.
        record_name (str): File in ``run_dir`` that says what was trained.
            Defaults to 'run.json'.
    """

    def __init__(
        self,
        name: str,
        config: Path,
        seed: int,
        run_dir: Path,
        options: Sequence[str],
        record_name: str = RECORD,
    ) -> None:
        self.name = name
        self.config = config
        self.seed = seed
        self.run_dir = run_dir
        self.options = [f'randomness.seed={seed}', *options]
        self.needs_teacher = any(option.startswith('model.teacher_ckpt=') for option in options)
        self.record = run_dir / record_name
        self.seconds: Optional[float] = None

    def command(self, resume: Optional[str] = None) -> List[str]:
        """Command line of the training.

        Args:
            resume (str, optional): Value of ``--resume``, 'auto' or a
                checkpoint. Defaults to None: from the beginning.

        Returns:
            list[str]: Program and arguments.
        """
        command = [
            sys.executable,
            str(locate('tools/train.py')),
            str(self.config),
            '--work-dir',
            str(self.run_dir),
        ]
        if resume:
            command += ['--resume', resume]
        return command + ['--cfg-options', *self.options]

    def load_config(self) -> Config:
        """The config with the run's options.

        Returns:
            Config: As the training sees it.
        """
        return load_config(self.config, self.options)

    def signature(self) -> str:
        """Changes whenever the config or one of the options does.

        Returns:
            str: Sixteen hex digits.
        """
        return signature(self.load_config())

    def is_empty(self) -> bool:
        """Whether nothing was ever trained here.

        Returns:
            bool: True without a folder, or with an empty one.
        """
        return not self.run_dir.exists() or all(
            path.name == LOCK for path in self.run_dir.iterdir()
        )

    def read_record(self) -> Optional[Dict[str, Any]]:
        """What was trained here.

        Returns:
            dict, optional: The record; None if there is none.

        Raises:
            UsageError: If the file is damaged.
        """
        if not self.record.is_file():
            return None
        try:
            return json.loads(self.record.read_text(encoding='utf-8'))
        except ValueError as error:
            raise UsageError(
                f'{self.record} is damaged ({error}); move {self.run_dir} away.'
            ) from error

    def latest_checkpoint(self, before: Optional[int] = None) -> Optional[Path]:
        """The checkpoint to go on from.

        Args:
            before (int, optional): Epoch that it must not have reached.
                Defaults to None: the latest, as ``--resume auto`` takes it.

        Returns:
            Path, optional: The checkpoint; None if there is none.
        """
        pointer = self.run_dir / 'last_checkpoint'
        if before is None and pointer.is_file():
            checkpoint = self.run_dir / Path(pointer.read_text().strip()).name
            if checkpoint.is_file():
                return checkpoint
        # Killed while the pointer was written, or what it names is gone.
        kept = [
            path
            for path in self.run_dir.glob('epoch_*.pth')
            if before is None or epoch_of(path) < before
        ]
        return max(kept, key=epoch_of, default=None)


def load_config(path: Path, options: Sequence[str]) -> Config:
    """A config as ``tools/train.py`` would see it.

    Args:
        path (Path): Config file.
        options (Sequence[str]): ``key=value`` of ``--cfg-options``.

    Returns:
        Config: The config with the options.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument('--options', nargs='*', action=DictAction)
    config = Config.fromfile(path)
    config.merge_from_dict(parser.parse_args(['--options', *options]).options)
    return config


def signature(config: Config) -> str:
    """Hash of a config; changes whenever a setting does.

    Args:
        config (Config): The complete config.

    Returns:
        str: Sixteen hex digits.
    """
    text = json.dumps(config.to_dict(), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def epoch_of(checkpoint: Optional[Path]) -> int:
    """Epoch that a checkpoint has reached, by its name.

    Args:
        checkpoint (Path, optional): The checkpoint, if there is one.

    Returns:
        int: The epoch, from 1; 0 for none, and if the name does not tell.
    """
    match = re.fullmatch(r'epoch_(\d+)', checkpoint.stem if checkpoint else '')
    return int(match.group(1)) if match else 0


def execute(
    run: Run,
    content: Mapping[str, Any],
    on_epoch: OnEpoch,
    resume: Optional[str] = None,
    env: Optional[Mapping[str, str]] = None,
    on_start: Optional[Callable[[subprocess.Popen], None]] = None,
) -> None:
    """Train in a process of its own; keep its output, record its time.

    Args:
        run (Run): What to train; its ``seconds`` are set.
        content (Mapping): What the record says beside ``finished`` and
            ``seconds``.
        on_epoch (Callable): Called with each line about an epoch; of those
            of a validation, with the one that has the metrics.
        resume (str, optional): Value of ``--resume``. Defaults to None.
        env (Mapping, optional): Environment variables to change. Defaults
            to None.
        on_start (Callable, optional): Called with the process. Defaults to
            None.

    Raises:
        TrainingFailed: If the training does not end with code 0.
        UsageError: If the folder is in use by another process.
    """
    run.run_dir.mkdir(parents=True, exist_ok=True)
    with _hold(run.run_dir) as lock:
        write_whole(run.record, json.dumps(dict(content, finished=False, seconds=None), indent=1))
        started = time.perf_counter()
        code, tail = _watch(run.command(resume), run.run_dir / LOG, on_epoch, env, on_start, lock)
        # What came before an interruption is not known any more.
        run.seconds = None if resume else time.perf_counter() - started
        if code:
            raise TrainingFailed(code, tail, run.run_dir / LOG)
        write_whole(
            run.record, json.dumps(dict(content, finished=True, seconds=run.seconds), indent=1)
        )


def _watch(
    command: Sequence[str],
    log: Path,
    on_epoch: OnEpoch,
    env: Optional[Mapping[str, str]],
    on_start: Optional[Callable[[subprocess.Popen], None]],
    lock: Sequence[int],
) -> Tuple[int, List[str]]:
    """Exit code and last lines of a command whose output goes to a file."""
    tail: collections.deque = collections.deque(maxlen=20)
    with open(log, 'a', encoding='utf-8') as file:
        file.write(f'$ {shlex.join(command)}\n')
        process = _start(command, env, lock)
        try:
            if on_start:
                on_start(process)
            for line in process.stdout:
                file.write(line)
                file.flush()
                tail.append(line.rstrip())
                match = EPOCH_LINE.search(line)
                if match:
                    text, kind, epoch = match.groups()
                    # The last line of a validation has the metrics.
                    if kind == 'val' and ' eta: ' in text:
                        continue
                    on_epoch(int(epoch), kind == 'val', text)
            return process.wait(), list(tail)
        finally:
            stop(process)
            process.stdout.close()


def _start(
    command: Sequence[str], env: Optional[Mapping[str, str]], lock: Sequence[int]
) -> subprocess.Popen:
    """Start a process that finds the package of this checkout."""
    env = {**os.environ, 'PYTHONUNBUFFERED': '1', **(env or {})}
    # Threads that spin while they wait make small nets three times as slow
    # when anything else runs on the machine.
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
        # A group of its own: its data workers are stopped with it.
        start_new_session=True,
        pass_fds=lock,
    )


def stop(*processes: subprocess.Popen, grace: float = 10.0) -> None:
    """End processes and their children; those that have ended are passed over.

    Args:
        *processes (subprocess.Popen): As started here.
        grace (float): Seconds until they are killed. Defaults to 10.
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


@contextlib.contextmanager
def _hold(run_dir: Path) -> Iterator[Tuple[int, ...]]:
    """Lock a run's folder; the training inherits the lock.

    So a second start is refused even if this process was killed and the
    training goes on.
    """
    if fcntl is None:
        yield ()
        return
    with open(run_dir / LOCK, 'w') as file:
        if not _try_lock(file):
            raise in_use_error(run_dir)
        yield (file.fileno(),)


def in_use(run_dir: Path) -> bool:
    """Whether a process trains in this folder now.

    Args:
        run_dir (Path): Work dir of the training.

    Returns:
        bool: False also where files cannot be locked.
    """
    path = run_dir / LOCK
    if fcntl is None or not path.is_file():
        return False
    with open(path) as file:
        return not _try_lock(file)


def in_use_error(run_dir: Path) -> UsageError:
    """What to raise where a process trains already.

    Args:
        run_dir (Path): Work dir of the training.

    Returns:
        UsageError: The error.
    """
    return UsageError(
        f'{run_dir} is in use: another process trains there; wait for it or end it first.'
    )


def _try_lock(file) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


def make_room(run_dir: Path, keep: bool) -> Optional[Path]:
    """Move a run of other settings aside, or remove it.

    Args:
        run_dir (Path): Its folder.
        keep (bool): Whether to keep it, as ``<name>_old<number>``.

    Returns:
        Path, optional: Where it is now.

    Raises:
        UsageError: If a process trains there.
    """
    if in_use(run_dir):
        raise in_use_error(run_dir)
    if not keep:
        shutil.rmtree(run_dir)
        return None
    number = 1
    while (old := run_dir.with_name(f'{run_dir.name}_old{number}')).exists():
        number += 1
    run_dir.rename(old)
    return old


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Args:
        path (Path): The file.
        text (str): Its content.
    """
    part = path.with_name(path.name + '.part')
    part.write_text(text, encoding='utf-8')
    part.replace(path)


def interrupt_on_signals() -> None:
    """Let ``kill`` and a closed terminal end a tool as Ctrl-C does.

    The trainings have sessions of their own, so the terminal does not reach
    them.
    """

    def interrupt(*_) -> None:
        # Once is enough; stopping must not be interrupted.
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    numbers = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, 'SIGHUP', None)
    # nohup asks to go on.
    if hangup and signal.getsignal(hangup) != signal.SIG_IGN:
        numbers.append(hangup)
    for number in numbers:
        signal.signal(number, interrupt)


class Progress:
    """How much of a queue is done, and which lines are worth showing.

    Args:
        work (float): Whole runs to train; a half-finished one counts half.
    """

    def __init__(self, work: float) -> None:
        self.work = work
        self.worked = 0.0
        self._began = time.perf_counter()
        self._running: Dict[str, '_Epochs'] = {}

    def start(self, key: str, epochs: int, reached: int = 0) -> None:
        """A run begins.

        Args:
            key (str): The run.
            epochs (int): Its epochs.
            reached (int): Epochs that it need not repeat. Defaults to 0.
        """
        self._running[key] = _Epochs(epochs, reached)

    def update(self, key: str, epoch: int, validated: bool) -> bool:
        """MMEngine logged an epoch.

        Args:
            key (str): The run.
            epoch (int): Number of the epoch, from 1.
            validated (bool): Whether it is the line of the validation.

        Returns:
            bool: Whether to show it: in every tenth of the epochs, one line
            of training and one of validation.
        """
        state = self._running[key]
        state.epoch = epoch - (not validated)
        step = max(1, state.epochs // 10)
        due = epoch % step == 0 or epoch == state.epochs
        is_first = (epoch, validated) != state.last
        state.last = (epoch, validated)
        return due and is_first

    def finish(self, key: str) -> None:
        """A run ended, or failed: what it left undone is not waited for."""
        state = self._running.pop(key)
        self.work -= max(0.0, 1 - state.epoch / state.epochs)
        self.worked += state.worked

    @property
    def done(self) -> float:
        """float: Work done since the start, in runs."""
        return self.worked + sum(state.worked for state in self._running.values())

    @property
    def elapsed(self) -> str:
        """str: Time since the start, minutes and seconds."""
        return _clock(time.perf_counter() - self._began)

    @property
    def left(self) -> str:
        """str: Time left at the present speed; '?' before the first epoch."""
        if self.done <= 0:
            return '?'
        elapsed = time.perf_counter() - self._began
        return _clock(elapsed / self.done * max(0.0, self.work - self.done))


class _Epochs:
    """Epochs of one run, counted from where it was resumed."""

    def __init__(self, epochs: int, reached: int) -> None:
        self.epochs, self.reached, self.epoch = epochs, reached, reached
        self.last = (0, False)  # line: epoch, whether validated

    @property
    def worked(self) -> float:
        """float: Part of the run that was trained here."""
        return max(0, self.epoch - self.reached) / self.epochs


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f'{minutes}:{seconds:02d}'
