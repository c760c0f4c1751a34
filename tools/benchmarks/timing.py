"""Shared by the benchmarks: checks, paired rounds, memory and tables."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

Step = Callable[[], Any]
# Otherwise torch's profiler writes to stderr. Read when torch is imported, so before that.
os.environ.setdefault('KINETO_LOG_LEVEL', '99')
os.environ.setdefault('TORCH_CPP_LOG_LEVEL', 'ERROR')


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what a benchmark of an objective takes."""
    parser.add_argument('--rounds', type=int, default=7, help='timed steps of each; default 7')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu', help='default: cpu')
    parser.add_argument('--threads', type=int, default=2, help='CPU threads; default 2')
    parser.add_argument('--json', help='write the cases to this file')


def prepare(args: argparse.Namespace, output: str, **least: int) -> None:
    """Set threads and device; end the program if an argument cannot be used.

    Args:
        args (argparse.Namespace): The command line.
        output (str): Name of the argument that is a file to write.
        **least: Smallest value of arguments that are numbers.
    """
    for name, bound in least.items():
        number = getattr(args, name)
        if number is not None and number < bound:
            sys.exit(f'--{name.replace("_", "-")} is {number}, expected at least {bound}.')
    path = getattr(args, output)
    if path is not None and (os.path.isdir(path) or not Path(path).absolute().parent.is_dir()):
        sys.exit(
            f'--{output} is {path}, expected a file in a folder that exists; make the folder '
            'first, or name another.'
        )
    if args.device == 'cpu':
        # Before torch looks; MMEngine takes whatever GPU it can see.
        os.environ['CUDA_VISIBLE_DEVICES'] = ''
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    args.device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    if args.device == 'cuda' and not torch.cuda.is_available():
        sys.exit('--device cuda: no GPU is available; use --device cpu.')


def turns(names: Sequence[str], rounds: int) -> Iterator[str]:
    """Yield all names once per round, in an order that rotates: a drift of the machine hits all."""
    for number in range(rounds):
        first = number % len(names)
        yield from [*names[first:], *names[:first]]


def seconds_of(step: Step, clock: Callable[[], float] | None = None) -> float:
    """Seconds of one call, by a clock that waits for the GPU unless another is given."""
    from torch.utils.benchmark import timer

    now = clock or timer
    start = now()
    step()
    return now() - start


def measure(
    steps: dict[str, Step], args: argparse.Namespace, clock: Callable[[], float] | None = None
) -> list[dict[str, Any]]:
    """Let steps take turns; return name, median seconds and peak memory of each."""
    for step in steps.values():
        step()  # allocates
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for name in turns(list(steps), args.rounds):
        seconds[name].append(seconds_of(steps[name], clock))
    return [
        dict(
            name=name,
            seconds=statistics.median(seconds[name]),
            peak_mib=peak_mib(step, args.device),
        )
        for name, step in steps.items()
    ]


def peak_mib(step: Step, device: str) -> float:
    """MiB that one step holds at most beyond what was held before it."""
    import torch

    if device != 'cpu':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
        step()
    held = peak = 0
    events = profile.profiler.kineto_results.events()
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == '[memory]':
            held += event.nbytes()
            peak = max(peak, held)
    return peak / 2**20


def machine(device: str) -> str:
    """What is measured on: hardware, threads and torch's version."""
    import torch

    name = platform.processor() or platform.machine()
    if os.path.isfile('/proc/cpuinfo'):
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        models = [line.partition(':')[2].strip() for line in lines if 'model name' in line]
        name = models[0] if models else name
    if device != 'cpu':
        name = f'{torch.cuda.get_device_name()}, {name}'
    return f'{device} ({name}), {torch.get_num_threads()} threads, torch {torch.__version__}'


def write_table(head: str, cases: Sequence[dict[str, Any]], columns: dict[str, str]) -> None:
    """Print cases in columns by title and format; ``{seconds_ms}`` is ``seconds`` times 1000."""
    rows = [['case', *columns]]
    for case in cases:
        values = {f'{key}_ms': value * 1e3 for key, value in case.items() if type(value) is float}
        rows.append([case['name'], *(text.format(**case, **values) for text in columns.values())])
    first, *others = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [head]
    for name, *cells in rows:
        padded = [cell.rjust(width + 2) for cell, width in zip(cells, others, strict=True)]
        lines.append(name.ljust(first) + ''.join(padded))
    sys.stdout.write('\n'.join(lines) + '\n')


def write_json(path: str | None, result: Any) -> None:
    """Write a result to a file, if one is asked for."""
    if path:
        Path(path).write_text(json.dumps(result, indent=2), encoding='utf-8')
