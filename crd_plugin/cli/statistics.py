"""Compare methods seed by seed: differences with confidence intervals, as table and as figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .results import render_cells

if TYPE_CHECKING:
    import pandas as pd

_CONFIDENCE = 0.95
LEGEND = (
    'Differences are means over the seeds that both have; in brackets is the 95 % confidence '
    'interval (t, paired by seed), and * marks one without zero.'
)


def paired_differences(runs: pd.DataFrame, reference: str) -> dict[str, dict[str, Any]]:
    """Subtract a reference from each method, seed by seed, and average.

    The difference is that of the last epoch's top-1. What seeds have in common, such as the order
    of the data, cancels, so the interval is as narrow as the data allow.

    Args:
        runs (DataFrame): One row per run: ``name`` of the method, ``seed``, ``last`` (as from
            :func:`~crd_plugin.cli.results.read_run`).
        reference (str): Name of the method to subtract.

    Returns:
        dict: By name, without the reference and without methods that share no seed with it:
        ``mean``, ``low`` and ``high`` (None with one seed), percent; ``seeds`` that both have;
        ``clear``, whether the interval excludes zero.
    """
    top1 = runs.assign(top1=[last['top1'] for last in runs['last']])
    top1 = top1.pivot(index='seed', columns='name', values='top1')
    found = {}
    for name in dict.fromkeys(runs['name']):
        values = (top1[name] - top1[reference]).dropna()
        if name == reference or values.empty:
            continue
        mean, half = float(values.mean()), _half_width(values)
        found[name] = dict(
            mean=mean,
            low=None if half is None else mean - half,
            high=None if half is None else mean + half,
            seeds=values.index.tolist(),
            clear=half is not None and abs(mean) > half,
        )
    return found


def _half_width(values: pd.Series) -> float | None:
    """Half of the confidence interval of a mean; None for one value."""
    from scipy import stats

    if len(values) < 2:
        return None
    return float(stats.t.ppf((1 + _CONFIDENCE) / 2, len(values) - 1) * values.sem())


def render_differences(
    names: Sequence[str], differences: Mapping[str, Mapping[str, dict[str, Any]]]
) -> str:
    """Write differences as a Markdown table, one column per reference.

    Args:
        names (Sequence[str]): Rows; those without any difference are left out.
        differences (Mapping): By title of the column, what :func:`paired_differences` returns.

    Returns:
        str: The table.
    """
    cells = [['method', *differences]]
    for name in names:
        row = [column.get(name) for column in differences.values()]
        if any(row):
            cells.append([name, *map(_format, row)])
    return render_cells(cells)


def _format(difference: Mapping[str, Any] | None) -> str:
    """Write a difference, for example '+2.10 [+1.26, +2.94] *'."""
    if difference is None:
        return '-'
    text = f'{difference["mean"]:+.2f}'
    if difference['low'] is not None:
        text += f' [{difference["low"]:+.2f}, {difference["high"]:+.2f}]'
    return f'{text} *' if difference['clear'] else text


def plot_accuracies(runs: pd.DataFrame, path: str | Path, title: str = '') -> None:
    """Draw the last top-1 of each method into an image file: seeds, mean and its interval.

    Args:
        runs (DataFrame): As for :func:`paired_differences`.
        path (str | Path): File to write; its suffix is the format.
        title (str): Heading. Defaults to ''.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = runs.assign(top1=[last['top1'] for last in runs['last']]).groupby('name', sort=False)
    figure = Figure(figsize=(7, 1 + 0.4 * len(groups)), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for place, (_, top1) in enumerate(groups['top1']):
        axes.plot(top1, [place] * len(top1), 'o', color='0.6', markersize=4)
        axes.errorbar(top1.mean(), place, xerr=_half_width(top1), fmt='D', color='C0', capsize=4)
    axes.set_yticks(range(len(groups)), list(groups.groups))
    axes.invert_yaxis()
    axes.grid(axis='x', alpha=0.3)
    axes.set(xlabel='top-1 accuracy (%), last epoch: seeds, mean, 95 % interval', title=title)
    figure.savefig(path, dpi=150)
