"""Shared by the benchmarks: arguments, turns, memory and tables."""

import argparse
import json
import os
import statistics
import sys
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

Step = Callable[[], Any]
Key, Result = TypeVar('Key', bound=Hashable), TypeVar('Result')
# Otherwise torch's profiler writes to stderr. Read when torch is imported, so before that.
os.environ.setdefault('KINETO_LOG_LEVEL', '99')
os.environ.setdefault('TORCH_CPP_LOG_LEVEL', 'ERROR')


def at_least(bound: int) -> Callable[[str], int]:
    """Return the type of an argument that is an integer of at least ``bound``."""

    def integer(text: str) -> int:
        if int(text) < bound:
            raise argparse.ArgumentTypeError(f'is {text}, expected at least {bound}')
        return int(text)

    return integer


def new_file(text: str) -> str:
    """Return the argument if it is a file in a folder that exists."""
    if os.path.isdir(text) or not Path(text).absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f'is {text}, expected a file in a folder that exists')
    return text


def parse(
    parser: argparse.ArgumentParser,
    rounds: int,
    device: str | None = None,
    threads: int | None = None,
) -> argparse.Namespace:
    """Add what every benchmark takes, with these defaults; parse; set device and threads."""
    add = parser.add_argument
    add('--rounds', type=at_least(1), default=rounds, help=f'turns of each; default: {rounds}')
    what = f'default: {device or "cuda if there is a GPU"}'
    add('--device', choices=['cpu', 'cuda'], default=device, help=what)
    what = f'CPU threads; default: {threads or "torch"}'
    add('--threads', type=at_least(1), default=threads, help=what)
    add('--json', '--out', type=new_file, metavar='FILE', help='write the result to this JSON file')
    args = parser.parse_args()
    if args.device == 'cpu':
        # Before torch looks; MMEngine takes whatever GPU it can see.
        os.environ['CUDA_VISIBLE_DEVICES'] = ''
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    has_gpu = torch.cuda.is_available()
    args.device = args.device or ('cuda' if has_gpu else 'cpu')
    if args.device == 'cuda' and not has_gpu:
        parser.error('--device cuda: no GPU is available; use --device cpu')
    return args


def take_turns(turns: Mapping[Key, Callable[[], Result]], rounds: int) -> dict[Key, list[Result]]:
    """Take all turns in each round, and rotate them, so that a drift of the machine hits all."""
    results: dict[Key, list[Result]] = {name: [] for name in turns}
    names = deque(turns)
    for _ in range(rounds):
        for name in names:
            results[name].append(turns[name]())
        names.rotate(-1)
    return results


def seconds_of(step: Step) -> float:
    """Seconds of one call, by a clock that waits for the GPU."""
    from torch.utils.benchmark import timer

    start = timer()
    step()
    return timer() - start


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


def summarise(name: str, batch_size: int, times: Sequence[float]) -> dict[str, Any]:
    """Median, fastest and slowest seconds of a batch, from the seconds per image of each round."""
    return dict(
        name=name,
        images_per_second=1 / statistics.median(times),
        seconds=batch_size * statistics.median(times),
        fastest=batch_size * min(times),
        slowest=batch_size * max(times),
    )


def columns(what: str, ratio: str) -> dict[str, str]:
    """Return the columns of what ``summarise`` returns, and of a ratio."""
    return {
        'images/s': '{images_per_second:,.1f}',
        f'ms per {what}': '{seconds_ms:.3f}',
        'fastest': '{fastest_ms:.3f}',
        'slowest': '{slowest_ms:.3f}',
        'ratio': ratio,
    }


def machine(device: str) -> str:
    """What is measured on: hardware, threads and torch's version."""
    import torch

    from crd_plugin.cli.launch import processor

    name = processor()
    if device != 'cpu':
        name = f'{torch.cuda.get_device_name()}, {name}'
    return f'{device} ({name}), {torch.get_num_threads()} threads, torch {torch.__version__}'


def write_table(head: str, cases: Sequence[dict[str, Any]], columns: dict[str, str]) -> None:
    """Print cases in columns by title and format; ``{seconds_ms}`` is ``seconds`` times 1000."""
    rows = [['case', *columns]]
    for case in cases:
        values = {f'{key}_ms': value * 1e3 for key, value in case.items() if type(value) is float}
        rows.append([case['name'], *(text.format(**case, **values) for text in columns.values())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [head]
    for name, *cells in rows:
        padded = [cell.rjust(width + 2) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append(name.ljust(widths[0]) + ''.join(padded))
    sys.stdout.write('\n'.join(lines) + '\n')


def write_json(path: str | None, result: Any) -> None:
    """Write a result to a file, if one is asked for."""
    if path:
        Path(path).write_text(json.dumps(result, indent=2), encoding='utf-8')
