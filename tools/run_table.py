"""Train the cells of a table: ``run_table.py CONFIG... --seeds 0 1 2``.

One training for each config and seed, each by tools/train.py in a process of
its own, one a GPU at a time; all configs with the first seed come first. The
same command goes on after an interruption: finished runs are kept, others
resume from their latest checkpoint. A run whose settings or teacher changed
starts anew, and the old one is moved to seed_<seed>_old1.
"""

import argparse
import contextlib
import functools
import glob
import hashlib
import os
import queue
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

from crd_plugin.cli import arguments as cli
from crd_plugin.cli import launch
from crd_plugin.cli.results import read_run

# What is to be done with a run.
DONE, RESUMED, NEW = 'done', 'resumes', 'new'
CHANGED, IN_USE = 'settings changed', 'in use'
# MMEngine does not promise that configs can be read side by side.
_CONFIG_LOCK = threading.Lock()


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parse the command line.

    Args:
        argv (Sequence[str], optional): Arguments; defaults to those of the
            command line.

    Returns:
        argparse.Namespace: The parsed arguments.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        'configs',
        nargs='+',
        metavar='CONFIG',
        help='config file, folder of configs (its _base_ left out) or glob',
    )
    parser.add_argument(
        '--seeds',
        type=int,
        nargs='+',
        default=[0],
        metavar='SEED',
        help='seeds of each config; default: 0',
    )
    devices = parser.add_mutually_exclusive_group()
    devices.add_argument(
        '--gpus',
        nargs='+',
        metavar='GPU',
        help='GPUs to use, as in CUDA_VISIBLE_DEVICES: 0,1 or 0 1; default: all',
    )
    devices.add_argument(
        '--jobs',
        type=int,
        metavar='N',
        help='train N at a time on the CPU; default without a GPU: 1',
    )
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=Path('work_dirs'),
        metavar='DIR',
        help='runs go to DIR/<config>/seed_<seed>; default: work_dirs',
    )
    parser.add_argument(
        '--dry-run', action='store_true', help='only list the runs and what would be done with each'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='replace settings of every config',
    )
    args = parser.parse_args(argv)
    args.seeds = list(dict.fromkeys(args.seeds))
    if min(args.seeds) < 0:
        parser.error(f'--seeds {min(args.seeds)}: a seed is at least 0')
    if args.jobs is not None and args.jobs < 1:
        parser.error(f'--jobs {args.jobs}: at least 1 training is needed')
    for option in args.cfg_options:
        key, equals, _ = option.partition('=')
        if not equals:
            parser.error(f'--cfg-options {option}: expected KEY=VALUE')
        if key == 'randomness.seed':
            parser.error(f'--cfg-options {option}: give --seeds instead')
    return args


def find_configs(words: Sequence[str]) -> List[Path]:
    """Config files that the command line names, each once.

    Args:
        words (Sequence[str]): Files, folders and globs.

    Returns:
        list[Path]: In the order given, sorted within a folder or glob.

    Raises:
        UsageError: If a word names no config, or two would share a folder.
    """
    found: Dict[Path, Path] = {}
    for word in words:
        if os.path.isdir(word):
            paths = Path(word).rglob('*.py')
        elif glob.has_magic(word):
            paths = map(Path, glob.glob(word, recursive=True))
        else:
            cli.load_config(word)  # says which the nearest are
            paths = [Path(word)]
        configs = sorted(
            path for path in paths if path.suffix == '.py' and '_base_' not in path.parts
        )
        if not configs:
            raise cli.UsageError(
                f'CONFIG {word} names no config; expected a .py file outside '
                '_base_, or a folder or glob with some.'
            )
        for path in configs:
            found.setdefault(path.resolve(), path)
    by_name: Dict[str, Path] = {}
    for path in found.values():
        other = by_name.setdefault(path.stem, path)
        if other is not path:
            raise cli.UsageError(
                f'CONFIG {other} and {path} have one name and would share a '
                'folder; run them with two --work-dir.'
            )
    return list(found.values())


class Cell:
    """A config with the options: what all of its seeds share.

    Args:
        path (Path): Config file.
        options (Sequence[str]): ``key=value`` for ``--cfg-options``.

    Raises:
        UsageError: If the config does not say how long it trains.
    """

    def __init__(self, path: Path, options: Sequence[str]) -> None:
        self.path, self.options = path, list(options)
        config = launch.load_config(path, options)
        self.epochs = (config.get('train_cfg') or {}).get('max_epochs')
        if not self.epochs:
            raise cli.UsageError(
                f'{path} has no train_cfg.max_epochs; run_table.py needs it '
                'to tell which runs are finished.'
            )
        self._interval = 0
        if config.get('val_cfg') is not None:
            self._interval = config.train_cfg.get('val_interval', 1)
        # StagedTrainLoop validates in the last stage only.
        first = config.train_cfg.get('stage_epochs') or {}
        self._begin = config.train_cfg.get('val_begin') or 1 + sum(first.values())
        self.warning = _batch_warning(config)
        self._teacher = (config.get('model') or {}).get('teacher_ckpt')
        (config.get('randomness') or {}).pop('seed', None)
        self.signature = launch.signature(config)

    def validates(self, epoch: int) -> bool:
        """Whether an epoch ends with a validation.

        Args:
            epoch (int): Number of the epoch, from 1.

        Returns:
            bool: As MMEngine's loop decides.
        """
        return (
            bool(self._interval)
            and epoch >= self._begin
            and (epoch % self._interval == 0 or epoch == self.epochs)
        )

    def teacher(self) -> Tuple[str, str]:
        """The teacher's checkpoint.

        Returns:
            tuple: SHA-256 of the file, or its address, or ''; and the path,
            if there is no such file.
        """
        path = self._teacher or ''
        if not path or '://' in path:
            return path, ''
        path = os.path.expanduser(path)
        if not os.path.isfile(path):
            return '', path
        return _sha256(path, os.stat(path).st_mtime_ns), ''


@functools.lru_cache(maxsize=None)
def _sha256(path: str, changed: int) -> str:
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        for block in iter(lambda: file.read(1 << 20), b''):
            digest.update(block)
    return digest.hexdigest()


def _batch_warning(config) -> str:
    """What is wrong with the batch of one GPU, if anything."""
    batch = (config.get('train_dataloader') or {}).get('batch_size')
    scale = config.get('auto_scale_lr') or {}
    base = scale.get('base_batch_size')
    if not batch or not base or batch == base or scale.get('enable'):
        return ''
    return (
        f'the learning rate is for batches of {base}, one GPU has '
        f'{batch}; add --cfg-options train_dataloader.batch_size={base} '
        'or auto_scale_lr.enable=True'
    )


class Job:
    """One run and what is to be done with it.

    Args:
        cell (Cell): Its config.
        seed (int): Its seed.
        work_dir (Path): Folder of the whole table.

    Raises:
        UsageError: If the run's folder holds something else.
    """

    def __init__(self, cell: Cell, seed: int, work_dir: Path) -> None:
        name = cell.path.stem
        self.cell = cell
        self.run = launch.Run(name, cell.path, seed, work_dir / name / f'seed_{seed}', cell.options)
        self.title = f'{name}, seed {seed}'
        self.epochs = cell.epochs
        self.examine()

    def examine(self) -> None:
        """Look at the teacher and the run's folder, now.

        Raises:
            UsageError: If the folder holds something else.
        """
        self.teacher, self.missing = self.cell.teacher()
        self.checkpoint: Optional[Path] = None
        self.state = self._state()

    def _state(self) -> str:
        run = self.run
        if run.is_empty():
            return NEW
        if launch.in_use(run.run_dir):
            return IN_USE
        record = run.read_record()
        if record is None:
            raise cli.UsageError(
                f'{run.run_dir} is not empty and no run of run_table.py; '
                'move it or give another --work-dir.'
            )
        checkpoint = run.latest_checkpoint()
        same = record.get('signature') == self.cell.signature
        if not self.missing:  # else there is nothing to compare
            same = same and record.get('teacher') == self.teacher
        if not same:
            self.checkpoint = checkpoint
            return CHANGED
        if record['finished']:
            return DONE
        epoch = launch.epoch_of(checkpoint)
        if epoch and self.cell.validates(epoch) and not self._validated(epoch):
            # Killed between a checkpoint and its validation, which resuming
            # from that checkpoint would leave out. Only of the last epoch is
            # it worth to start anew.
            earlier = run.latest_checkpoint(before=epoch)
            if earlier or epoch >= self.epochs:
                checkpoint = earlier
        elif epoch >= self.epochs:
            return DONE
        self.checkpoint = checkpoint
        return RESUMED if checkpoint else NEW

    def _validated(self, epoch: int) -> bool:
        """Whether the log has the validation of an epoch."""
        try:
            result = read_run(self.run.run_dir, self.run.name)
        except (FileNotFoundError, ValueError):
            return False
        return epoch in result.epochs

    @property
    def reached(self) -> int:
        """int: Epochs that need not be trained again."""
        return launch.epoch_of(self.checkpoint) if self.state == RESUMED else 0

    def describe(self) -> str:
        """State in words.

        Returns:
            str: Such as 'resumes at epoch 3 of 240'.
        """
        text = self.state
        if self.state == RESUMED and self.reached:
            text = f'resumes at epoch {self.reached + 1} of {self.epochs}'
        elif self.state == RESUMED:
            text = f'resumes from {self.checkpoint.name}'
        elif self.state == CHANGED:
            text += ', starts anew'
        if self.missing and self.state != DONE:
            text += f', teacher {self.missing} is missing'
        return text

    def train(self, on_epoch: launch.OnEpoch, **kwargs: Any) -> None:
        """Train what is left.

        Args:
            on_epoch (Callable): As for :func:`launch.execute`.
            **kwargs: As for :func:`launch.execute`.

        Raises:
            UsageError: If the teacher is missing, the config has changed or
                the folder is in use.
            TrainingFailed: If the training fails.
        """
        # Hours may have passed since the runs were listed.
        self.examine()
        if self.state == DONE:
            return
        if self.state == IN_USE:
            raise launch.in_use_error(self.run.run_dir)
        with _CONFIG_LOCK:
            now = Cell(self.cell.path, self.cell.options).signature
        if now != self.cell.signature:
            raise cli.UsageError(
                f'{self.cell.path} or a base of it has changed since this '
                'table was started; start it again.'
            )
        if self.missing:
            raise cli.UsageError(
                f'the teacher {self.missing} does not exist; train it first '
                'or give --cfg-options model.teacher_ckpt=FILE.'
            )
        if self.state == CHANGED:
            launch.make_room(self.run.run_dir, keep=bool(self.checkpoint))
        content = dict(
            config=self.run.config.as_posix(),
            seed=self.run.seed,
            options=self.cell.options,
            epochs=self.epochs,
            signature=self.cell.signature,
            teacher=self.teacher,
        )
        resume = str(self.checkpoint) if self.state == RESUMED else None
        launch.execute(self.run, content, on_epoch, resume=resume, **kwargs)


def plan(args: argparse.Namespace) -> List[Job]:
    """All runs, one seed after the other.

    Args:
        args (argparse.Namespace): The parsed command line.

    Returns:
        list[Job]: In the order of training.

    Raises:
        UsageError: If there is nothing to queue or something in the way.
    """
    cells = [Cell(path, args.cfg_options) for path in find_configs(args.configs)]
    return [Job(cell, seed, args.work_dir) for seed in args.seeds for cell in cells]


def find_devices(
    gpus: Optional[Sequence[str]], jobs: Optional[int]
) -> List[Tuple[str, Dict[str, str]]]:
    """Places to train at, with their environment variables.

    Args:
        gpus (Sequence[str], optional): Value of ``--gpus``.
        jobs (int, optional): Value of ``--jobs``.

    Returns:
        list[tuple]: Name and variables; one training runs at each at a time.

    Raises:
        UsageError: If a GPU is not there.
    """
    if jobs is None:
        import torch

        # What the variable names, and what it hides, is asked for here.
        visible = os.environ.pop('CUDA_VISIBLE_DEVICES', None)
        number = torch.cuda.device_count()
        if visible is not None:
            os.environ['CUDA_VISIBLE_DEVICES'] = visible
        names = [name for word in gpus or [] for name in word.split(',') if name]
        if gpus is None:
            names = list(map(str, range(number)))
            if visible is not None and number:
                names = [name for name in visible.split(',') if name]
        for name in names:
            if not number or name.isdigit() and int(name) >= number:
                raise cli.UsageError(
                    f'--gpus {name}: this machine has {number} GPU(s), '
                    'counted from 0; name others, or use --jobs 1 for the '
                    'CPU.'
                )
        if len(set(names)) < len(names):
            raise cli.UsageError(f'--gpus {",".join(names)} names a GPU twice; name each once.')
        if names:
            return [(f'gpu {name}', dict(CUDA_VISIBLE_DEVICES=name)) for name in names]
    places = jobs or 1
    env = dict(CUDA_VISIBLE_DEVICES='')
    if places > 1 and 'OMP_NUM_THREADS' not in os.environ:
        env['OMP_NUM_THREADS'] = str(max(1, (os.cpu_count() or 1) // places))
    return [('cpu', env)] * places


class Table:
    """Trains jobs side by side and says how far they are.

    Args:
        jobs (Sequence[Job]): What to train.
        devices (Sequence[tuple]): As from :func:`find_devices`.
    """

    def __init__(self, jobs: Sequence[Job], devices: Sequence[Tuple[str, Dict[str, str]]]) -> None:
        self.devices = devices
        self.failures: List[Tuple[Job, Exception]] = []
        self.total = len(jobs)
        self.progress = launch.Progress(sum(1 - job.reached / job.epochs for job in jobs))
        self._waiting: 'queue.SimpleQueue' = queue.SimpleQueue()
        for number, job in enumerate(jobs, 1):
            self._waiting.put((number, job))
        self._lock = threading.Lock()
        self._processes: Dict[Job, subprocess.Popen] = {}
        self._stopping = False

    def train(self) -> None:
        """Train all; go on where one fails.

        Raises:
            KeyboardInterrupt: If asked to stop; the trainings have ended.
        """
        threads = [
            threading.Thread(target=self._work, args=device, daemon=True)
            for device in self.devices[: self.total]
        ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.5)
        except KeyboardInterrupt:
            with self._lock:
                self._stopping = True
                processes = list(self._processes.values())
            launch.stop(*processes)
            for thread in threads:
                thread.join()
            raise

    def _work(self, device: str, env: Dict[str, str]) -> None:
        """Train one job after the other at one place."""
        while not self._stopping:
            try:
                number, job = self._waiting.get_nowait()
            except queue.Empty:
                return
            with self._lock:
                self.progress.start(job.title, job.epochs, job.reached)
                self._say(
                    f'{number}/{self.total} ({device}): {job.title}: '
                    f'{job.describe()} -> '
                    f'{job.run.run_dir / launch.LOG}'
                )
            error = self._train(job, env)
            with self._lock:
                self.progress.finish(job.title)
                if self._stopping:
                    return
                if error is not None:
                    self.failures.append((job, error))
                    self._say(f'{number}/{self.total} failed: {job.title}')
                else:
                    self._say(f'{number}/{self.total} done: {job.title}{_outcome(job)}')

    def _train(self, job: Job, env: Dict[str, str]) -> Optional[Exception]:
        """Train one job; what went wrong is returned, others go on."""

        def on_start(process: subprocess.Popen) -> None:
            with self._lock:
                self._processes[job] = process
                stopping = self._stopping
            if stopping:
                launch.stop(process)

        def on_epoch(epoch: int, validated: bool, text: str) -> None:
            with self._lock:
                if self.progress.update(job.title, epoch, validated):
                    self._say(
                        f'  [{job.title}, {self.progress.left} left] {" ".join(text.split())}'
                    )

        try:
            job.train(on_epoch, env=env, on_start=on_start)
        except Exception as error:  # whatever it is, the others go on
            return error
        finally:
            with self._lock:
                self._processes.pop(job, None)
        return None

    @staticmethod
    def _say(line: str) -> None:
        # Nobody may read it any more; the trainings do not depend on it.
        with contextlib.suppress(OSError):
            sys.stdout.write(f'{line}\n')
            sys.stdout.flush()


def _outcome(job: Job) -> str:
    """Accuracies of a finished run, if it was validated."""
    try:
        result = read_run(job.run.run_dir, job.run.name)
    except (FileNotFoundError, ValueError):
        return ''
    best = result.best
    return (
        f', top-1 {result.top1[-1]:.2f}, best {result.top1[best]:.2f} '
        f'at epoch {result.epochs[best]}'
    )


def report_failures(failures: Sequence[Tuple[Job, Exception]]) -> None:
    """Write what failed to stderr: last lines of each log and its path.

    Args:
        failures (Sequence[tuple]): Jobs and errors.
    """
    for job, error in failures:
        reason = str(error)
        if not isinstance(error, (cli.UsageError, launch.TrainingFailed)):
            reason = f'{type(error).__name__}: {error}'
        if isinstance(error, launch.TrainingFailed):
            reason = f'training ended with code {error.code}; last lines of {error.log}:'
            reason = '\n    '.join([reason, *error.tail[-10:]])
        sys.stderr.write(f'\nfailed: {job.title}: {reason}\n')
    sys.stderr.write(
        f'\nerror: {len(failures)} run(s) failed; the same '
        'command repeats them once the cause is mended.\n'
    )


def _warn(cells: Iterable[Cell]) -> None:
    """Write each warning once, however many configs it is about."""
    paths: Dict[str, List[str]] = {}
    for cell in cells:
        if cell.warning:
            paths.setdefault(cell.warning, []).append(str(cell.path))
    for warning, named in paths.items():
        more = f' and {len(named) - 1} more' if len(named) > 1 else ''
        sys.stderr.write(f'warning: {named[0]}{more}: {warning}.\n')


def main(argv: Optional[Sequence[str]] = None) -> None:
    """List or train all runs.

    Args:
        argv (Sequence[str], optional): Arguments; defaults to those of the
            command line.

    Raises:
        UsageError: If an argument cannot be.
        SystemExit: With status 1 if a run failed, 130 if interrupted.
    """
    args = parse_args(argv)
    jobs = plan(args)
    counts = Counter(job.state for job in jobs)
    lines = []
    if args.dry_run:
        width = max(len(job.title) for job in jobs)
        lines = [f'{job.title:<{width}}  {job.describe()}' for job in jobs]
    lines.append(
        f'{len(jobs)} runs: ' + ', '.join(f'{number} {state}' for state, number in counts.items())
    )
    sys.stdout.write('\n'.join(lines) + '\n')
    sys.stdout.flush()
    _warn(dict.fromkeys(job.cell for job in jobs))
    if args.dry_run:
        return
    missing = [job for job in jobs if job.state != DONE]
    table = Table(missing, find_devices(args.gpus, args.jobs))
    interrupted = False
    try:
        table.train()
    except KeyboardInterrupt:
        interrupted = True
    if table.failures:
        report_failures(table.failures)
    if interrupted:
        sys.stderr.write('interrupted; the same command goes on.\n')
        raise SystemExit(130)
    if table.failures:
        raise SystemExit(1)


if __name__ == '__main__':
    launch.interrupt_on_signals()
    sys.exit(cli.run(main))
