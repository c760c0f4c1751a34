"""Distil on real digits: ``python tools/demo.py``.

Trains a teacher, then the same small student alone and with each method, each
through tools/train.py and a config under configs/. Then prints one table and
writes results.md, results.json and curves.png into the work dir.

One teacher, trained with the first seed, serves all seeds, as in the papers:
the deviation is the student's alone. A finished run is not repeated; a run
whose config or teacher changed is, and the old one moved to <name>_old1.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import shlex
import sys
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from crd_plugin.cli import arguments as cli  # noqa: E402
from crd_plugin.cli import launch
from crd_plugin.cli.launch import LOG, Run, write_whole  # noqa: E402

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


class DemoError(cli.UsageError):
    """Something that the user can mend."""


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        '--seeds',
        default=['1'],
        nargs='+',
        help='one number N: seeds 0 to N-1; several ("0 3 7" or "0,3,7"): these. Default: 1',
    )
    parser.add_argument(
        '--methods',
        default=[METHODS],
        nargs='*',
        help=f'methods beside the student alone. Default: "{METHODS}"',
    )
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=Path('work_dirs/demo'),
        help='folder for runs and results. Default: work_dirs/demo',
    )
    parser.add_argument(
        '--resume',
        action='store_true',
        help='go on with runs that were interrupted, from their latest\n'
        'checkpoint, instead of starting them anew',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='override config values in every run',
    )
    args = parser.parse_args(argv)
    args.seeds = _parse_seeds(args.seeds)
    args.methods = list(
        dict.fromkeys(word for text in args.methods for word in re.split(r'[\s,]+', text) if word)
    )
    return args


def _parse_seeds(words: Sequence[str]) -> List[int]:
    parts = [part for word in words for part in re.split(r'[\s,]+', word)]
    numbers = [part for part in parts if part]
    if not numbers or not all(part.isdigit() for part in numbers):
        raise DemoError(
            f'--seeds {" ".join(words)}: expected a count or '
            'several seeds, e.g. `--seeds 3` or `--seeds 0 3 7`.'
        )
    seeds = [int(part) for part in numbers]
    if len(parts) > 1:
        return list(dict.fromkeys(seeds))
    if seeds[0] < 1:
        raise DemoError('--seeds 0: at least one seed is needed; for seed 0 alone use `--seeds 1`.')
    return list(range(seeds[0]))


def find_config(method: str) -> Path:
    """Config of a method for the demo's pair, or for its student alone.

    Args:
        method (str): Such as 'crd', or 'online-kd', which has no teacher.

    Raises:
        DemoError: If there is none.
    """
    name = re.compile(rf'([^_]+)_(?:{TEACHER}_)?{STUDENT}_{SETTING}\.py')
    matches = [
        (name.fullmatch(path.name), path) for path in sorted(CONFIGS.glob(f'*/*_{SETTING}.py'))
    ]
    configs = {match[1]: path for match, path in matches if match}
    configs.pop('vanilla', None)  # trained in any case
    if method not in configs:
        tail = f'_{TEACHER}_{STUDENT}_{SETTING}.py'
        raise DemoError(
            f'--methods {method}: there is no configs/*/{method}{tail}; '
            f'available: {" ".join(configs) or "none"}.'
        )
    return configs[method]


def plan(args: argparse.Namespace) -> Tuple[Run, List[Run]]:
    """The teacher's run and those of the students, in order.

    Args:
        args (argparse.Namespace): The parsed command line.

    Returns:
        tuple: Teacher, students.
    """
    vanilla = CONFIGS / 'vanilla'
    teacher = Run(
        f'teacher ({TEACHER})',
        vanilla / f'vanilla_{TEACHER}_{SETTING}.py',
        args.seeds[0],
        args.work_dir / 'teacher',
        args.cfg_options,
        RECORD,
    )
    teacher_ckpt = teacher.run_dir / 'teacher.pth'
    students = []
    configs = [(method, find_config(method)) for method in args.methods]
    for seed in args.seeds:
        students.append(
            Run(
                f'student alone ({STUDENT})',
                vanilla / f'vanilla_{STUDENT}_{SETTING}.py',
                seed,
                args.work_dir / f'vanilla_seed{seed}',
                args.cfg_options,
                RECORD,
            )
        )
        for method, config in configs:
            options = list(args.cfg_options)
            # A method without a teacher is named after the student alone.
            if TEACHER in config.stem.split('_'):
                options.append(f'model.teacher_ckpt={teacher_ckpt}')
            students.append(
                Run(
                    TITLES.get(method, method.upper().replace('-', '+')),
                    config,
                    seed,
                    args.work_dir / f'{method}_seed{seed}',
                    options,
                    RECORD,
                )
            )
    return teacher, students


def finished(run: Run, teacher_id: str = '') -> bool:
    """Whether a run is there with the same config and teacher.

    Args:
        run (Run): The run; its ``seconds`` are read back.
        teacher_id (str): Hash of the teacher's weights.

    Returns:
        bool: Whether training can be left out.

    Raises:
        DemoError: If the folder holds something else than a run of the demo.
    """
    if run.is_empty():
        return False
    content = run.read_record()
    if content is None:
        raise DemoError(
            f'{run.run_dir} is not empty and no run of this demo; give another --work-dir.'
        )
    run.seconds = content['seconds']
    return (
        content['finished']
        and content['signature'] == run.signature()
        and content['teacher'] == teacher_id
    )


def train(run: Run, teacher_id: str, resume: bool, display, position: int) -> None:
    """Train one model in a process of its own and record its time.

    Args:
        run (Run): What to train.
        teacher_id (str): Hash of the teacher's weights.
        resume (bool): Go on from the latest checkpoint if there is one.
        display: Shows the progress.
        position (int): Number of the run, from 1.

    Raises:
        DemoError: If the training fails.
    """
    content = dict(signature=run.signature(), teacher=teacher_id)
    previous = run.read_record()
    if previous is None:
        resume = False
    else:
        resume = resume and content.items() <= previous.items()
        if not resume:
            launch.make_room(run.run_dir, keep=previous['finished'])
    display.start(run, position, run.load_config().train_cfg.max_epochs)
    try:
        launch.execute(run, content, display.update, 'auto' if resume else None)
    except launch.TrainingFailed as error:
        raise DemoError(
            '\n'.join(
                [
                    *error.tail,
                    '',
                    f'{run.name}, seed {run.seed}: training ended '
                    f'with code {error.code}. The log is {error.log}; rerun this '
                    'command once it is mended, finished runs are kept.',
                ]
            )
        ) from error


def publish_teacher(run: Run) -> str:
    """Put the teacher's last weights where the students' configs look.

    Args:
        run (Run): The finished teacher.

    Returns:
        str: Hash of the weights.
    """
    import torch

    from crd_plugin.compat import load_checkpoint_file

    target = run.run_dir / 'teacher.pth'
    if not target.is_file():
        last = Path((run.run_dir / 'last_checkpoint').read_text().strip())
        checkpoint = load_checkpoint_file(run.run_dir / last.name)
        part = target.with_suffix('.part')
        torch.save(
            dict(
                state_dict=checkpoint['state_dict'],
                meta=dict(dataset_meta=checkpoint['meta']['dataset_meta']),
            ),
            part,
        )
        part.replace(target)
    state = torch.load(target, weights_only=True)['state_dict']
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode())
        digest.update(state[key].numpy().tobytes())
    return digest.hexdigest()[:16]


class Display:
    """Progress of the whole: a bar on a terminal, a few lines elsewhere.

    Args:
        num_runs (int): Runs to train, finished ones left out.
    """

    def __init__(self, num_runs: int) -> None:
        self.num_runs = num_runs
        self.queue = launch.Progress(num_runs)
        self.progress = None
        if sys.stdout.isatty():
            try:
                from rich.progress import BarColumn, Progress, TextColumn
            except ImportError:
                pass
            else:
                self.progress = Progress(
                    TextColumn('{task.description}'),
                    BarColumn(),
                    TextColumn('{task.fields[right]}'),
                )

    def __enter__(self) -> 'Display':
        if self.progress:
            self.progress.start()
            self.whole = self.progress.add_task('whole demo', total=self.num_runs, right='')
            self.current = self.progress.add_task('', total=1, right='')
        return self

    def __exit__(self, *exc_info) -> None:
        if self.progress:
            self.progress.stop()

    def start(self, run: Run, position: int, epochs: int) -> None:
        """A run begins."""
        self.position, self.epochs = position, epochs
        self.label = f'run {position}/{self.num_runs}: {run.name}, seed {run.seed}'
        self.queue.worked = position - 1.0
        self.queue.start('current', epochs)
        self.say(f'{self.label} -> {run.run_dir / LOG}')
        if self.progress:
            self.progress.update(
                self.current, description=self.label, completed=0, total=epochs, right='starting'
            )

    def update(self, epoch: int, validated: bool, text: str) -> None:
        """MMEngine logged an epoch."""
        due = self.queue.update('current', epoch, validated)
        if self.progress:
            self.progress.update(
                self.current,
                completed=epoch - (not validated),
                right=f'epoch {epoch}/{self.epochs}',
            )
            self.progress.update(
                self.whole,
                completed=self.queue.done,
                right=f'{self.queue.elapsed} gone, {self.queue.left} left',
            )
        if due:  # MMEngine's own words
            where = f'{self.position}/{self.num_runs} {self.queue.left} left'
            self.say(f'  [{where}] {" ".join(text.split())}')

    def say(self, line: str) -> None:
        """Write a line above the bars."""
        if self.progress:
            self.progress.console.print(line, markup=False, highlight=False)
        else:
            sys.stdout.write(f'{line}\n')
            sys.stdout.flush()


def describe_machine() -> dict:
    """What the numbers depend on.

    Returns:
        dict: Names and versions.
    """
    import mmengine
    import mmpretrain
    import mmrazor
    import torch

    device = 'cpu'
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    return dict(
        platform=platform.platform(),
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
        device=device,
        python=platform.python_version(),
        torch=torch.__version__,
        mmengine=mmengine.__version__,
        mmpretrain=mmpretrain.__version__,
        mmrazor=mmrazor.__version__,
    )


def _processor() -> str:
    try:
        text = Path('/proc/cpuinfo').read_text()
    except OSError:
        return platform.processor()
    match = re.search(r'model name\s*:\s*(.+)', text)
    return match.group(1) if match else platform.processor()


def report(runs: Sequence[Run], work_dir: Path, argv: Sequence[str]) -> str:
    """Read all runs and write results.md, results.json and curves.png.

    Args:
        runs (Sequence[Run]): Finished runs, the teacher first.
        work_dir (Path): Where to write.
        argv (Sequence[str]): The demo's command line.

    Returns:
        str: The table.
    """
    from crd_plugin.cli.results import plot_curves, read_run, render_table, summarise

    results = [read_run(run.run_dir, run.name, run.seed, run.seconds) for run in runs]
    rows = summarise(results)
    table = render_table(rows)
    machine = describe_machine()
    command = shlex.join(['python', 'tools/demo.py', *argv])
    write_whole(
        work_dir / 'results.json',
        json.dumps(
            dict(
                command=command,
                machine=machine,
                summary=rows,
                runs=[
                    dict(
                        config=str(run.config.relative_to(REPO)),
                        options=run.options,
                        **result.as_dict(),
                    )
                    for run, result in zip(runs, results)
                ],
            ),
            indent=1,
        ),
    )
    write_whole(
        work_dir / 'results.md',
        '\n'.join(
            [
                table,
                '',
                'Accuracies in percent on the 1,000 test digits, best epoch by '
                'top-1 on these same digits; mean ± sample standard deviation '
                'over seeds, one teacher for all. Seconds are of the whole '
                'process, start included.',
                '',
                f'Command: `{command}`',
                '',
                *(f'- {key}: {value}' for key, value in machine.items()),
                '',
            ]
        ),
    )
    plot_curves(
        results, work_dir / 'curves.png', title=f'scikit-learn digits, {TEACHER} to {STUDENT}'
    )
    return table


def demo(argv: Sequence[str]) -> None:
    """Train what is missing, then report.

    Args:
        argv (Sequence[str]): Command line.

    Raises:
        DemoError: If an argument is wrong or a training fails.
    """
    args = parse_args(argv)
    args.work_dir = args.work_dir.absolute()
    teacher, students = plan(args)
    teacher_id = ''
    missing = []
    if finished(teacher):
        teacher_id = publish_teacher(teacher)
    else:
        missing.append(teacher)
    for run in students:
        if run.needs_teacher and not teacher_id:
            finished(run)  # refuses folders that are not ours
            missing.append(run)
        elif not finished(run, teacher_id if run.needs_teacher else ''):
            missing.append(run)
    kept = 1 + len(students) - len(missing)
    with Display(len(missing)) as display:
        if kept:
            display.say(f'{kept} finished runs are kept: {args.work_dir}')
        for position, run in enumerate(missing, 1):
            if run is teacher:
                train(run, '', args.resume, display, position)
                teacher_id = publish_teacher(run)
            else:
                train(run, teacher_id if run.needs_teacher else '', args.resume, display, position)
    table = report([teacher, *students], args.work_dir, argv)
    sys.stdout.write(
        f'\n{table}\n\nwritten: {args.work_dir}/results.md, results.json, curves.png\n'
    )


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the demo.

    Args:
        argv (Sequence[str], optional): Command line; defaults to the
            process's.

    Returns:
        int: Exit code.
    """
    try:
        demo(sys.argv[1:] if argv is None else list(argv))
    except cli.UsageError as error:
        sys.stderr.write(f'error: {error}\n')
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(
            'interrupted; the same command keeps finished runs, with '
            '--resume it goes on inside the interrupted one.\n'
        )
        return 130
    return 0


if __name__ == '__main__':
    # `kill` as well as Ctrl-C must not leave a training behind.
    launch.interrupt_on_signals()
    sys.exit(main())
