"""Run every measurement that needs a GPU, within a time limit, and write a report.

The GPU tests, the objective, whole training steps, one epoch of training and
the data loaders run one after the other, what matters most first, each as a
subprocess with a time limit of its own. ``report.json`` and ``report.md`` are
written after each: a step that fails, or takes too long, is recorded with the
last line it wrote, and the next one begins. Nothing is downloaded: random
images stand in for CIFAR-100, and the teacher has random weights.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import timing

HERE = Path(__file__).parent
REPO = HERE.parents[1]
PAIR, SMALL_PAIR = 'resnet32x4_resnet8x4_b64-240e_cifar100', 'resnet14_resnet8w4_b20-100e_digits'
FAST = (
    'model.channels_last=True optim_wrapper.type=AmpOptimWrapper optim_wrapper.dtype=bfloat16'
).split()
LOSS = 'model.distiller.distill_losses.loss_crd'
ONE_LAUNCH = ['cuda_graph=True', 'kernel=triton']
# Seconds under which no step is begun.
LEAST = 5

CONFIG = """\
_base_ = {base!r}
from crd_plugin.fragments import keep_on_device

{stand_in}
keep_on_device(_base_)
_base_.model.teacher_ckpt = None
_base_.train_cfg.max_epochs = 1
"""
# MMEngine keeps every name of a config but functions, so there is no loop here.
STAND_IN = """\
from stand_in import replace_dataset

replace_dataset(_base_.train_dataloader, 'CIFAR-100', '')
replace_dataset(_base_.val_dataloader, 'CIFAR-100', '')
replace_dataset(_base_.test_dataloader, 'CIFAR-100', '')
_base_.val_dataloader.dataset.indices = _base_.test_dataloader.dataset.indices = 10000
"""


class Step(NamedTuple):
    """One measurement: a command, its time limit, and where it leaves its result."""

    name: str
    limit: float  # seconds
    command: list[str]
    output: str = ''  # pattern of its JSON file in the folder of the run
    lines: int = 40  # of the end of its output that the report shows


def parse_args() -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('--out', default='work_dirs/gpu_report', help='folder; default: work_dirs/gpu_report')
    add('--minutes', type=float, default=8, help='time limit of all steps together; default: 8')
    what = 'cpu: a trial of the report itself, at small sizes; default: cuda'
    add('--device', choices=['cuda', 'cpu'], default='cuda', help=what)
    args = parser.parse_args()
    if not 0 < args.minutes < float('inf'):
        sys.exit(f'--minutes is {args.minutes:g}, expected a number above 0.')
    import torch

    if args.device == 'cuda' and not torch.cuda.is_available():
        sys.exit('no GPU is available; --device cpu tries the report itself at small sizes.')
    try:
        Path(args.out).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        sys.exit(f'--out is {args.out}, a file or in one; name a folder.')
    return args


def make_steps(device: str, folder: Path) -> list[Step]:
    """Write the configs and return the steps, what matters most first."""
    small = device == 'cpu'
    configs = {method: folder / f'{method}.py' for method in ('kd', 'crd')}
    for method, path in configs.items():
        base = REPO / 'configs' / method / f'{method}_{SMALL_PAIR if small else PAIR}.py'
        stand_in = '' if small else STAND_IN
        path.write_text(CONFIG.format(base=str(base), stand_in=stand_in), encoding='utf-8')

    def benchmark(name: str, limit: float, script: str, words: list[str]) -> Step:
        option = '--json' if script == 'crd_loss' else '--out'
        end = ['--device', device, option, str(folder / f'{name}.json')]
        command = [sys.executable, str(HERE / f'{script}.py'), *words, *end]
        return Step(name, limit, command, f'{name}.json')

    def objective(size: str, limit: float, name: str = '', *options: str) -> Step:
        words = f'--size {"smoke --rounds 1" if small else f"{size} --rounds 21"}'.split()
        return benchmark(f'crd_loss-{size}{name}', limit, 'crd_loss', [*words, *options])

    def training(method: str, name: str, limit: float, options: list[str]) -> Step:
        turns = '--iters 1 --rounds 1' if small else '--iters 30 --rounds 5 --check-sync'
        words = [str(configs[method]), *turns.split(), '--vary', *options]
        return benchmark(f'train_step-{method}-{name}', limit, 'train_step', words)

    def epoch(method: str) -> Step:
        work_dir = str(folder / f'epoch-{method}')
        command = [sys.executable, str(REPO / 'tools' / 'train.py'), str(configs[method])]
        command += ['--work-dir', work_dir]
        return Step(f'epoch-{method}', 75, command, f'epoch-{method}/**/scalars.json', lines=4)

    tests = [sys.executable, '-m', 'pytest', '-m', 'cuda', '-q', '-p', 'no:cacheprovider']
    # Importing the whole suite would take longer than these tests.
    files = sorted((REPO / 'tests').rglob('test_*.py'))
    tests += [str(file) for file in files if 'pytest.mark.cuda' in file.read_text('utf-8')]
    sizes = '--data digits --batches 2 --rounds 1 --negatives 8 --workers 0'
    data = sizes if small else '--data cifar100 --workers 0 2 8'
    compiled = [*FAST, 'model.compile=True']
    graph = [*FAST, 'model.compile.mode=reduce-overhead']
    in_one_launch = [f'{LOSS}.{option}' for option in ONE_LAUNCH]
    steps = [
        Step('tests', 90, tests, lines=20),
        objective('cifar', 60),
        training('kd', 'bf16', 60, FAST),
        training('crd', 'bf16', 60, FAST),
        epoch('kd'),
        epoch('crd'),
        objective('imagenet', 75),
        benchmark('data_pipeline', 75, 'data_pipeline', data.split()),
    ]
    if not small:  # a CPU has neither graph nor kernel, and compiles longer than all the rest takes
        vary = ['--vary', 'cuda_graph=True', '--vary', 'kernel=triton', '--vary', *ONE_LAUNCH]
        steps[4:4] = [
            objective('cifar', 60, '-fast', '--modes', 'sampled', *vary),
            training('crd', 'fast', 75, [*FAST, *in_one_launch]),
        ]
        steps += [
            objective('imagenet', 75, '-fast', '--modes', 'sampled', *vary),
            training('crd', 'compile', 120, compiled),
            training('crd', 'graph', 120, graph),
            training('kd', 'compile', 120, compiled),
            training('kd', 'graph', 120, graph),
        ]
    return steps


def run_step(step: Step, limit: float, folder: Path) -> dict[str, Any]:
    """Run one step for at most ``limit`` seconds; return what the report says about it."""
    log = folder / f'{step.name}.log'
    # Absolute, for the step runs in another folder.
    given = filter(None, os.environ.get('PYTHONPATH', '').split(os.pathsep))
    paths = [str(REPO), str(HERE), *map(os.path.abspath, given)]
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(paths), PYTHONUNBUFFERED='1')
    start = time.monotonic()
    with log.open('wb') as stream:
        # Its own session: stopping it stops its data workers and compilers too.
        process = subprocess.Popen(
            step.command,
            cwd=folder,
            env=env,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
            status = f'exit status {code}' if code else 'done'
        except subprocess.TimeoutExpired:
            status = f'stopped after {limit:.0f} s'
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    text = log.read_text(encoding='utf-8', errors='replace').rstrip().splitlines()
    return dict(
        name=step.name,
        status=status,
        seconds=round(time.monotonic() - start, 1),
        last_line=text[-1] if text else '',
        command=step.command,
        output=text[-step.lines :],
        result=read_result(step, folder),
    )


def read_result(step: Step, folder: Path) -> Any:
    """Read what a step wrote: JSON, or one JSON object per line; None if there is nothing."""
    for path in folder.glob(step.output) if step.output else ():
        text = path.read_text(encoding='utf-8')
        # A step that was stopped may have been writing.
        with contextlib.suppress(ValueError):
            if path.name == 'scalars.json':
                return [json.loads(line) for line in text.splitlines()]
            return json.loads(text)
    return None


def markdown(report: dict[str, Any]) -> str:
    """Render the report: one table of all steps, then the end of what each wrote."""
    lines = ['# GPU report', '', report['machine'], '', '| step | status | seconds | last line |']
    lines.append('|---|---|---|---|')
    for step in report['steps']:
        last = step['last_line'].replace('|', r'\|')
        lines.append(f'| {step["name"]} | {step["status"]} | {step["seconds"]} | `{last}` |')
    for step in report['steps']:
        lines += ['', f'## {step["name"]}', '', '```', *step['output'], '```']
    return '\n'.join(lines) + '\n'


def write_report(report: dict[str, Any], folder: Path) -> None:
    """Write ``report.json`` and ``report.md``."""
    timing.write_json(str(folder / 'report.json'), report)
    (folder / 'report.md').write_text(markdown(report), encoding='utf-8')


def run_all(steps: list[Step], seconds: float, machine: str, scratch: Path, out: Path) -> None:
    """Run the steps within ``seconds``; write the report after each."""
    deadline = time.monotonic() + seconds
    report: dict[str, Any] = dict(machine=machine, steps=[])
    for step in steps:
        left = deadline - time.monotonic()
        if left < LEAST:
            row = dict(name=step.name, status='no time left', seconds=0, last_line='')
            row.update(command=step.command, output=[], result=None)
        else:
            row = run_step(step, min(step.limit, left), scratch)
        report['steps'].append(row)
        write_report(report, out)
        sys.stdout.write(f'{step.name}: {row["status"]}, {row["seconds"]} s; {row["last_line"]}\n')
        sys.stdout.flush()


def main() -> None:
    """Run everything and say where the report is."""
    args = parse_args()
    import torch

    machine = f'{timing.machine(args.device)}, CUDA {torch.version.cuda}, '
    machine += f'cuDNN {torch.backends.cudnn.version()}, Python {sys.version.split()[0]}'
    sys.stdout.write(machine + '\n')
    out = Path(args.out).absolute()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        steps = make_steps(args.device, Path(folder))
        run_all(steps, 60 * args.minutes, machine, Path(folder), out)
    sys.stdout.write(f'written: {out / "report.md"} and {out / "report.json"}\n')


if __name__ == '__main__':
    main()
