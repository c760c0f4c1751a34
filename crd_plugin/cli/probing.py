"""Probe several checkpoints with one config, and compare with the published figures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from .arguments import UsageError
from .runs import Run, Settings


def plan_probes(
    configs: Sequence[Path], checkpoints: Sequence[str], options: Sequence[str], work_dir: Path
) -> list[Run]:
    """List a run per config and checkpoint.

    A checkpoint is named after the run that it is from, ``NAME/epoch_240.pth`` or
    ``NAME/seed_1/epoch_240.pth``, whose seed its probe has too; any other file after itself.

    Args:
        configs (Sequence[Path]): Configs with ``model.backbone_ckpt``.
        checkpoints (Sequence[str]): Paths of checkpoints.
        options (Sequence[str]): ``key=value`` for ``--cfg-options``.
        work_dir (Path): Runs go to ``work_dir/<config>/<name>/seed_<seed>``.

    Returns:
        list[Run]: One checkpoint after the other.

    Raises:
        UsageError: If a checkpoint does not exist, two would share a folder, or a config probes
            nothing.
    """
    named: dict[tuple[str, int], str] = {}
    for checkpoint in checkpoints:
        if not Path(checkpoint).is_file():
            raise UsageError(f'--probe {checkpoint} does not exist; give paths of .pth files.')
        other = named.setdefault(_run_of(Path(checkpoint)), checkpoint)
        if other != checkpoint:
            name, seed = _run_of(Path(checkpoint))
            raise UsageError(
                f'--probe {other} and {checkpoint} are both {name} with seed {seed}; give one of '
                'them.'
            )
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


def render_probes(runs: Sequence[Run], options: Sequence[str]) -> str:
    """Write a table per config of probes, beside the figures of ``configs/published.csv``.

    Args:
        runs (Sequence[Run]): As from :func:`plan_probes`.
        options (Sequence[str]): The options that all of them share.

    Returns:
        str: Markdown.

    Raises:
        UsageError: If there is no run yet, or a file of one is damaged.
    """
    from .comparison import compare, read_published, read_table_runs, render_markdown

    figures, tables = read_published(), []
    for config in dict.fromkeys(run.settings.path for run in runs):
        folders = [run.run_dir for run in runs if run.settings.path == config]
        try:
            found = read_table_runs(folders)
        except ValueError as error:
            raise UsageError(str(error)) from error
        # That the seeds of a row probe different networks is no remark worth making.
        found = found.assign(teacher='', signature='', options=[list(options)] * len(found))
        rows = compare(found, figures[figures['config'].str.endswith(f'/{config.name}')])
        tables.append(f'\n## {config.stem}\n\n{render_markdown(rows)}')
    return ''.join(tables)


def _run_of(checkpoint: Path) -> tuple[str, int]:
    """Name and seed of the run that a checkpoint is from."""
    folder = checkpoint.resolve().parent
    seed = re.fullmatch(r'seed_(\d+)', folder.name)
    name = checkpoint.stem
    if re.match(r'epoch_\d+$|best_', name):
        name = (folder.parent if seed else folder).name
    return name, int(seed[1]) if seed else 0
