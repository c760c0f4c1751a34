"""Grids of settings, and the accuracy of their runs against the value."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

# Commas within brackets belong to a value.
_COMMA = re.compile(r',(?![^\[(]*[\])])')
# Values that span more than this are drawn on a logarithmic axis.
_LARGE_RANGE = 10


def read_sweep(words: Sequence[str]) -> list[dict[str, str]]:
    """Read ``KEY=V1,V2,...`` of the command line.

    Args:
        words (Sequence[str]): One per key.

    Returns:
        list[dict]: All combinations of the values, by key; one that is empty without words.

    Raises:
        ValueError: If a word has no values, or a key or a value is there twice.
    """
    values: dict[str, list[str]] = {}
    for word in words:
        key, equals, text = word.partition('=')
        found = _COMMA.split(text)
        if not (key and equals and all(found)):
            raise ValueError(f'{word}: expected KEY=V1,V2,...')
        if key == 'randomness.seed':
            raise ValueError(f'{word}: give --seeds instead')
        if key in values:
            raise ValueError(f'{key} is there twice; give all its values at once, KEY=V1,V2,...')
        if len(set(found)) < len(found):
            raise ValueError(f'{word} has a value twice; name each once')
        values[key] = found
    return [dict(zip(values, chosen)) for chosen in itertools.product(*values.values())]


def name_run(config: str, settings: Mapping[str, str]) -> str:
    """Name the runs of a config with some settings, ``crd,temperature=0.1``.

    Args:
        config (str): Name of the config.
        settings (dict): Values by key. Of a key the last word is shown if that tells it apart.

    Returns:
        str: Name of a folder.
    """
    last = Counter(key.rpartition('.')[2] for key in settings)
    parts = [config]
    for key, value in settings.items():
        word = key.rpartition('.')[2]
        parts.append(f'{word if last[word] == 1 else key}={value.replace("/", "_")}')
    return ','.join(parts)


def plot_sweep(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw top-1 of the last epoch against the value of the setting that was swept first.

    Points are means over seeds, bars their standard deviation. Configs, and the values of further
    keys, have a line each. Without a sweep the error is drawn against the number of teachers.

    Args:
        rows (Sequence[dict]): As from :func:`crd_plugin.cli.comparison.compare`.
        path (str | Path): Image file to write; its suffix is the format.

    Raises:
        ValueError: If no run has finished, or different settings were swept.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = [row for row in rows if row['last'] is not None]
    names = {next(iter(row['sweep']), 'teachers') for row in found}
    if len(names) != 1:
        raise ValueError(
            f'--plot: the finished runs were swept over {sorted(names) or "nothing"}, expected one '
            'setting; give the --work-dir of one --sweep.'
        )
    (setting,) = names
    # Figure 4 of the CRD paper shows errors.
    metric = 'error' if setting == 'teachers' else 'accuracy'
    lines: dict[str, list[tuple[Any, float, float]]] = {}
    for row in found:
        first, *others = [*row['sweep'].items()] or [('teachers', row['num_teachers'])]
        # The config, without the number of teachers in its name.
        config = re.sub(r'_\d+x', '_', row['config'].partition(',')[0])
        mean, std = row['last']['mean'], row['last']['std'] or 0.0
        mean = 100 - mean if metric == 'error' else mean
        lines.setdefault(name_run(config, dict(others)), []).append((_number(first[1]), mean, std))
    figure = Figure(figsize=(7, 4.5), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    values = [point[0] for points in lines.values() for point in points]
    if all(isinstance(value, float) for value in values):
        if min(values) > 0 and max(values) > _LARGE_RANGE * min(values):
            axes.set_xscale('log', base=2)
        axes.set_xticks(sorted(set(values)), [f'{value:g}' for value in sorted(set(values))])
        axes.minorticks_off()
    else:
        for points in lines.values():
            points[:] = [(str(value), mean, std) for value, mean, std in points]
    for name, points in lines.items():
        at, means, stds = zip(*points if isinstance(points[0][0], str) else sorted(points))
        axes.errorbar(at, means, yerr=stds, marker='o', capsize=3, label=name)
    axes.set(xlabel=setting, ylabel=f'top-1 {metric} (%)')
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def _number(value: Any) -> Any:
    """A value as a number, if it is one."""
    with suppress(ValueError):
        return float(value)
    return value
