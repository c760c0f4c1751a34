"""Distil on real digits: ``python tools/demo.py``.

Trains a teacher, then the same small student alone and with each method, each
through tools/train.py and a config under configs/. Then prints one table and
writes results.md, results.json and curves.png into the work dir.

One teacher, trained with the first seed, serves all seeds, as in the papers:
the deviation is the student's alone. A finished run is not repeated; a run
whose config or teacher changed is, and the old one moved to <name>_old1.
"""
import argparse
import collections
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))
CONFIGS = REPO / 'configs'
TEACHER, STUDENT = 'resnet14', 'resnet8w4'
SETTING = 'b20-100e_digits'
METHODS = 'kd crd crd-kd'
RECORD = 'demo_run.json'
LOG = 'train.log'
# MMEngine's lines: Epoch(train)  [3][5/5]  lr: ...  Epoch(val) [3][4/4] ...
EPOCH_LINE = re.compile(r'(Epoch\((train|val)\)\s+\[(\d+)\].*)')


class DemoError(RuntimeError):
    """Something that the user can mend."""


class Run:
    """One training: its config, options and folder.

    Args:
        name (str): Row of the table.
        config (Path): Config file.
        seed (int): Seed.
        run_dir (Path): Work dir of the training.
        options (list[str]): ``key=value`` for ``--cfg-options``.
    """

    def __init__(self, name: str, config: Path, seed: int, run_dir: Path,
                 options: Sequence[str]) -> None:
        self.name = name
        self.config = config
        self.seed = seed
        self.run_dir = run_dir
        self.options = [f'randomness.seed={seed}', *options]
        self.needs_teacher = any(
            option.startswith('model.teacher_ckpt=') for option in options)
        self.seconds: Optional[float] = None

    def command(self, resume: bool = False) -> List[str]:
        """Command line of the training."""
        command = [
            sys.executable,
            str(REPO / 'tools' / 'train.py'),
            str(self.config), '--work-dir',
            str(self.run_dir)
        ]
        if resume:
            command += ['--resume', 'auto']
        return command + ['--cfg-options', *self.options]

    def load_config(self):
        """The config with the run's options."""
        from mmengine.config import Config, DictAction
        parser = argparse.ArgumentParser()
        parser.add_argument('--options', nargs='+', action=DictAction)
        args = parser.parse_args(['--options', *self.options])
        config = Config.fromfile(self.config)
        config.merge_from_dict(args.options)
        return config

    def signature(self) -> str:
        """Changes whenever the config or one of the options does."""
        text = json.dumps(
            self.load_config().to_dict(), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        '--seeds',
        default=['1'],
        nargs='+',
        help='one number N: seeds 0 to N-1; several ("0 3 7" or "0,3,7"): '
        'these. Default: 1')
    parser.add_argument(
        '--methods',
        default=[METHODS],
        nargs='*',
        help=f'methods beside the student alone. Default: "{METHODS}"')
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=Path('work_dirs/demo'),
        help='folder for runs and results. Default: work_dirs/demo')
    parser.add_argument(
        '--resume',
        action='store_true',
        help='go on with runs that were interrupted, from their latest\n'
        'checkpoint, instead of starting them anew')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='override config values in every run')
    args = parser.parse_args(argv)
    args.seeds = _parse_seeds(args.seeds)
    args.methods = list(
        dict.fromkeys(word for text in args.methods
                      for word in re.split(r'[\s,]+', text) if word))
    return args


def _parse_seeds(words: Sequence[str]) -> List[int]:
    parts = [part for word in words for part in re.split(r'[\s,]+', word)]
    numbers = [part for part in parts if part]
    if not numbers or not all(part.isdigit() for part in numbers):
        raise DemoError(f'--seeds {" ".join(words)}: expected a count or '
                        'several seeds, e.g. `--seeds 3` or `--seeds 0 3 7`.')
    seeds = [int(part) for part in numbers]
    if len(parts) > 1:
        return list(dict.fromkeys(seeds))
    if seeds[0] < 1:
        raise DemoError('--seeds 0: at least one seed is needed; for seed 0 '
                        'alone use `--seeds 1`.')
    return list(range(seeds[0]))


def find_config(method: str) -> Path:
    """Config of a method for the demo's pair.

    Args:
        method (str): Such as 'crd'.

    Raises:
        DemoError: If there is none.
    """
    tail = f'_{TEACHER}_{STUDENT}_{SETTING}.py'
    configs = {
        path.name[:-len(tail)]: path
        for path in sorted(CONFIGS.glob(f'*/*{tail}'))
    }
    if method not in configs:
        raise DemoError(
            f'--methods {method}: there is no configs/*/{method}{tail}; '
            f'available: {" ".join(configs) or "none"}.')
    return configs[method]


def plan(args: argparse.Namespace) -> Tuple[Run, List[Run]]:
    """The teacher's run and those of the students, in order.

    Args:
        args (argparse.Namespace): The parsed command line.

    Returns:
        tuple: Teacher, students.
    """
    vanilla = CONFIGS / 'vanilla'
    teacher = Run(f'teacher ({TEACHER})',
                  vanilla / f'vanilla_{TEACHER}_{SETTING}.py', args.seeds[0],
                  args.work_dir / 'teacher', args.cfg_options)
    teacher_ckpt = teacher.run_dir / 'teacher.pth'
    students = []
    configs = [(method, find_config(method)) for method in args.methods]
    for seed in args.seeds:
        students.append(
            Run(f'student alone ({STUDENT})',
                vanilla / f'vanilla_{STUDENT}_{SETTING}.py', seed,
                args.work_dir / f'vanilla_seed{seed}', args.cfg_options))
        for method, config in configs:
            students.append(
                Run(
                    method.upper().replace('-', '+'), config, seed,
                    args.work_dir / f'{method}_seed{seed}',
                    [*args.cfg_options, f'model.teacher_ckpt={teacher_ckpt}']))
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
    if not run.run_dir.exists() or not any(run.run_dir.iterdir()):
        return False
    record = run.run_dir / RECORD
    if not record.is_file():
        raise DemoError(
            f'{run.run_dir} is not empty and no run of this demo; give '
            'another --work-dir.')
    content = json.loads(record.read_text())
    run.seconds = content['seconds']
    return (content['finished'] and content['signature'] == run.signature()
            and content['teacher'] == teacher_id)


def train(run: Run, teacher_id: str, resume: bool, display,
          position: int) -> None:
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
    record = run.run_dir / RECORD
    signature = run.signature()
    content = dict(signature=signature, teacher=teacher_id)
    if record.is_file():
        previous = json.loads(record.read_text())
        resume = resume and content.items() <= previous.items()
        if not resume:
            _make_room(run.run_dir, keep=previous['finished'])
    else:
        resume = False
    run.run_dir.mkdir(parents=True, exist_ok=True)
    content.update(finished=False, seconds=None)
    _write(record, json.dumps(content, indent=1))

    epochs = run.load_config().train_cfg.max_epochs
    display.start(run, position, epochs)
    started = time.perf_counter()
    command = run.command(resume)
    tail = collections.deque(maxlen=20)
    with open(run.run_dir / LOG, 'a', encoding='utf-8') as log:
        log.write(f'$ {shlex.join(command)}\n')
        process = _start(command)
        try:
            for line in process.stdout:
                log.write(line)
                log.flush()
                tail.append(line.rstrip())
                match = EPOCH_LINE.search(line)
                if match:
                    text, kind, epoch = match.groups()
                    display.update(int(epoch), kind == 'val', text)
            code = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    # What came before an interruption is not known any more.
    run.seconds = None if resume else time.perf_counter() - started
    if code:
        raise DemoError('\n'.join([
            *tail, '', f'{run.name}, seed {run.seed}: training ended with '
            f'code {code}. The log is {run.run_dir / LOG}; rerun this command '
            'once it is mended, finished runs are kept.'
        ]))
    content.update(finished=True, seconds=run.seconds)
    _write(record, json.dumps(content, indent=1))


def _make_room(run_dir: Path, keep: bool) -> None:
    """Move a finished run of other settings aside; drop an unfinished one."""
    if not keep:
        shutil.rmtree(run_dir)
        return
    number = 1
    while (old := run_dir.with_name(f'{run_dir.name}_old{number}')).exists():
        number += 1
    run_dir.rename(old)


def _start(command: Sequence[str]) -> subprocess.Popen:
    """Start a process that finds the package of this checkout."""
    env = dict(os.environ, PYTHONUNBUFFERED='1')
    # Threads that spin while they wait make such small nets three times as
    # slow when anything else runs on the machine.
    env.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    path = [str(REPO), env.get('PYTHONPATH')]
    env['PYTHONPATH'] = os.pathsep.join(part for part in path if part)
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors='replace',
        env=env)


def publish_teacher(run: Run) -> str:
    """Put the teacher's last weights where the students' configs look.

    Args:
        run (Run): The finished teacher.

    Returns:
        str: Hash of the weights.
    """
    import torch

    import crd_plugin  # noqa: F401  lets MMEngine's checkpoints load safely
    target = run.run_dir / 'teacher.pth'
    if not target.is_file():
        last = Path((run.run_dir / 'last_checkpoint').read_text().strip())
        checkpoint = torch.load(
            run.run_dir / last.name, map_location='cpu', weights_only=True)
        part = target.with_suffix('.part')
        torch.save(
            dict(
                state_dict=checkpoint['state_dict'],
                meta=dict(dataset_meta=checkpoint['meta']['dataset_meta'])),
            part)
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
        self.done = 0.0  # runs
        self.began = time.perf_counter()
        self.progress = None
        if sys.stdout.isatty():
            try:
                from rich.progress import BarColumn, Progress, TextColumn
            except ImportError:
                pass
            else:
                self.progress = Progress(
                    TextColumn('{task.description}'), BarColumn(),
                    TextColumn('{task.fields[right]}'))

    def __enter__(self) -> 'Display':
        if self.progress:
            self.progress.start()
            self.whole = self.progress.add_task(
                'whole demo', total=self.num_runs, right='')
            self.current = self.progress.add_task('', total=1, right='')
        return self

    def __exit__(self, *exc_info) -> None:
        if self.progress:
            self.progress.stop()

    def start(self, run: Run, position: int, epochs: int) -> None:
        """A run begins."""
        self.position, self.epochs, self.epoch = position, epochs, 0
        self.label = (f'run {position}/{self.num_runs}: {run.name}, '
                      f'seed {run.seed}')
        self.done = position - 1
        self.say(f'{self.label} -> {run.run_dir / LOG}')
        if self.progress:
            self.progress.update(
                self.current,
                description=self.label,
                completed=0,
                total=epochs,
                right='starting')

    def update(self, epoch: int, validated: bool, text: str) -> None:
        """MMEngine logged an epoch."""
        before, self.epoch = self.epoch, epoch - (not validated)
        self.done = self.position - 1 + self.epoch / self.epochs
        elapsed = time.perf_counter() - self.began
        left = '?'
        if self.done > 0:
            left = _clock(elapsed / self.done * (self.num_runs - self.done))
        right = f'epoch {epoch}/{self.epochs}'
        if self.progress:
            self.progress.update(
                self.current, completed=self.epoch, right=right)
            self.progress.update(
                self.whole,
                completed=self.done,
                right=f'{_clock(elapsed)} gone, {left} left')
        # A tenth of the epochs, with MMEngine's own words.
        step = max(1, self.epochs // 10)
        due = epoch % step == 0 or epoch == self.epochs
        if due and (not validated or self.epoch > before):
            where = f'{self.position}/{self.num_runs} {left} left'
            self.say(f'  [{where}] {" ".join(text.split())}')

    def say(self, line: str) -> None:
        """Write a line above the bars."""
        if self.progress:
            self.progress.console.print(line, markup=False, highlight=False)
        else:
            print(line, flush=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f'{minutes}:{seconds:02d}'


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
        cores=len(os.sched_getaffinity(0)) if hasattr(
            os, 'sched_getaffinity') else os.cpu_count(),
        device=device,
        python=platform.python_version(),
        torch=torch.__version__,
        mmengine=mmengine.__version__,
        mmpretrain=mmpretrain.__version__,
        mmrazor=mmrazor.__version__)


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
    from crd_plugin.visualization import (plot_curves, read_run, render_table,
                                          summarise)
    results = [
        read_run(run.run_dir, run.name, run.seed, run.seconds) for run in runs
    ]
    rows = summarise(results)
    table = render_table(rows)
    machine = describe_machine()
    command = shlex.join(['python', 'tools/demo.py', *argv])
    _write(
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
                        **result.as_dict())
                    for run, result in zip(runs, results)
                ]),
            indent=1))
    _write(
        work_dir / 'results.md', '\n'.join([
            table, '',
            'Accuracies in percent on the 1,000 test digits, best epoch by '
            'top-1 on these same digits; mean ± sample standard deviation '
            'over seeds, one teacher for all. Seconds are of the whole '
            'process, start included.', '', f'Command: `{command}`', '',
            *(f'- {key}: {value}' for key, value in machine.items()), ''
        ]))
    plot_curves(
        results,
        work_dir / 'curves.png',
        title=f'scikit-learn digits, {TEACHER} to {STUDENT}')
    return table


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(path.name + '.part')
    part.write_text(text, encoding='utf-8')
    part.replace(path)


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
                train(run, teacher_id if run.needs_teacher else '',
                      args.resume, display, position)
    table = report([teacher, *students], args.work_dir, argv)
    print(f'\n{table}\n\nwritten: '
          f'{args.work_dir}/results.md, results.json, curves.png')


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
    except DemoError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            'interrupted; the same command keeps finished runs, with '
            '--resume it goes on inside the interrupted one.',
            file=sys.stderr)
        return 130
    return 0


def _interrupt(*_) -> None:
    raise KeyboardInterrupt


if __name__ == '__main__':
    # `kill` as well as Ctrl-C must not leave a training behind.
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(main())
