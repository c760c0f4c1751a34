"""Read what MMEngine logged; average and compare it over seeds; make tables and figures of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isnan, sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from .arguments import UsageError
from .reading import parse_json, read_text

if TYPE_CHECKING:
    import pandas as pd

TOP1, TOP5 = 'accuracy/top1', 'accuracy/top5'
_NUMBERS = {TOP1: float | int, TOP5: float | int, 'step': int}
# What is averaged over seeds, and its heading.
METRICS = dict(
    top1_last='top-1 last',
    top5_last='top-5 last',
    top1_best='top-1 best',
    top5_best='top-5 best',
    best_epoch='best epoch',
    seconds='seconds',
)
LEGEND = (
    'Differences are means over the seeds that both have; in brackets is the 95 % confidence '
    'interval (t, paired by seed), and * marks one without zero.'
)


class NoAccuracyError(UsageError):
    """Logs that are whole, but of a run without validation or with other metrics."""


def read_run(run_dir: str | Path) -> dict[str, Any]:
    """Read the validation results of a work dir; of an epoch in several logs the last counts.

    Returns:
        dict: ``epochs`` that were validated, ascending, from 1; ``top1`` and ``top5``, percent, one
        per epoch, None where a run of few classes has no top-5; ``last`` and ``best`` (by top-1,
        the earliest of equals), each a dict of ``epoch``, ``top1`` and ``top5``.

    Raises:
        FileNotFoundError: If there is no ``*/vis_data/scalars.json``.
        NoAccuracyError: If no log has a top-1.
        UsageError: If a log is damaged.
    """
    logs = sorted(Path(run_dir).glob('*/vis_data/scalars.json'))
    if not logs:
        raise FileNotFoundError(
            f'no */vis_data/scalars.json in {run_dir}; give the --work-dir of a run whose '
            'visualizer has a LocalVisBackend.'
        )
    found: dict[int, dict[str, Any]] = {}
    for log in logs:
        for entry in _read_log(log):
            if {TOP1, 'step'} <= entry.keys():
                epoch = int(entry['step'])
                found[epoch] = dict(epoch=epoch, top1=entry[TOP1], top5=entry.get(TOP5))
    if not found:
        raise NoAccuracyError(
            f"{run_dir} has no {TOP1}, which tables show; validate with dict(type='Accuracy')."
        )
    results = [found[epoch] for epoch in sorted(found)]
    epochs, top1, top5 = ([result[key] for result in results] for key in ('epoch', 'top1', 'top5'))
    return dict(
        epochs=epochs,
        top1=top1,
        top5=top5,
        last=results[-1],
        best=max(results, key=lambda result: result['top1']),
    )


def _read_log(log: Path) -> list[dict[str, Any]]:
    """Read a log; leave out a last line that was cut off when the run was killed."""
    entries = []
    lines = read_text(log).splitlines()
    for number, line in enumerate(lines, 1):
        try:
            entries.append(parse_json(line, f'{log}, line {number}', _NUMBERS))
        except ValueError as error:
            if number < len(lines):
                raise UsageError(f'{error} Repeat the run.') from error
    return entries


def mean_and_std(values: Sequence[float]) -> dict[str, float | None] | None:
    """Mean and sample standard deviation, None for one value; None if a value is NaN."""
    mean = fmean(values)
    if isnan(mean):
        return None
    return dict(mean=mean, std=stdev(values) if len(values) > 1 else None)


def with_metrics(runs: pd.DataFrame) -> pd.DataFrame:
    """Add those of ``METRICS`` that the columns ``last`` and ``best``, as of read_run, contain."""
    return runs.assign(
        best_epoch=[best['epoch'] for best in runs['best']],
        **{
            f'{key}_{at}': [epoch[key] for epoch in runs[at]]
            for at in ('last', 'best')
            for key in ('top1', 'top5')
        },
    )


def summarise(runs: pd.DataFrame, metrics: Iterable[str] = METRICS) -> dict[str, dict[str, Any]]:
    """Average metrics, columns of a row per run, over the ``seed`` of each ``name`` of a method."""
    return {
        str(name): dict(
            seeds=group['seed'].tolist(),
            **{key: mean_and_std(group[key].astype(float).tolist()) for key in metrics},
        )
        for name, group in runs.groupby('name', sort=False)
    }


def render_summary(
    summary: Mapping[str, Mapping[str, Any]], metrics: Mapping[str, str] = METRICS
) -> str:
    """Write a summary, as from :func:`summarise`, with a title per metric, as a Markdown table."""
    cells = [['method', 'seeds', *metrics.values()]]
    for name, row in summary.items():
        count = len(row['seeds'])
        digits = dict(best_epoch=int(count > 1), seconds=1, correlation_difference=3)
        values = [format_mean(row[key], digits.get(key, 2)) for key in metrics]
        cells.append([name, str(count), *values])
    return render_cells(cells)


def format_mean(value: Mapping[str, Any] | None, digits: int = 2, absent: str = 'unknown') -> str:
    """Write a dict of mean and standard deviation, for example '75.48 ± 0.12'."""
    if value is None:
        return absent
    spread = '' if value['std'] is None else f' ± {value["std"]:.{digits}f}'
    return f'{value["mean"]:.{digits}f}{spread}'


def render_cells(cells: Sequence[Sequence[str]]) -> str:
    """Align cells, headings first, as a Markdown table that is readable as plain text too."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rule = ['-' * widths[0], *('-' * (width - 1) + ':' for width in widths[1:])]
    lines = []
    for first, *others in [cells[0], rule, *cells[1:]]:
        padded = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
        lines.append(f'| {" | ".join([first.ljust(widths[0]), *padded])} |')
    return '\n'.join(lines)


def paired_differences(
    runs: pd.DataFrame, reference: str, metric: str = 'top1_last'
) -> dict[str, dict[str, Any]]:
    """Subtract a metric of a reference from that of each method, seed by seed, and average.

    Args:
        runs (DataFrame): As for :func:`summarise`.
        reference (str): Name of the method to subtract; it may have no runs.
        metric (str): Column to compare. Defaults to 'top1_last'.

    Returns:
        dict: By name, for methods that share ``seeds`` with the reference: ``mean``, ``low`` and
        ``high`` (None with one seed); ``clear``, whether the interval excludes zero.
    """
    table = runs.pivot(index='seed', columns='name', values=metric)
    if reference not in table:
        return {}
    found = {}
    for name in dict.fromkeys(runs['name']):
        values = (table[name] - table[reference]).dropna()
        if name == reference or values.empty:
            continue
        mean, half = fmean(values), _half_width(values.tolist())
        low, high = (None, None) if half is None else (mean - half, mean + half)
        clear = half is not None and abs(mean) > half
        found[name] = dict(mean=mean, low=low, high=high, seeds=values.index.tolist(), clear=clear)
    return found


def _half_width(values: Sequence[float]) -> float | None:
    """Half of the 95 % confidence interval of a mean; None for one value."""
    from scipy import stats

    if len(values) < 2:
        return None
    return float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / sqrt(len(values))


def render_differences(
    names: Sequence[str], differences: Mapping[str, Mapping[str, dict[str, Any]]]
) -> str:
    """Write columns of :func:`paired_differences` by title as Markdown, or '' if all are empty."""
    columns = {title: column for title, column in differences.items() if column}
    cells = [['method', *columns]]
    for name in names:
        row = [column.get(name) for column in columns.values()]
        if any(row):
            cells.append([name, *map(_format_difference, row)])
    return f'{render_cells(cells)}\n\n{LEGEND}' if columns else ''


def _format_difference(difference: Mapping[str, Any] | None) -> str:
    """Write a difference, for example '+2.10 [+1.26, +2.94] *'."""
    if difference is None:
        return '-'
    text = f'{difference["mean"]:+.2f}'
    if difference['low'] is not None:
        text += f' [{difference["low"]:+.2f}, {difference["high"]:+.2f}]'
    return f'{text} *' if difference['clear'] else text


def prepare(file: Path, flag: str, figure: bool = False) -> None:
    """Refuse a file that cannot be written, before any work is done for it; make its folder."""
    if file.is_dir():
        raise UsageError(f'{flag} {file} is a folder, expected a file.')
    if figure:
        kinds = new_axes(1, 1).figure.canvas.get_supported_filetypes()
        if file.suffix[1:].lower() not in kinds:
            known = ', '.join(f'.{kind}' for kind in kinds)
            raise UsageError(f'{flag} {file}: expected a file that ends in one of {known}.')
    file.parent.mkdir(parents=True, exist_ok=True)


def new_axes(width: float, height: float) -> Any:
    """Axes that fill a new figure; inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout='constrained').subplots()


def plot_curves(runs: pd.DataFrame, path: str | Path, title: str = '') -> None:
    """Draw top-1 over the epochs of all seeds, a line per method: mean, lowest and highest."""
    axes = new_axes(7, 4.5)
    rows = runs.explode(['epochs', 'top1']).astype({'epochs': int, 'top1': float})
    for name, group in rows.groupby('name', sort=False):
        curves = group.pivot(index='epochs', columns='seed', values='top1').dropna()
        marker = 'o' if len(curves) == 1 else None
        (line,) = axes.plot(curves.index, curves.mean(axis=1), marker=marker, label=name)
        low, high = curves.min(axis=1), curves.max(axis=1)
        axes.fill_between(curves.index, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(xlabel='epoch', ylabel='top-1 accuracy (%)', title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    axes.figure.savefig(path, dpi=150)


def plot_accuracies(runs: pd.DataFrame, path: str | Path, title: str = '') -> None:
    """Draw the last top-1 of each method into an image: seeds, mean and its interval."""
    groups = list(runs.groupby('name', sort=False))
    axes = new_axes(7, 1 + 0.4 * len(groups))
    for place, (_, group) in enumerate(groups):
        top1 = [last['top1'] for last in group['last']]
        axes.plot(top1, [place] * len(top1), 'o', color='0.6', markersize=4)
        axes.errorbar(fmean(top1), place, xerr=_half_width(top1), fmt='D', color='C0', capsize=4)
    axes.set_yticks(range(len(groups)), [name for name, _ in groups])
    axes.invert_yaxis()
    axes.grid(axis='x', alpha=0.3)
    axes.set(xlabel='top-1 accuracy (%), last epoch: seeds, mean, 95 % interval', title=title)
    axes.figure.savefig(path, dpi=150)
