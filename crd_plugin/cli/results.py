"""Reads what MMEngine logged and makes tables and curves of it."""

import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Union

TOP1, TOP5 = 'accuracy/top1', 'accuracy/top5'


@dataclass
class RunResult:
    """Validation results of one run.

    Args:
        name (str): Method; runs of equal name are one row of a table.
        seed (int): Seed of the run.
        epochs (list[int]): Epochs that were validated, ascending, from 1.
        top1 (list[float]): Percent, one an epoch.
        top5 (list[float]): Percent, one an epoch.
        seconds (float, optional): Wall time of the whole process. None if it
            is unknown, as for a run that was interrupted and resumed.
    """

    name: str
    seed: int
    epochs: List[int]
    top1: List[float]
    top5: List[float]
    seconds: Optional[float] = None

    @property
    def best(self) -> int:
        """int: Place of the best epoch by top-1; the earliest of equals."""
        return self.top1.index(max(self.top1))

    def as_dict(self) -> dict:
        """Numbers for a JSON file, last and best epoch spelt out.

        Returns:
            dict: All fields, and ``last`` and ``best`` with epoch, top-1 and
            top-5.
        """
        numbers = asdict(self)
        for key, at in (('last', -1), ('best', self.best)):
            numbers[key] = dict(epoch=self.epochs[at], top1=self.top1[at], top5=self.top5[at])
        return numbers


def read_run(
    run_dir: Union[str, Path], name: str, seed: int = 0, seconds: Optional[float] = None
) -> RunResult:
    """Read the validation results of a work dir.

    A resumed run has one log folder for each start; where they give the same
    epoch, the later one counts.

    Args:
        run_dir (str | Path): The run's ``--work-dir``.
        name (str): Method, for the table.
        seed (int): Seed of the run. Defaults to 0.
        seconds (float, optional): Wall time, if known.

    Returns:
        RunResult: Top-1 and top-5 of every validated epoch.

    Raises:
        FileNotFoundError: If there is no ``*/vis_data/scalars.json``.
        ValueError: If a log is damaged or has no top-1 and top-5. A last line
            that was cut off is left out.
    """
    logs = sorted(Path(run_dir).glob('*/vis_data/scalars.json'))
    if not logs:
        raise FileNotFoundError(
            f'No */vis_data/scalars.json in {run_dir}; give the --work-dir of '
            'a run whose visualizer has a LocalVisBackend.'
        )
    found: Dict[int, dict] = {}
    for log in logs:
        lines = log.read_text().splitlines()
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
            except json.JSONDecodeError as error:
                if number == len(lines):  # cut off when the run was killed
                    continue
                raise ValueError(
                    f'{log}, line {number} is not JSON: {error}. Repeat the run.'
                ) from error
            if TOP1 in entry and TOP5 in entry:
                found[int(entry['step'])] = entry
    if not found:
        raise ValueError(
            f"{run_dir} has no {TOP1} and {TOP5}; validate with dict(type='Accuracy', topk=(1, 5))."
        )
    epochs = sorted(found)
    return RunResult(
        name=name,
        seed=seed,
        epochs=epochs,
        top1=[found[epoch][TOP1] for epoch in epochs],
        top5=[found[epoch][TOP5] for epoch in epochs],
        seconds=seconds,
    )


def summarise(runs: Sequence[RunResult]) -> List[dict]:
    """Mean and standard deviation over the seeds of each method.

    Args:
        runs (Sequence[RunResult]): Runs in any order.

    Returns:
        list[dict]: One row a method, in order of first appearance: ``name``,
        ``seeds`` and, for each of ``top1_last``, ``top5_last``,
        ``top1_best``, ``top5_best`` (top-5 at the epoch of best top-1),
        ``best_epoch`` and ``seconds``, a dict of ``mean`` and ``std`` (sample
        standard deviation, None for one seed). ``seconds`` is None when a
        run's time is unknown.
    """
    rows = []
    for name in dict.fromkeys(run.name for run in runs):
        group = [run for run in runs if run.name == name]
        seconds = [run.seconds for run in group]
        rows.append(
            dict(
                name=name,
                seeds=[run.seed for run in group],
                top1_last=_mean_std([run.top1[-1] for run in group]),
                top5_last=_mean_std([run.top5[-1] for run in group]),
                top1_best=_mean_std([run.top1[run.best] for run in group]),
                top5_best=_mean_std([run.top5[run.best] for run in group]),
                best_epoch=_mean_std([run.epochs[run.best] for run in group]),
                seconds=None if None in seconds else _mean_std(seconds),
            )
        )
    return rows


def render_table(rows: Sequence[dict]) -> str:
    """Write rows as a Markdown table, readable as plain text too.

    Args:
        rows (Sequence[dict]): As from :func:`summarise`.

    Returns:
        str: The table without a final line break.
    """
    cells = [
        [
            'method',
            'seeds',
            'top-1 last',
            'top-5 last',
            'top-1 best',
            'top-5 best',
            'best epoch',
            'seconds',
        ]
    ]
    for row in rows:
        cells.append(
            [
                row['name'],
                str(len(row['seeds'])),
                *(
                    _cell(row[key], 2)
                    for key in ('top1_last', 'top5_last', 'top1_best', 'top5_best')
                ),
                _cell(row['best_epoch'], 0 if len(row['seeds']) == 1 else 1),
                _cell(row['seconds'], 1),
            ]
        )
    return render_cells(cells)


def render_cells(cells: Sequence[Sequence[str]]) -> str:
    """Align cells as a Markdown table, the first column to the left.

    Args:
        cells (Sequence[Sequence[str]]): Lines of equal length, the headings
            first.

    Returns:
        str: The table without a final line break.
    """
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = []
    for line in cells:
        padded = [
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths))
        ]
        lines.append(f'| {" | ".join(padded)} |')
    rule = ['-' * width if i == 0 else '-' * (width - 1) + ':' for i, width in enumerate(widths)]
    lines.insert(1, f'| {" | ".join(rule)} |')
    return '\n'.join(lines)


def plot_curves(runs: Sequence[RunResult], path: Union[str, Path], title: str = '') -> None:
    """Draw top-1 over epochs, one line a method, into an image file.

    The line is the mean over seeds, the band reaches from the lowest to the
    highest. Runs of one method must have been validated at the same epochs.

    Args:
        runs (Sequence[RunResult]): Runs in any order.
        path (str | Path): File to write; its suffix is the format.
        title (str): Heading. Defaults to ''.

    Raises:
        ImportError: If Matplotlib is not installed.
        ValueError: If the epochs of one method's runs differ.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'plot_curves needs Matplotlib; install it with `pip install matplotlib`.'
        ) from error
    figure = Figure(figsize=(7, 4.5), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name in dict.fromkeys(run.name for run in runs):
        group = [run for run in runs if run.name == name]
        epochs = group[0].epochs
        for run in group:
            if run.epochs != epochs:
                raise ValueError(
                    f'{name}: seed {run.seed} was validated at other epochs '
                    f'({run.epochs[0]} to {run.epochs[-1]}) than seed '
                    f'{group[0].seed} ({epochs[0]} to {epochs[-1]}); finish '
                    'or repeat it.'
                )
        columns = list(zip(*(run.top1 for run in group)))
        marker = 'o' if len(epochs) == 1 else None
        (line,) = axes.plot(
            epochs, [statistics.fmean(column) for column in columns], marker=marker, label=name
        )
        if len(group) > 1:
            axes.fill_between(
                epochs,
                [min(column) for column in columns],
                [max(column) for column in columns],
                color=line.get_color(),
                alpha=0.15,
                linewidth=0,
            )
    axes.set(xlabel='epoch', ylabel='top-1 accuracy (%)', title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def _mean_std(values: Sequence[float]) -> dict:
    std = statistics.stdev(values) if len(values) > 1 else None
    return dict(mean=statistics.fmean(values), std=std)


def _cell(value: Optional[dict], digits: int) -> str:
    if value is None:
        return 'unknown'
    text = f'{value["mean"]:.{digits}f}'
    if value['std'] is not None:
        text += f' ± {value["std"]:.{digits}f}'
    return text
