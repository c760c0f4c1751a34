"""Runs of a grid of settings or of probes, and their accuracy against what was varied."""

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .arguments import UsageError, setting
from .results import new_axes
from .runs import Run, Settings, name_checkpoints

RANDOM = 'random'
# Commas within brackets or quotes belong to a value.
_COMMA = re.compile(r""",(?![^\[(]*[\])])(?=(?:[^"]*"[^"]*")*[^"]*$)(?=(?:[^']*'[^']*')*[^']*$)""")


def read_sweep(words: Sequence[str]) -> list[dict[str, str]]:
    """Read words ``KEY=V1,V2,...``; return all combinations, one that is empty without words."""
    values: dict[str, list[str]] = {}
    for word in words:
        key, equals, text = word.partition('=')
        found = _COMMA.split(text)
        if not (key and equals and all(found)) or key in values or len({*found}) < len(found):
            raise UsageError(
                f'--sweep {word}: expected KEY=V1,V2,... with each key and value once.'
            )
        values[key] = found
    return [dict(zip(values, chosen)) for chosen in itertools.product(*values.values())]


def name_run(config: str, settings: Mapping[str, str]) -> str:
    """Name the folder of a config's runs with some settings by key, ``crd,temperature=0.1``."""
    # Of a key the last word is shown if that tells it apart.
    last = Counter(key.rpartition('.')[2] for key in settings)
    parts = [config]
    for key, value in settings.items():
        word = key.rpartition('.')[2]
        parts.append(f'{word if last[word] == 1 else key}={value.replace("/", "_")}')
    return ','.join(parts)


def plan_probes(
    configs: Sequence[Path], checkpoints: Sequence[str], options: Sequence[str], work_dir: Path
) -> list[Run]:
    """List a run per config and checkpoint, in ``work_dir/<config>/<checkpoint>/seed_<seed>``."""
    key = 'model.backbone_ckpt'
    found = name_checkpoints('--probe', (word for word in checkpoints if word != RANDOM))
    named = {run: setting(key, checkpoint) for run, checkpoint in found.items()}
    if RANDOM in checkpoints:
        named |= {(RANDOM, seed): f'{key}=None' for seed in {seed for _, seed in found} or {0}}
    for path in configs:
        if 'backbone_ckpt' not in Settings(path, options).config.get('model', {}):
            raise UsageError(
                f'--probe: {path} has no model.backbone_ckpt; give configs of a '
                'crd_plugin.LinearProbe, such as configs/transfer/probe_*.py.'
            )
    return [
        Run(
            f'{path.stem} of {name}',
            Settings(path, [*options, option]),
            seed,
            work_dir / path.stem / name / f'seed_{seed}',
        )
        for (name, seed), option in named.items()
        for path in configs
    ]


def plot_rows(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw mean and deviation of the last top-1 against what was varied.

    That is the setting swept first, the network that was probed, or the number of teachers, against
    which errors are drawn.

    Args:
        rows (Sequence[dict]): As from :func:`crd_plugin.cli.comparison.compare`. Each config and
            value of further settings has a line.
        path (str | Path): Image file to write; its suffix is the format.

    Raises:
        UsageError: If no run has finished, or different settings were varied.
    """
    import pandas as pd

    from .comparison import OF

    points, names = [], set()
    for row in rows:
        if row['last'] is None:
            continue
        config, _, network = row['config'].partition(OF)
        probe = {'network': network.replace('_', '\n')} if network else {}
        varied = row['sweep'] or probe or {'teachers': row['num_teachers']}
        (name, value), *others = varied.items()
        names.add(name)
        # The config, without the number of teachers in its name.
        config = re.sub(r'_\d+x', '_', config.partition(',')[0])
        points.append(dict(row['last'], line=name_run(config, dict(others)), value=value))
    if len(names) != 1:
        raise UsageError(
            f'--plot: the finished runs differ in {sorted(names) or "nothing"}, expected one; give '
            'the --work-dir of one --sweep.'
        )
    frame = pd.DataFrame(points).fillna({'std': 0.0})
    metric = 'accuracy'
    if names == {'teachers'}:  # figure 4 of the CRD paper shows errors
        metric, frame['mean'] = 'error', 100 - frame['mean']
    axes, marker = new_axes(7, 4.5), 'o'
    numbers = pd.to_numeric(frame['value'], errors='coerce')
    if numbers.notna().all():
        frame = frame.assign(value=numbers.astype(float)).sort_values('value', kind='stable')
        ticks = frame['value'].unique()
        if 0 < ticks[0] < ticks[-1] / 10:
            axes.set_xscale('log', base=2)
        axes.set_xticks(ticks, [f'{value:g}' for value in ticks])
        axes.minorticks_off()
        marker = 'o-'
    for label, line in frame.groupby('line', sort=False):
        axes.errorbar(line['value'], line['mean'], line['std'], fmt=marker, capsize=3, label=label)
    axes.set(xlabel=name, ylabel=f'top-1 {metric} (%)')
    axes.grid(alpha=0.3)
    axes.legend()
    axes.figure.savefig(path, dpi=150)
