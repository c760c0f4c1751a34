"""Probe several checkpoints with one config; draw the results as bars."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .arguments import UsageError, check_checkpoint
from .results import new_axes
from .runs import Run, Settings, run_of

RANDOM = 'random'


def plan_probes(
    configs: Sequence[Path], checkpoints: Sequence[str], options: Sequence[str], work_dir: Path
) -> list[Run]:
    """List a run per config and checkpoint, in ``work_dir/<config>/<checkpoint>/seed_<seed>``."""
    named: dict[tuple[str, int], str] = {}
    for checkpoint in dict.fromkeys(checkpoints):
        if checkpoint == RANDOM:
            continue
        check_checkpoint(checkpoint, '--probe')
        name, seed = run_of(checkpoint)
        if (name, seed) in named:
            raise UsageError(
                f'--probe {named[name, seed]} and {checkpoint} are both {name} with seed {seed}; '
                'give one of them.'
            )
        named[name, seed] = checkpoint
    if RANDOM in checkpoints:
        named |= {(RANDOM, seed): 'None' for seed in {seed for _, seed in named} or {0}}
    for path in configs:
        if 'backbone_ckpt' not in Settings(path, options).config.get('model', {}):
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


def plot_probes(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw top-1 of the last epoch as bars, a group per config and a colour per network."""
    import pandas as pd

    from .comparison import OF

    found = [
        (*row['config'].split(OF), row['last']['mean'], row['last']['std'])
        for row in rows
        if OF in row['config'] and row['last']
    ]
    if not found:
        raise UsageError('--plot: no probe has finished; wait for tools/run_table.py --probe.')
    table = pd.DataFrame(found, columns=['config', 'network', 'mean', 'std'])
    methods = table['network'].str.partition('_')[0]
    if methods.nunique() == table['network'].nunique():
        table['network'] = methods
    bars = table.astype({'std': float}).pivot(index='config', columns='network')
    axes = new_axes(max(7, 0.5 * len(found)), 5)
    bars['mean'].plot.bar(ax=axes, yerr=bars['std'], capsize=3, rot=0, xlabel='')
    for drawn in axes.containers[1::2]:  # behind the error bars of each; 0 is a missing one
        texts = [f'{bar.get_height():.1f}' if bar.get_height() else '' for bar in drawn]
        axes.bar_label(drawn, texts, padding=3, fontsize='small')
    axes.set_xticklabels([name.replace('_', '\n', 1) for name in bars.index])
    axes.set(ylabel='top-1 accuracy (%), last epoch')
    axes.figure.savefig(path, dpi=150)
