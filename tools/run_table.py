"""Train the cells of a table: ``run_table.py CONFIG... --seeds 0 1 2``.

One training per config and seed, each by tools/train.py in a subprocess, one
per GPU at a time; all configs with the first seed come first. The same command
goes on after an interruption: finished runs are kept, others resume from their
latest checkpoint. A run whose settings or teacher changed starts over, and the
old one is moved to seed_<seed>_old1.
"""

import argparse
import glob
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from crd_plugin.cli import arguments as cli
from crd_plugin.cli import launch
from crd_plugin.cli.runs import DONE, Run, Settings, files_below
from crd_plugin.cli.sweeps import name_run, plan_probes, read_sweep


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add('configs', nargs='+', metavar='CONFIG', help='config, folder of configs or glob')
    add('--seeds', type=int, nargs='+', default=[0], help='of each config; default: 0')
    devices = parser.add_mutually_exclusive_group()
    what = 'GPUs to use, as in CUDA_VISIBLE_DEVICES: 0,1 or 0 1; default: all'
    devices.add_argument('--gpus', nargs='+', metavar='GPU', help=what)
    what = 'train N at a time on the CPU; default without a GPU: 1'
    devices.add_argument('--jobs', type=int, metavar='N', help=what)
    what = 'runs go to DIR/<config>/seed_<seed>; default: work_dirs'
    add('--work-dir', type=Path, default=Path('work_dirs'), metavar='DIR', help=what)
    add('--dry-run', action='store_true', help='only list what would be done with each run')
    what = (
        'train a linear classifier, with configs such as configs/transfer/probe_*.py, on each\n'
        'of these networks ("random": on initial weights), in DIR/<config>/<name>/seed_<seed>\n'
        "after the checkpoint's run and seed; then print the table"
    )
    add('--probe', nargs='+', default=[], metavar='CHECKPOINT', help=what)
    what = 'replace settings of every config'
    add('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help=what)
    what = (
        'train every config with each value; several keys make a grid.\n'
        'Runs go to DIR/<config>,<key>=<value>/seed_<seed>'
    )
    add('--sweep', nargs='+', default=[], metavar='KEY=V1,V2', help=what)
    args = parser.parse_args(argv)
    args.sweep = read_sweep(args.sweep)
    if args.probe and args.sweep != [{}]:
        parser.error('--sweep: vary a setting of the training, not of a probe; leave one out')
    if args.probe and args.seeds != [0]:
        parser.error('--seeds: a probe has the seed of its checkpoint; leave it out with --probe')
    if min(args.seeds) < 0:
        parser.error(f'--seeds {min(args.seeds)}: a seed is at least 0')
    if args.jobs is not None and args.jobs < 1:
        parser.error(f'--jobs {args.jobs}: at least 1 training is needed')
    return args


def find_configs(words: Sequence[str]) -> list[Path]:
    """Find the configs that files, folders and globs name; each once, sorted within a word."""
    found: dict[str, Path] = {}
    for word in words:
        paths = [Path(name) for name in glob.glob(word, recursive=True)] or [Path(word)]
        files = {file for path in paths for file in (path, *files_below(path))}
        configs = [path for path in files if path.suffix == '.py' and '_base_' not in path.parts]
        if not configs:
            raise cli.UsageError(
                f'CONFIG {word} names no config; expected a .py file outside _base_, or a folder '
                'or glob with some.'
            )
        for path in sorted(configs):
            same = found.setdefault(path.stem, path)
            if same.resolve() != path.resolve():
                raise cli.UsageError(
                    f'CONFIG {same} and {path} have one name and would share a folder; run them '
                    'with two --work-dir.'
                )
    return list(found.values())


def plan(args: argparse.Namespace) -> list[Run]:
    """List all runs in the order of training, one seed after the other."""
    configs = find_configs(args.configs)
    if args.probe:
        return plan_probes(configs, args.probe, args.cfg_options, args.work_dir)
    cells = [
        (name_run(path.stem, values), Settings(path, args.cfg_options, values))
        for path in configs
        for values in args.sweep
    ]
    return [
        Run(name, cell, seed, args.work_dir / name / f'seed_{seed}')
        for seed in dict.fromkeys(args.seeds)
        for name, cell in cells
    ]


def find_devices(gpus: Sequence[str] | None, jobs: int | None) -> list[tuple[str, dict[str, str]]]:
    """List the places of ``--gpus`` or ``--jobs``; one training runs at each at a time."""
    if jobs is None:
        import torch

        number = torch.cuda.device_count()
        visible = os.environ.get('CUDA_VISIBLE_DEVICES', ','.join(map(str, range(number))))
        known = visible.split(',') if number else []
        names = ','.join(gpus).split(',') if gpus else known
        for name in names:
            if name not in known or names.count(name) > 1:
                raise cli.UsageError(
                    f'--gpus {",".join(names)}: the GPUs here are {",".join(known) or "none"}; '
                    'name each at most once, or use --jobs 1 for the CPU.'
                )
        if names:
            return [(f'gpu {name}', dict(CUDA_VISIBLE_DEVICES=name)) for name in names]
        jobs = 1
    return [('cpu', dict(CUDA_VISIBLE_DEVICES='', **launch.share_cores(jobs)))] * jobs


def warn_of_batch_sizes(cells: Iterable[Settings]) -> None:
    """Warn of learning rates made for the batch of several GPUs, once per kind."""
    kinds: dict[tuple[int, int], Path] = {}
    for cell in cells:
        batch = (cell.config.get('train_dataloader') or {}).get('batch_size')
        scale = cell.config.get('auto_scale_lr') or {}
        base = scale.get('base_batch_size')
        if batch and base and batch != base and not scale.get('enable'):
            kinds.setdefault((batch, base), cell.path)
    for (batch, base), path in kinds.items():
        sys.stderr.write(
            f'warning: {path}: the learning rate is for batches of {base}, one GPU has {batch}; '
            f'add --cfg-options train_dataloader.batch_size={base} or auto_scale_lr.enable=True.\n'
        )


def main(argv: Sequence[str] | None = None) -> None:
    """List or train all runs; exit with status 1 if one failed, 130 if interrupted."""
    args = parse_args(argv)
    launch.require('rich', *(['pandas'] if args.probe else []))
    runs = plan(args)
    if args.dry_run:
        width = max(len(run.title) for run in runs)
        sys.stdout.writelines(f'{run.title:<{width}}  {run.describe()}\n' for run in runs)
    states = Counter(run.state for run in runs)
    counts = ', '.join(f'{number} {state}' for state, number in states.items())
    sys.stdout.write(f'{len(runs)} runs: {counts}\n')
    sys.stdout.flush()
    warn_of_batch_sizes(dict.fromkeys(run.settings for run in runs))
    if args.dry_run:
        return
    unfinished = [run for run in runs if run.state != DONE]
    if unfinished:
        from crd_plugin.cli.pool import train_all

        train_all(unfinished, find_devices(args.gpus, args.jobs))
    if args.probe:
        from crd_plugin.cli import comparison

        found = comparison.read_table_runs([run.run_dir for run in runs])
        rows = comparison.compare(found, comparison.read_published())
        sys.stdout.write(f'\n{comparison.render_markdown(rows)}')


if __name__ == '__main__':
    launch.interrupt_on_signals()
    sys.exit(cli.run(main))
