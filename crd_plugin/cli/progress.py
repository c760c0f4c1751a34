"""Progress of several trainings: bars on a terminal, a few lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from rich.progress import Progress

from .launch import OnEpoch


class Display:
    """Show the epochs of running trainings and the time that is left.

    A context manager; its methods may be called from several threads.

    Args:
        work (float): Runs to train; a half-finished one counts half.
    """

    def __init__(self, work: float) -> None:
        self.work = work
        self.done = 0.0
        self._began = time.perf_counter()
        self._lock = threading.RLock()
        self._bars = Progress(disable=not sys.stdout.isatty())
        self._whole = self._bars.add_task('all runs', total=work)

    def __enter__(self) -> Display:
        self._bars.start()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._bars.stop()

    @contextlib.contextmanager
    def run(self, title: str, epochs: int, reached: int = 0) -> Iterator[OnEpoch]:
        """Show a run while it is trained; what it leaves undone is not waited for.

        Args:
            title (str): Name of the run.
            epochs (int): Epochs of a whole training.
            reached (int): Epochs that need not be repeated. Defaults to 0.

        Yields:
            Callable: To be called with number, whether validated, and line of each epoch. In every
            tenth of the epochs it shows one line of training and one of validation.
        """
        task = self._bars.add_task(title, total=epochs, completed=reached)
        left, last = epochs - reached, (0, False)

        def on_epoch(epoch: int, validated: bool, text: str) -> None:
            nonlocal left, last
            with self._lock:
                remaining = min(left, epochs - epoch + (not validated))
                self.done += (left - remaining) / epochs
                left = remaining
                self._bars.update(task, completed=epochs - left)
                self._bars.update(self._whole, completed=self.done)
                due = epoch % max(1, epochs // 10) == 0 or epoch == epochs
                if due and (epoch, validated) != last:
                    self.say(f'  [{title}, {self.left} left] {" ".join(text.split())}')
                last = (epoch, validated)

        try:
            yield on_epoch
        finally:
            with self._lock:
                self.work -= left / epochs
                self._bars.update(self._whole, total=self.work)
                self._bars.remove_task(task)

    def say(self, line: str) -> None:
        """Show a line of text, above the bars if there are any."""
        # Nobody may read it any more; the trainings do not depend on it.
        with self._lock, contextlib.suppress(OSError):
            if self._bars.disable:
                sys.stdout.write(f'{line}\n')
                sys.stdout.flush()
            else:
                self._bars.console.print(line, markup=False, highlight=False)

    @property
    def left(self) -> str:
        """str: Minutes and seconds left at the present speed; '?' before the first epoch."""
        if self.done <= 0:
            return '?'
        elapsed = time.perf_counter() - self._began
        minutes, seconds = divmod(round(elapsed / self.done * max(0.0, self.work - self.done)), 60)
        return f'{minutes}:{seconds:02d}'
