"""Train several runs side by side and show how far they are."""

import contextlib
import queue
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from subprocess import CalledProcessError

from rich.progress import Progress

from . import launch
from .arguments import UsageError
from .runs import Run

# Name of a place to train at, and its environment variables.
Device = tuple[str, dict[str, str]]


class Display(Progress):
    """Show the ``epochs`` of all running trainings: bars on a terminal, a few lines elsewhere."""

    def __init__(self, epochs: int) -> None:
        super().__init__(disable=not sys.stdout.isatty())
        self.add_task('all runs', total=epochs)
        (self._all,) = self.tasks
        self._began, self._order = time.perf_counter(), threading.RLock()

    @contextlib.contextmanager
    def run(self, title: str, epochs: int, reached: int = 0) -> Iterator[launch.OnEpoch]:
        """Show a run while it is trained, from the epoch that it has ``reached``."""
        bar = self.add_task(title, total=epochs, completed=reached)
        done, last = reached, (0, False)

        def on_epoch(epoch: int, validated: bool, text: str) -> None:
            nonlocal done, last
            with self._order:
                step = max(0, epoch - (not validated) - done)
                done += step
                self.advance(self._all.id, step)
                self.advance(bar, step)
                # In every tenth of the epochs, a line of training and one of validation.
                due = epoch % max(1, epochs // 10) == 0 or epoch == epochs
                if due and (epoch, validated) != last:
                    self.say(f'  [{title}, {self.left} left] {" ".join(text.split())}')
                last = (epoch, validated)

        try:
            yield on_epoch
        finally:
            with self._order:  # what it leaves undone is not waited for
                self.update(self._all.id, total=(self._all.total or 0) - epochs + done)
                self.remove_task(bar)

    def say(self, line: str) -> None:
        """Show a line of text, above the bars if there are any."""
        # Nobody may read it any more; the trainings do not depend on it.
        with self._order, contextlib.suppress(OSError):
            if self.disable:
                sys.stdout.write(f'{line}\n')
                sys.stdout.flush()
            else:
                self.console.print(line, markup=False, highlight=False)

    @property
    def left(self) -> str:
        """str: Minutes and seconds left at the present speed; '?' before the first epoch."""
        if not self._all.completed:
            return '?'
        seconds = (time.perf_counter() - self._began) / self._all.completed
        return '{}:{:02d}'.format(*divmod(round(seconds * (self._all.remaining or 0)), 60))


def train_all(
    runs: Sequence[Run], devices: Sequence[Device], hint: str = 'the same command goes on'
) -> None:
    """Train runs in order, one per device at a time; exit with 1 if any failed, 130 at Ctrl-C."""
    free: queue.SimpleQueue[Device] = queue.SimpleQueue()
    for device in devices:
        free.put(device)
    trainings = launch.Trainings()
    failures: list[str] = []
    display = Display(sum(run.settings.epochs - run.reached for run in runs))

    def train(position: str, run: Run) -> None:
        name, env = device = free.get()
        try:
            run.examine()  # hours may have passed since the runs were listed
            log = run.run_dir / launch.LOG
            display.say(f'{position} ({name}): {run.title}: {run.describe()} -> {log}')
            with display.run(run.title, run.settings.epochs, run.reached) as on_epoch:
                run.train(trainings, on_epoch, env)
            display.say(f'{position} done: {run.title}')
        except Exception as error:  # whatever it is, the others go on
            if not trainings.stopping.is_set():
                failures.append(f'\nfailed: {run.title}: {_reason(error, run)}\n')
                display.say(f'{position} failed: {run.title}')
        finally:
            free.put(device)

    with display, ThreadPoolExecutor(len(devices)) as pool:
        try:
            count = len(runs)
            wait([pool.submit(train, f'{n}/{count}', run) for n, run in enumerate(runs, 1)])
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            trainings.stop()
    if failures:
        sys.stderr.write(
            f'{"".join(failures)}\nerror: {len(failures)} run(s) failed; correct the cause and '
            'repeat the command, finished runs are kept.\n'
        )
    if trainings.stopping.is_set():
        sys.stderr.write(f'interrupted; {hint}.\n')
        raise SystemExit(130)
    if failures:
        raise SystemExit(1)


def _reason(error: Exception, run: Run) -> str:
    """Why a run failed: for a training, the last lines of its log."""
    if isinstance(error, CalledProcessError):
        log = run.run_dir / launch.LOG
        first = f'training ended with code {error.returncode}; last lines of {log}:'
        return '\n    '.join([first, *log.read_text(encoding='utf-8').splitlines()[-10:]])
    return str(error) if isinstance(error, UsageError) else f'{type(error).__name__}: {error}'
