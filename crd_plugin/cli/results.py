"""Read what MMEngine logged; average it over seeds; make tables and curves of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .reading import parse_json, read_text

if TYPE_CHECKING:
    import pandas as pd

TOP1, TOP5 = 'accuracy/top1', 'accuracy/top5'
_NUMBERS: dict[str, tuple[type, ...]] = {TOP1: (float, int), TOP5: (float, int), 'step': (int,)}
# Columns of a summary, and which number of which epoch they average.
METRICS = dict(
    top1_last=('last', 'top1'),
    top5_last=('last', 'top5'),
    top1_best=('best', 'top1'),
    top5_best=('best', 'top5'),
    best_epoch=('best', 'epoch'),
)


def read_run(run_dir: str | Path) -> dict[str, Any]:
    """Read the validation results of a work dir.

    A resumed run has one log folder per start; where they give the same epoch, the later one
    counts.

    Args:
        run_dir (str | Path): The run's ``--work-dir``.

    Returns:
        dict: ``epochs`` that were validated, ascending, from 1; ``top1`` and ``top5``, percent, one
        per epoch; ``last`` and ``best`` (by top-1, the earliest of equals), each a dict of
        ``epoch``, ``top1`` and ``top5``.

    Raises:
        FileNotFoundError: If there is no ``*/vis_data/scalars.json``.
        ValueError: If a log is damaged or has no top-1 and top-5.
    """
    logs = sorted(Path(run_dir).glob('*/vis_data/scalars.json'))
    if not logs:
        raise FileNotFoundError(
            f'No */vis_data/scalars.json in {run_dir}; give the --work-dir of a run whose '
            'visualizer has a LocalVisBackend.'
        )
    found: dict[int, dict[str, float]] = {}
    for log in logs:
        for entry in _read_log(log):
            if {TOP1, TOP5, 'step'} <= entry.keys():
                epoch = int(entry['step'])
                found[epoch] = dict(epoch=epoch, top1=entry[TOP1], top5=entry[TOP5])
    if not found:
        raise ValueError(
            f"{run_dir} has no {TOP1} and {TOP5}; validate with dict(type='Accuracy', topk=(1, 5))."
        )
    results = [found[epoch] for epoch in sorted(found)]
    return dict(
        epochs=[result['epoch'] for result in results],
        top1=[result['top1'] for result in results],
        top5=[result['top5'] for result in results],
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
                raise ValueError(f'{error} Repeat the run.') from error
    return entries


def summarise(runs: pd.DataFrame) -> pd.DataFrame:
    """Average over the seeds of each method.

    Args:
        runs (DataFrame): One row per run: ``name`` of the method, ``seed``, ``last``, ``best`` (as
            from :func:`read_run`) and ``seconds``, None where it is not known.

    Returns:
        DataFrame: One row per method, in order of first appearance: ``seeds``, a list; for each of
        ``METRICS`` and ``seconds`` a dict of ``mean`` and ``std``, the sample standard deviation,
        None for one seed. ``seconds`` is None when it is not known of every run.
    """
    numbers = runs[['name', 'seed']].assign(
        **{name: [epoch[key] for epoch in runs[at]] for name, (at, key) in METRICS.items()},
        seconds=runs['seconds'].astype(float),
    )
    groups = numbers.groupby('name', sort=False)
    summary = groups['seed'].agg(list).to_frame('seeds')
    for metric in [*METRICS, 'seconds']:
        mean = groups[metric].agg(lambda values: values.mean(skipna=False))
        pairs = zip(mean.tolist(), groups[metric].std().tolist(), strict=True)
        summary[metric] = [
            None if mean != mean else dict(mean=mean, std=None if std != std else std)
            for mean, std in pairs
        ]
    return summary


def render_summary(summary: pd.DataFrame) -> str:
    """Write a summary, as from :func:`summarise`, as a Markdown table."""
    titles = ['top-1 last', 'top-5 last', 'top-1 best', 'top-5 best', 'best epoch', 'seconds']
    cells = [['method', 'seeds', *titles]]
    for name, row in summary.iterrows():
        seeds = len(row['seeds'])
        accuracies = [format_mean(row[metric]) for metric in list(METRICS)[:4]]
        epoch = format_mean(row['best_epoch'], digits=0 if seeds == 1 else 1)
        cells.append([str(name), str(seeds), *accuracies, epoch, format_mean(row['seconds'], 1)])
    return render_cells(cells)


def format_mean(value: dict[str, Any] | None, digits: int = 2, absent: str = 'unknown') -> str:
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


def plot_curves(runs: pd.DataFrame, path: str | Path, title: str = '') -> None:
    """Draw top-1 over epochs into an image file, one line per method.

    The line is the mean over seeds, the band reaches from the lowest to the highest.

    Args:
        runs (DataFrame): One row per run: ``name`` of the method, ``seed``, ``epochs``, ``top1``.
        path (str | Path): File to write; its suffix is the format.
        title (str): Heading. Defaults to ''.

    Raises:
        ValueError: If the epochs of one method's runs differ.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    rows = runs.explode(['epochs', 'top1']).astype({'epochs': int, 'top1': float})
    for name, group in rows.groupby('name', sort=False):
        curves = group.pivot(index='epochs', columns='seed', values='top1')
        incomplete = curves.columns[curves.isna().any()].tolist()
        if incomplete:
            raise ValueError(
                f'{name}: seed {incomplete[0]} was validated at other epochs than the other seeds; '
                'finish or repeat it.'
            )
        marker = 'o' if len(curves) == 1 else None
        (line,) = axes.plot(curves.index, curves.mean(axis=1), marker=marker, label=name)
        low, high = curves.min(axis=1), curves.max(axis=1)
        axes.fill_between(curves.index, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(xlabel='epoch', ylabel='top-1 accuracy (%)', title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
