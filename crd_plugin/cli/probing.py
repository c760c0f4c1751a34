"""Probe several checkpoints with one config, compare with the published figures, draw bars."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .arguments import UsageError
from .results import new_axes
from .runs import Run, Settings

RANDOM = 'random'


def plan_probes(
    configs: Sequence[Path], checkpoints: Sequence[str], options: Sequence[str], work_dir: Path
) -> list[Run]:
    """List a run per config and checkpoint, in ``work_dir/<config>/<checkpoint>/seed_<seed>``."""
    named: dict[tuple[str, int], str] = {}
    for checkpoint in checkpoints:
        if checkpoint == RANDOM:
            continue
        if not Path(checkpoint).is_file():
            raise UsageError(
                f'--probe {checkpoint} does not exist; give paths of .pth files, or random.'
            )
        other = named.setdefault(_run_of(Path(checkpoint)), checkpoint)
        if other != checkpoint:
            name, seed = _run_of(Path(checkpoint))
            raise UsageError(
                f'--probe {other} and {checkpoint} are both {name} with seed {seed}; give one of '
                'them.'
            )
    if RANDOM in checkpoints:
        named |= {(RANDOM, seed): 'None' for seed in {seed for _, seed in named} or {0}}
    for path in configs:
        if 'backbone_ckpt' not in (Settings(path, options).config.get('model') or {}):
            raise UsageError(
                f'--probe: {path} has no model.backbone_ckpt; give configs of a '
                'crd_plugin.LinearProbe, such as configs/transfer/probe_*.py.'
            )
    return [
        Run(
            f'{path.stem} of {name}',
            Settings(path, [*options, f'model.backbone_ckpt={checkpoint}']),
            seed,
            work_dir / path.stem / name / f'seed_{seed}',
        )
        for (name, seed), checkpoint in named.items()
        for path in configs
    ]


def render_probes(runs: Sequence[Run]) -> str:
    """Write a table per config of probes, beside the figures of ``configs/published.csv``."""
    from .comparison import OF, compare, read_published, read_table_runs, render_markdown

    figures, tables = read_published(), []
    for config in dict.fromkeys(run.settings.path for run in runs):
        folders = [run.run_dir for run in runs if run.settings.path == config]
        try:
            found = read_table_runs(folders)
        except ValueError as error:
            raise UsageError(str(error)) from error
        known = figures[figures['config'].str.endswith(f'/{config.name}')]
        rows = compare(
            *(x.assign(name=[n.partition(OF)[2] for n in x['name']]) for x in (found, known))
        )
        tables.append(f'\n## {config.stem}\n\n{render_markdown(rows)}')
    return ''.join(tables)


def plot_probes(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw top-1 of the last epoch as bars, a group per config, coloured by method."""
    from .comparison import OF

    groups: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        config, of, network = row['config'].partition(OF)
        if of and row['last'] is not None:
            groups.setdefault(config, {})[network] = row['last']
    if not groups:
        raise ValueError('--plot: no probe has finished; wait for tools/run_table.py --probe.')
    names = list(dict.fromkeys(name for bars in groups.values() for name in bars))
    methods = list(dict.fromkeys(name.partition('_')[0] for name in names))
    axes = new_axes(max(7, 0.5 * sum(map(len, groups.values()))), 5)
    place, ticks = 0.0, []
    for bars in groups.values():
        ticks.append(place + (len(bars) - 1) / 2)
        for name, top1 in sorted(bars.items(), key=lambda item: names.index(item[0])):
            colour = f'C{methods.index(name.partition("_")[0]) % 10}'
            drawn = axes.bar(place, top1['mean'], yerr=top1['std'], color=colour, capsize=3)
            axes.bar_label(drawn, fmt='%.1f', padding=3, fontsize='small')
            place += 1
        place += 1  # a gap
    for number, method in enumerate(methods):
        axes.bar(0, 0, color=f'C{number % 10}', label=method)
    axes.set_xticks(ticks, [name.replace('_', '\n', 1) for name in groups])
    axes.set(ylabel='top-1 accuracy (%), last epoch')
    axes.figure.legend(loc='outside right upper')
    axes.figure.savefig(path, dpi=150)


def _run_of(checkpoint: Path) -> tuple[str, int]:
    """Name and seed of the run that a checkpoint is from; any other file is named after itself."""
    folder = checkpoint.resolve().parent
    seed = re.fullmatch(r'seed_(\d+)', folder.name)
    name = checkpoint.stem
    if re.match(r'epoch_\d+$|best_', name):
        name = (folder.parent if seed else folder).name
    return name, int(seed[1]) if seed else 0
