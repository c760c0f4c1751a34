"""Distil on real digits: ``python tools/demo.py``.

Trains a teacher, then the same small student alone and with each method, each
through tools/train.py and a config under configs/. Then prints one table and
writes results.md, results.json and curves.png into the work dir.

One teacher, trained with the first seed, serves all seeds, as in the papers:
the deviation is the student's alone. A finished run is not repeated; a run
whose config or teacher changed is, and the old one moved to <name>_old1.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from crd_plugin.cli import arguments as cli  # noqa: E402
from crd_plugin.cli import launch  # noqa: E402
from crd_plugin.cli.runs import DONE, RESUMED, Run, Settings, read_record  # noqa: E402

CONFIGS = REPO / 'configs'
TEACHER, STUDENT = 'resnet14', 'resnet8w4'
SETTING = 'b20-100e_digits'
METHODS = 'kd crd crd-kd'
# What the table calls a method; the others in capitals, a hyphen as a plus.
TITLES = {
    'fitnet': 'FitNet',
    'online-kd': 'Online KD',
    'cocord': 'CoCoRD',
    'cocord-kd': 'CoCoRD+KD',
    'crd-batch': 'CRD in-batch',
}
RECORD = 'demo_run.json'


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    what = 'one number N: seeds 0 to N-1; several ("0 3 7" or "0,3,7"): these. Default: 1'
    add('--seeds', default=['1'], nargs='+', help=what)
    what = f'methods beside the student alone. Default: "{METHODS}"'
    add('--methods', default=[METHODS], nargs='*', help=what)
    what = 'folder for runs and results. Default: work_dirs/demo'
    add('--work-dir', type=Path, default=Path('work_dirs/demo'), help=what)
    what = 'resume interrupted runs from their latest checkpoint instead of starting over'
    add('--resume', action='store_true', help=what)
    what = 'override config values in every run'
    add('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help=what)
    args = parser.parse_args(argv)
    args.seeds = _parse_seeds(args.seeds)
    args.methods = list(dict.fromkeys(re.findall(r'[^\s,]+', ' '.join(args.methods))))
    args.work_dir = args.work_dir.absolute()
    return args


def _parse_seeds(words: Sequence[str]) -> list[int]:
    """Seeds of ``--seeds``: a count, or the numbers themselves."""
    numbers = re.findall(r'[^\s,]+', ' '.join(words))
    if words == ['0'] or not numbers or not all(number.isdigit() for number in numbers):
        raise cli.UsageError(
            f'--seeds {" ".join(words)}: expected a count of at least 1 or several seeds, e.g. '
            '`--seeds 3` or `--seeds 0 3 7`; for seed 0 alone use `--seeds 1`.'
        )
    seeds = [int(number) for number in numbers]
    return list(range(seeds[0])) if words == numbers[:1] else list(dict.fromkeys(seeds))


def find_config(method: str) -> Path:
    """Find the config of a method for the demo's pair, or for its student alone."""
    name = re.compile(rf'([^_]+)_(?:{TEACHER}_)?{STUDENT}_{SETTING}\.py')
    matches = [
        (name.fullmatch(path.name), path) for path in sorted(CONFIGS.glob(f'*/*_{SETTING}.py'))
    ]
    configs = {match[1]: path for match, path in matches if match}
    configs.pop('vanilla', None)  # trained in any case
    if method not in configs:
        raise cli.UsageError(
            f'--methods {method}: there is no configs/*/{method}_{TEACHER}_{STUDENT}_{SETTING}.py; '
            f'available: {" ".join(configs) or "none"}.'
        )
    return configs[method]


def plan(args: argparse.Namespace) -> tuple[Run, list[Run]]:
    """List the teacher's run and those of the students, in order."""

    @functools.cache
    def read(config: Path, *options: str) -> Settings:
        return Settings(config, [*args.cfg_options, *options])

    def run(name: str, config: Path, seed: int, folder: str, *options: str) -> Run:
        return Run(name, read(config, *options), seed, args.work_dir / folder, RECORD)

    configs = {method: find_config(method) for method in args.methods}
    alone = {
        network: CONFIGS / 'vanilla' / f'vanilla_{network}_{SETTING}.py'
        for network in (TEACHER, STUDENT)
    }
    teacher = run(f'teacher ({TEACHER})', alone[TEACHER], args.seeds[0], 'teacher')
    weights = teacher.run_dir / f'epoch_{teacher.settings.epochs}.pth'
    students = []
    for seed in args.seeds:
        name = f'student alone ({STUDENT})'
        students.append(run(name, alone[STUDENT], seed, f'vanilla_seed{seed}'))
        for method, config in configs.items():
            name = TITLES.get(method, method.upper().replace('-', '+'))
            # A method without a teacher is named after the student alone.
            has_teacher = TEACHER in config.stem.split('_')
            options = [f'model.teacher_ckpt={weights}'] if has_teacher else []
            students.append(run(name, config, seed, f'{method}_seed{seed}', *options))
    return teacher, students


def describe_machine() -> dict[str, Any]:
    """Describe what the numbers depend on."""
    import torch

    packages = ('torch', 'mmengine', 'mmpretrain', 'mmrazor')
    processor = platform.processor()
    if os.path.isfile('/proc/cpuinfo'):
        match = re.search(r'model name\s*:\s*(.+)', Path('/proc/cpuinfo').read_text())
        processor = match[1] if match else processor
    return dict(
        platform=platform.platform(),
        processor=processor,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu',
        python=platform.python_version(),
        **{name: import_module(name).__version__ for name in packages},
    )


def report(runs: Sequence[Run], work_dir: Path, argv: Sequence[str]) -> str:
    """Write results.md, results.json and curves.png of finished runs; return the table."""
    import pandas as pd

    from crd_plugin.cli.results import plot_curves, read_run, render_summary, summarise

    results = [
        dict(
            config=str(run.settings.path.relative_to(REPO)),
            options=run.options,
            name=run.name,
            seed=run.seed,
            seconds=read_record(run.record, ['seconds'])['seconds'],
            **read_run(run.run_dir),
        )
        for run in runs
    ]
    frame = pd.DataFrame(results)
    summary = summarise(frame)
    table = render_summary(summary)
    machine = describe_machine()
    command = shlex.join(['python', 'tools/demo.py', *argv])
    rows = summary.reset_index().to_dict('records')
    content = dict(command=command, machine=machine, summary=rows, runs=results)
    launch.write_whole(work_dir / 'results.json', json.dumps(content, indent=1))
    lines = [
        table,
        '',
        'Accuracies in percent on the 1,000 test digits, best epoch by top-1 on these same digits; '
        'mean ± sample standard deviation over seeds, one teacher for all. Seconds are of the '
        'whole process, start included.',
        '',
        f'Command: `{command}`',
        '',
        *(f'- {key}: {value}' for key, value in machine.items()),
    ]
    launch.write_whole(work_dir / 'results.md', '\n'.join(lines) + '\n')
    title = f'scikit-learn digits, {TEACHER} to {STUDENT}'
    plot_curves(frame, work_dir / 'curves.png', title)
    return table


def train(runs: Sequence[Run], resume: bool) -> None:
    """Train what is not finished."""
    from crd_plugin.cli.pool import train_all

    for run in runs:
        run.examine()  # the teacher may have been trained since
        if run.state == RESUMED and not resume:
            launch.make_room(run.run_dir, keep=False)
            run.examine()
    missing = [run for run in runs if run.state != DONE]
    if len(missing) < len(runs):
        sys.stdout.write(f'{len(runs) - len(missing)} finished run(s) kept\n')
        sys.stdout.flush()
    if missing:
        hint = 'the same command keeps finished runs, with --resume it resumes the others'
        train_all(missing, [('demo', {})], hint)


def main(argv: Sequence[str] | None = None) -> None:
    """Train the teacher, then the students, then report."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    launch.require('rich')
    teacher, students = plan(args)
    launch.require('pandas', 'matplotlib', 'sklearn')
    train([teacher], args.resume)
    train(students, args.resume)
    table = report([teacher, *students], args.work_dir, argv)
    written = f'{args.work_dir}/results.md, results.json, curves.png'
    sys.stdout.write(f'\n{table}\n\nwritten: {written}\n')


if __name__ == '__main__':
    # `kill` as well as Ctrl-C must not leave a training behind.
    launch.interrupt_on_signals()
    sys.exit(cli.run(main))
