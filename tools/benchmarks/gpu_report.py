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
from typing import Any

import timing

HERE = Path(__file__).parent
REPO = HERE.parents[1]
sys.path.insert(0, str(REPO))  # the package may not be installed

from crd_plugin.cli import launch  # noqa: E402

PAIR, SMALL_PAIR = 'resnet32x4_resnet8x4_b64-240e_cifar100', 'resnet14_resnet8w4_b20-100e_digits'
# Options of train_step.py.
FAST = 'model.channels_last=True optim_wrapper.type=AmpOptimWrapper optim_wrapper.dtype=bfloat16'
LOSS = 'model.distiller.distill_losses.loss_crd'
IN_ONE_LAUNCH = f'{FAST} {LOSS}.cuda_graph=True {LOSS}.kernel=triton'
COMPILED = f'{FAST} model.compile=True'
GRAPH = f'{FAST} model.compile.mode=reduce-overhead'
# Options of crd_loss.py.
KERNELS = (
    '--modes sampled --vary cuda_graph=True --vary kernel=triton '
    '--vary cuda_graph=True kernel=triton'
)
# Name, time limit in seconds, options; what matters most comes first. A step may leave a result in
# NAME.json or NAME/**/scalars.json.
STEPS = (
    ('tests', 90, '-m pytest -m cuda -q -p no:cacheprovider'),
    ('crd_loss-cifar', 60, ''),
    ('train_step-kd-bf16', 60, FAST),
    ('train_step-crd-bf16', 60, FAST),
    ('crd_loss-cifar-fast', 60, KERNELS),
    ('train_step-crd-fast', 75, IN_ONE_LAUNCH),
    ('epoch-kd', 75, ''),
    ('epoch-crd', 75, ''),
    ('crd_loss-imagenet', 75, ''),
    ('data_pipeline', 75, ''),
    ('crd_loss-imagenet-fast', 75, KERNELS),
    ('train_step-crd-compile', 120, COMPILED),
    ('train_step-crd-graph', 120, GRAPH),
    ('train_step-kd-compile', 120, COMPILED),
    ('train_step-kd-graph', 120, GRAPH),
)
# A CPU has neither graph nor kernel, and compiles longer than all the rest takes.
GPU_ALONE = ('-fast', '-compile', '-graph')
WHOLE = dict(
    crd_loss='--size {case} --rounds 21',
    train_step='{case}.py --iters 30 --rounds 5 --check-sync --vary',
    data_pipeline='--data cifar100 --workers 0 2 8',
)
SMALL = dict(
    crd_loss='--size smoke --rounds 1',
    train_step='{case}.py --iters 1 --rounds 1 --vary',
    data_pipeline='--data digits --batches 2 --rounds 1 --negatives 8 --workers 0',
)
# Seconds under which no step is begun, and lines of the end of its output in the report.
LEAST, LINES = 5, 30
Step = tuple[str, float, list[str]]  # name, time limit in seconds, command

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


def parse_args() -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('--out', default='work_dirs/gpu_report', help='folder; default: work_dirs/gpu_report')
    add('--minutes', type=float, default=8, help='time limit of all steps together; default: 8')
    what = 'cpu: a trial of the report itself, at small sizes; default: cuda'
    add('--device', choices=['cuda', 'cpu'], default='cuda', help=what)
    args = parser.parse_args()
    import torch

    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('no GPU is available; --device cpu tries the report itself at small sizes')
    try:
        Path(args.out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f'--out is {args.out}, expected a folder ({error})')
    return args


def make_steps(device: str, folder: Path) -> list[Step]:
    """Write the configs and return the steps, which run in the folder."""
    small = device == 'cpu'
    for method in ('kd', 'crd'):
        base = REPO / 'configs' / method / f'{method}_{SMALL_PAIR if small else PAIR}.py'
        text = CONFIG.format(base=str(base), stand_in='' if small else STAND_IN)
        (folder / f'{method}.py').write_text(text, encoding='utf-8')
    return [
        (name, limit, [sys.executable, *make_command(name, options, device)])
        for name, limit, options in STEPS
        if not (small and name.endswith(GPU_ALONE))
    ]


def make_command(name: str, options: str, device: str) -> list[str]:
    """Return the arguments of Python for a step."""
    kind, case = f'{name}-'.split('-')[:2]
    if kind == 'tests':
        # Importing the whole suite would take longer than the tests that are marked.
        files = sorted((REPO / 'tests').rglob('test_*.py'))
        marked = [str(file) for file in files if 'pytest.mark.cuda' in file.read_text('utf-8')]
        return [*options.split(), *marked]
    if kind == 'epoch':
        return [str(REPO / 'tools' / 'train.py'), f'{case}.py', '--work-dir', name]
    words = (SMALL if device == 'cpu' else WHOLE)[kind].format(case=case)
    output = f'--device {device} --json {name}.json'
    return [str(HERE / f'{kind}.py'), *f'{words} {options} {output}'.split()]


def run_step(name: str, limit: float, command: list[str], folder: Path) -> dict[str, Any]:
    """Run one step for at most ``limit`` seconds; return what the report says about it."""
    log = folder / f'{name}.log'
    # Absolute, for the step runs in another folder.
    given = filter(None, os.environ.get('PYTHONPATH', '').split(os.pathsep))
    paths = [str(REPO), str(HERE), *map(os.path.abspath, given)]
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(paths), PYTHONUNBUFFERED='1')
    start = time.monotonic()
    with log.open('wb') as stream:
        # Its own session: stopping it stops its data workers and compilers too.
        process = subprocess.Popen(
            command,
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
        status=status,
        seconds=round(time.monotonic() - start, 1),
        last_line=text[-1] if text else '',
        output=text[-LINES:],
        result=read_result(name, folder),
    )


def read_result(name: str, folder: Path) -> Any:
    """Read what a step wrote: JSON, or one JSON object per line; None if there is nothing."""
    # A step that was stopped may have been writing.
    with contextlib.suppress(ValueError):
        for path in folder.glob(f'{name}.json'):
            return json.loads(path.read_text('utf-8'))
        for path in folder.glob(f'{name}/**/scalars.json'):
            return [json.loads(line) for line in path.read_text('utf-8').splitlines()]
    return None


def markdown(machine: str, rows: list[dict[str, Any]]) -> str:
    """Render the report: one table of all steps, then the end of what each wrote."""
    lines = ['# GPU report', '', machine, '', '| step | status | seconds | last line |']
    lines.append('|---|---|---|---|')
    for row in rows:
        last = row['last_line'].replace('|', r'\|')
        lines.append(f'| {row["name"]} | {row["status"]} | {row["seconds"]} | `{last}` |')
    for row in rows:
        lines += ['', f'## {row["name"]}', '', '```', *row['output'], '```']
    return '\n'.join(lines) + '\n'


def run_all(steps: list[Step], seconds: float, machine: str, scratch: Path, out: Path) -> None:
    """Run the steps within ``seconds``; write the report after each."""
    deadline = time.monotonic() + seconds
    empty = dict(status='not run', seconds=0, last_line='', output=[], result=None)
    rows = [dict(empty, name=name, command=command) for name, _, command in steps]
    for (name, limit, command), row in zip(steps, rows, strict=True):
        left = deadline - time.monotonic()
        if left >= LEAST:
            row.update(run_step(name, min(limit, left), command, scratch))
        timing.write_json(str(out / 'report.json'), dict(machine=machine, steps=rows))
        (out / 'report.md').write_text(markdown(machine, rows), encoding='utf-8')
        sys.stdout.write(f'{name}: {row["status"]}, {row["seconds"]} s; {row["last_line"]}\n')
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
