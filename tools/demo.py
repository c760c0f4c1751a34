"""Distil on real images: ``python tools/demo.py``, or ``--data fashion-mnist``.

Trains a teacher, then the same small student alone and with each method, each
through tools/train.py and a config under configs/. Then prints the table and
writes results.md, results.json, figures and report.html into the work dir.

One teacher, trained with the first seed, serves all seeds, as in the papers:
the deviation is the student's alone. A finished run is not repeated; a run
whose config or teacher changed is, and the old one moved to <name>_old1.
"""

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
from typing import Any, NamedTuple

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from crd_plugin.cli import arguments as cli  # noqa: E402
from crd_plugin.cli import launch  # noqa: E402
from crd_plugin.cli.runs import DONE, RESUMED, Run, Settings, read_record  # noqa: E402

CONFIGS = REPO / 'configs'


class Table(NamedTuple):
    """Networks, ends of the names of the configs, and words about the data."""

    teacher: str
    teacher_setting: str
    student: str
    setting: str
    methods: str  # by default
    title: str
    tested_on: str

    @property
    def alone(self) -> str:
        """str: Name of the row of the student that is trained without a method."""
        return f'student alone ({self.student})'


TABLES = {
    'digits': Table(
        teacher='resnet14',
        teacher_setting='b20-100e_digits',
        student='resnet8w4',
        setting='b20-100e_digits',
        methods='kd crd crd-kd',
        title='scikit-learn digits',
        tested_on='1,000 test digits',
    ),
    'fashion-mnist': Table(
        teacher='resnet20',
        teacher_setting='b64-12e_fashion-mnist',
        student='resnet8',
        setting='b64-40e_fashion-mnist',
        methods='kd fitnet at crd crd-kd cktf cocord crd-batch crd-infonce',
        title='Fashion-MNIST, 500 images per class',
        tested_on='10,000 test images',
    ),
}
# What the table calls a method; the others in capitals, a hyphen as a plus.
TITLES = {
    'fitnet': 'FitNet',
    'online-kd': 'Online KD',
    'cocord': 'CoCoRD',
    'cocord-kd': 'CoCoRD+KD',
    'crd-batch': 'CRD in-batch',
    'crd-infonce': 'InfoNCE',
}
RECORD = 'demo_run.json'


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add('--data', choices=TABLES, default='digits', help='images to train on. Default: digits')
    what = 'one number N: seeds 0 to N-1; several ("0 3 7" or "0,3,7"): these. Default: 1'
    add('--seeds', default=['1'], nargs='+', help=what)
    defaults = '\n'.join(f'  {data}: {table.methods}' for data, table in TABLES.items())
    what = f'methods beside the student alone. Default:\n{defaults}'
    add('--methods', nargs='*', help=what)
    what = 'folder for runs and results. Default: work_dirs/demo or work_dirs/fashion-mnist'
    add('--work-dir', type=Path, help=what)
    what = 'train N students at a time, with an equal share of the cores. Default: 1'
    add('--jobs', type=int, default=1, metavar='N', help=what)
    what = 'resume interrupted runs from their latest checkpoint instead of starting over'
    add('--resume', action='store_true', help=what)
    what = 'override config values in every run'
    add('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help=what)
    args = parser.parse_args(argv)
    if args.jobs < 1:
        raise cli.UsageError(f'--jobs {args.jobs}: at least 1 training is needed.')
    seeds = _split(args.seeds)
    if args.seeds == ['0'] or not seeds or not all(seed.isdigit() for seed in seeds):
        raise cli.UsageError(
            f'--seeds {" ".join(args.seeds)}: expected a count of at least 1 or several seeds, '
            'e.g. `--seeds 3` or `--seeds 0 3 7`; for seed 0 alone use `--seeds 1`.'
        )
    args.seeds = [*range(int(seeds[0]))] if args.seeds == seeds[:1] else [*map(int, seeds)]
    args.methods = _split([TABLES[args.data].methods] if args.methods is None else args.methods)
    folder = args.work_dir or Path('work_dirs', 'demo' if args.data == 'digits' else args.data)
    args.work_dir = folder.absolute()
    return args


def _split(words: Sequence[str]) -> list[str]:
    """Split words at spaces and commas; each once."""
    return list(dict.fromkeys(re.findall(r'[^\s,]+', ' '.join(words))))


def find_configs(table: Table, methods: Sequence[str]) -> dict[str, Path]:
    """Find the configs of the student alone, 'vanilla', and of methods for the table's pair."""
    name = re.compile(rf'([^_]+)_(?:{table.teacher}_)?{table.student}_{table.setting}\.py')
    paths = sorted(CONFIGS.glob(f'*/*_{table.setting}.py'))
    found = {match[1]: path for path in paths if (match := name.fullmatch(path.name))}
    for method in methods:
        if method not in found:
            raise cli.UsageError(
                f'--methods {method}: there is no '
                f'configs/*/{method}_{table.teacher}_{table.student}_{table.setting}.py; '
                f'available: {" ".join(found)}.'
            )
    return {method: found[method] for method in ('vanilla', *methods)}


def plan(args: argparse.Namespace) -> tuple[Run, list[Run]]:
    """List the teacher's run and those of the students, in order."""

    @functools.cache
    def read(config: Path, *options: str) -> Settings:
        return Settings(config, [*args.cfg_options, *options])

    def run(name: str, config: Path, seed: int, folder: str, *options: str) -> Run:
        return Run(name, read(config, *options), seed, args.work_dir / folder, RECORD)

    table = TABLES[args.data]
    configs = find_configs(table, args.methods)
    config = CONFIGS / 'vanilla' / f'vanilla_{table.teacher}_{table.teacher_setting}.py'
    teacher = run(f'teacher ({table.teacher})', config, args.seeds[0], 'teacher')
    weights = teacher.run_dir / f'epoch_{teacher.settings.epochs}.pth'
    titles = {'vanilla': table.alone, **TITLES}
    students = []
    for seed in args.seeds:
        for method, config in configs.items():
            name = titles.get(method, method.upper().replace('-', '+'))
            # A method without a teacher is named after the student alone.
            has_teacher = table.teacher in config.stem.split('_')
            options = [cli.setting('model.teacher_ckpt', str(weights))] if has_teacher else []
            students.append(run(name, config, seed, f'{method}_seed{seed}', *options))
    return teacher, students


def describe_machine() -> dict[str, Any]:
    """Describe what the numbers depend on."""
    import torch

    packages = ('torch', 'mmengine', 'mmpretrain', 'mmrazor')
    return dict(
        platform=platform.platform(),
        processor=launch.processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu',
        python=platform.python_version(),
        **{name: import_module(name).__version__ for name in packages},
    )


def report(runs: Sequence[Run], args: argparse.Namespace, argv: Sequence[str]) -> str:
    """Write results.md, results.json, figures and report.html; return the tables."""
    import pandas as pd

    from crd_plugin.cli import results
    from crd_plugin.cli.report import draw_sections, render_report

    table, work_dir = TABLES[args.data], args.work_dir
    rows = [
        dict(
            config=str(run.settings.path.relative_to(REPO)),
            options=run.options,
            name=run.name,
            seed=run.seed,
            teacher=run.teacher,
            seconds=read_record(run.record)['seconds'],
            **results.read_run(run.run_dir),
        )
        for run in runs
    ]
    frame = results.with_metrics(pd.DataFrame(rows))
    frame['run_dir'] = [str(run.run_dir) for run in runs]
    summary = results.summarise(frame)
    text = results.render_summary(summary)
    students = frame[frame['name'] != runs[0].name]  # all but the teacher
    differences = {
        title: results.paired_differences(students, name)
        for title, name in (('last - student alone', table.alone), ('last - KD', 'KD'))
    }
    if len(args.seeds) > 1 and args.methods:
        text += f'\n\n{results.render_differences(list(summary), differences)}'
    machine = describe_machine()
    command = shlex.join(['python', 'tools/demo.py', *argv])
    content = dict(
        command=command,
        machine=machine,
        summary=[dict(name=name, **row) for name, row in summary.items()],
        differences=differences,
        runs=rows,
    )
    launch.write_whole(work_dir / 'results.json', json.dumps(content, indent=1))
    legend = (
        f'Accuracies in percent on the {table.tested_on}, best epoch by top-1 on these same '
        'images; mean ± sample standard deviation over seeds, one teacher for all. Seconds are of '
        'the whole process, start included.'
    )
    lines = [f'- {key}: {value}' for key, value in machine.items()]
    lines += [f'- teacher: SHA-256 {sha}' for sha in dict.fromkeys(frame['teacher']) if sha]
    made_by = f'Command: `{command}`\n\n' + '\n'.join(lines)
    launch.write_whole(work_dir / 'results.md', f'{text}\n\n{legend}\n\n{made_by}\n')
    title = f'{table.title}, {table.teacher} to {table.student}'
    figures = draw_sections(frame, work_dir, title)
    sections = [('Accuracy', text, legend), *figures, ('How it was made', made_by)]
    launch.write_whole(work_dir / 'report.html', render_report(title, sections))
    return text


def train(runs: Sequence[Run], resume: bool, jobs: int = 1) -> None:
    """Train what is not finished, several at a time."""
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
        train_all(missing, [('demo', launch.share_cores(jobs))] * jobs, hint)


def main(argv: Sequence[str] | None = None) -> None:
    """Train the teacher, then the students, then report."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    launch.require('rich', 'pandas', 'matplotlib', 'sklearn', 'markdown_it')
    teacher, students = plan(args)
    train([teacher], args.resume)
    train(students, args.resume, args.jobs)
    text = report([teacher, *students], args, argv)
    written = f'{args.work_dir}/report.html, results.md, results.json and figures'
    sys.stdout.write(f'\n{text}\n\nwritten: {written}\n')


if __name__ == '__main__':
    # `kill` as well as Ctrl-C must not leave a training behind.
    launch.interrupt_on_signals()
    sys.exit(cli.run(main))
