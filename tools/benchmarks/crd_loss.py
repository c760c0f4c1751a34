"""Time of the CRD objective against ``mmrazor.CRDLoss``, in one run.

A step is forward, backward and the update of the banks. Ours draws its
negatives within the step; the reference is given its ids for free. Steps of
all candidates are interleaved, so a drift of the machine hits all of them,
and the median is shown.
"""
import argparse
import gc
import json
import os
import platform
import statistics
import sys
import time
from contextlib import contextmanager
from typing import Callable, Dict, Iterator, List, Tuple

SIZES = {
    # batch, samples, negatives, width, classes
    'cifar': (64, 50000, 16384, 128, 100),
    'imagenet': (32, 1281167, 16384, 128, 1000),
    'smoke': (8, 1000, 64, 16, 10),
}


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument(
        '--size', choices=SIZES, default='cifar', help='default: cifar')
    parser.add_argument(
        '--modes',
        nargs='+',
        default=['sampled', 'shared', 'all'],
        choices=['sampled', 'shared', 'all'],
        help='how negatives are taken; default: all three')
    parser.add_argument(
        '--rounds', type=int, default=7, help='timed steps of each; default 7')
    parser.add_argument(
        '--device', default='cpu', help='cpu or cuda; default: cpu')
    parser.add_argument(
        '--threads', type=int, default=2, help='CPU threads; default 2')
    parser.add_argument('--json', help='write the cases to this file')
    return parser.parse_args()


def main() -> None:
    """Run, print the table, write the JSON."""
    args = parse_args()
    if args.rounds < 1 or args.threads < 1:
        sys.exit('--rounds and --threads must be at least 1.')
    import torch
    torch.set_num_threads(args.threads)
    if args.device.startswith('cuda') and not torch.cuda.is_available():
        sys.exit('--device cuda: no GPU is available; use --device cpu.')

    steps, build = make_steps(args)
    times: Dict[str, List[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(args.rounds):
        for name, step in steps.items():
            times[name].append(time_step(step, args.device))
    peaks = {
        name: peak_mib(step, args.device)
        for name, step in steps.items()
    }

    reference = statistics.median(times['mmrazor'])
    cases = [
        dict(
            name=name,
            seconds=statistics.median(times[name]),
            reference_seconds=reference,
            ratio=reference / statistics.median(times[name]),
            peak_mib=peaks[name],
            build_seconds=build[name]) for name in steps
    ]
    sys.stdout.write(render(args, cases))
    if args.json:
        with open(args.json, 'w') as file:
            json.dump(cases, file, indent=2)


def make_steps(
    args: argparse.Namespace
) -> Tuple[Dict[str, Callable[[], None]], Dict[str, float]]:
    """A function that does one step for each candidate, and build seconds."""
    import torch
    import torch.nn.functional as F

    from crd_plugin.models import CRDLoss  # first: mends the imports below

    from mmpretrain.structures import DataSample  # isort: skip
    from mmrazor.models.losses import CRDLoss as ReferenceLoss  # isort: skip

    batch, num_samples, num_negatives, width, num_classes = SIZES[args.size]
    device = torch.device(args.device)
    torch.manual_seed(0)
    labels = torch.arange(num_samples) % num_classes
    sample_idx = torch.randperm(num_samples)[:batch]
    feats = [
        F.normalize(torch.randn(batch, width),
                    dim=1).to(device).requires_grad_() for _ in range(2)
    ]
    steps, build = {}, {}

    start = time.perf_counter()
    reference = ReferenceLoss(
        neg_num=num_negatives, sample_n=num_samples, dim_out=width).to(device)
    build['mmrazor'] = time.perf_counter() - start
    ids = torch.randint(num_samples, (batch, 1 + num_negatives))
    ids[:, 0] = sample_idx
    samples = []
    for index, contrast_idx in zip(sample_idx, ids.to(device)):
        sample = DataSample()
        sample.set_field(index.to(device), 'sample_idx')
        sample.set_field(contrast_idx, 'contrast_sample_idxs')
        samples.append(sample)

    def reference_step() -> None:
        reference(*feats, samples).backward()

    steps['mmrazor'] = reference_step
    on_device = sample_idx.to(device)
    for mode in args.modes:
        start = time.perf_counter()
        loss = CRDLoss(width, num_negatives, negatives=mode).to(device)
        loss.bank.resize(num_samples, labels, seed=0)
        loss.bank.label_index
        build[mode] = time.perf_counter() - start

        def step(loss: CRDLoss = loss) -> None:
            loss(*feats, on_device).backward()
            loss.bank.commit()

        steps[mode] = step
    return steps, build


def time_step(step: Callable[[], None], device: str) -> float:
    """Seconds of one step, work on a GPU included."""
    import torch
    wait = torch.cuda.synchronize if device != 'cpu' else (lambda: None)
    wait()
    start = time.perf_counter()
    step()
    wait()
    return time.perf_counter() - start


def peak_mib(step: Callable[[], None], device: str) -> float:
    """MiB that one step holds at most beyond what was held before it."""
    import torch
    gc.collect()
    if device != 'cpu':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with quiet_stderr(), torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU],
            profile_memory=True) as profile:
        step()
    held = peak = 0
    events = profile.profiler.kineto_results.events()
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == '[memory]':
            held += event.nbytes()
            peak = max(peak, held)
    return peak / 2**20


def processor_name() -> str:
    """Model of the CPU, as far as the system tells."""
    try:
        with open('/proc/cpuinfo') as file:
            for line in file:
                if line.startswith('model name'):
                    return line.partition(':')[2].strip()
    except OSError:
        return platform.processor()
    return platform.processor() or platform.machine()


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Drop what torch's profiler writes to the error stream of the process."""
    kept = os.dup(2)
    with open(os.devnull, 'w') as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def render(args: argparse.Namespace, cases: List[dict]) -> str:
    """The table and what it was measured on."""
    import torch
    batch, num_samples, num_negatives, width, _ = SIZES[args.size]
    hardware = processor_name()
    if args.device != 'cpu':
        hardware = torch.cuda.get_device_name()
    lines = [
        f'B={batch} N={num_samples} K={num_negatives} D={width} float32, '
        f'{args.device} ({hardware}, {args.threads} threads), '
        f'torch {torch.__version__}, median of {args.rounds}',
        f'{"case":<10}{"ms a step":>12}{"ratio":>9}{"peak MiB":>11}'
        f'{"build s":>10}',
    ]
    for case in cases:
        lines.append(f'{case["name"]:<10}{case["seconds"] * 1e3:>12.2f}'
                     f'{case["ratio"]:>8.1f}x{case["peak_mib"]:>11.1f}'
                     f'{case["build_seconds"]:>10.3f}')
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    main()
