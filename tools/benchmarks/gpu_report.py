"""Run every measurement that needs a GPU, within a time limit, and write a report.

What matters most comes first, each as a subprocess with a time limit of its own. ``report.json``
and ``report.md`` are written after each; what fails is recorded, and the next one begins.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import timing

HERE = Path(__file__).parent
REPO = HERE.parents[1]
sys.path.insert(0, str(REPO))  # the package may not be installed

from crd_plugin.cli import launch  # noqa: E402

PAIR, SMALL_PAIR = 'resnet32x4_resnet8x4_b64-240e_cifar100', 'resnet14_resnet8w4_b20-100e_digits'
# Options of train_step.py and of crd_loss.py.
FAST = 'model.channels_last=True optim_wrapper.type=AmpOptimWrapper optim_wrapper.dtype=bfloat16'
LOSS = 'model.distiller.distill_losses.loss_crd'
IN_ONE_LAUNCH = f'{FAST} {LOSS}.cuda_graph=True {LOSS}.kernel=triton'
COMPILED = f'{FAST} model.compile=True'
GRAPH = f'{FAST} model.compile.mode=reduce-overhead'
KERNELS = (
    '--modes sampled --vary cuda_graph=True --vary kernel=triton '
    '--vary cuda_graph=True kernel=triton'
)
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
    """Write the configs and return the steps, which run in the folder, what matters most first."""
    small = device == 'cpu'
    for method in ('kd', 'crd'):
        base = REPO / 'configs' / method / f'{method}_{SMALL_PAIR if small else PAIR}.py'
        text = CONFIG.format(base=str(base), stand_in='' if small else STAND_IN)
        (folder / f'{method}.py').write_text(text, encoding='utf-8')

    def benchmark(name: str, limit: float, words: str) -> Step:
        script = name.partition('-')[0]
        output = ['--json' if script == 'crd_loss' else '--out', f'{name}.json']
        command = [sys.executable, str(HERE / f'{script}.py'), *words.split(), '--device', device]
        return Step(name, limit, [*command, *output], f'{name}.json')

    def objective(size: str, limit: float, name: str = '', options: str = '') -> Step:
        words = '--size smoke --rounds 1' if small else f'--size {size} --rounds 21 {options}'
        return benchmark(f'crd_loss-{size}{name}', limit, words)

    def training(method: str, name: str, limit: float, options: str) -> Step:
        turns = '--iters 1 --rounds 1' if small else '--iters 30 --rounds 5 --check-sync'
        words = f'{method}.py {turns} --vary {options}'
        return benchmark(f'train_step-{method}-{name}', limit, words)

    def epoch(method: str) -> Step:
        command = [sys.executable, str(REPO / 'tools' / 'train.py'), f'{method}.py']
        command += ['--work-dir', f'epoch-{method}']
        return Step(f'epoch-{method}', 75, command, f'epoch-{method}/**/scalars.json', lines=4)

    tests = [sys.executable, '-m', 'pytest', '-m', 'cuda', '-q', '-p', 'no:cacheprovider']
    # Importing the whole suite would take longer than these tests.
    files = sorted((REPO / 'tests').rglob('test_*.py'))
    tests += [str(file) for file in files if 'pytest.mark.cuda' in file.read_text('utf-8')]
    sizes = '--data digits --batches 2 --rounds 1 --negatives 8 --workers 0'
    data = sizes if small else '--data cifar100 --workers 0 2 8'
    steps = [
        Step('tests', 90, tests, lines=20),
        objective('cifar', 60),
        training('kd', 'bf16', 60, FAST),
        training('crd', 'bf16', 60, FAST),
        epoch('kd'),
        epoch('crd'),
        objective('imagenet', 75),
        benchmark('data_pipeline', 75, data),
    ]
    if not small:  # a CPU has neither graph nor kernel, and compiles longer than all the rest takes
        steps[4:4] = [
            objective('cifar', 60, '-fast', KERNELS),
            training('crd', 'fast', 75, IN_ONE_LAUNCH),
        ]
        steps += [
            objective('imagenet', 75, '-fast', KERNELS),
            training('crd', 'compile', 120, COMPILED),
            training('crd', 'graph', 120, GRAPH),
            training('kd', 'compile', 120, COMPILED),
            training('kd', 'graph', 120, GRAPH),
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
            launch.stop(process, grace=0)
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
        timing.write_json(str(out / 'report.json'), report)
        (out / 'report.md').write_text(markdown(report), encoding='utf-8')
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
