"""Time of the CRD objective against ``mmrazor.CRDLoss``, in one run.

A step is forward, backward and the update of the banks. Ours draws its
negatives within the step; the reference is given its ids for free. Steps of
all candidates are interleaved, so a drift of the machine hits all of them,
and the median is shown.

FLOP and bytes are those that the method cannot do without: for ours two
products a direction with the rows that are scored, which are read once; for
the reference a copy of K + 1 rows an anchor, written once and read twice, as
its operations do. They are set against what the machine reaches in one large
matrix product and one large copy.

Building is what it takes until the bank has its random rows and its classes
are indexed; the index alone, which the reference makes in a loop over N, is
shown apart.
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
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

SIZES = {
    # batch, samples, negatives, width, classes
    'cifar': (64, 50000, 16384, 128, 100),
    'imagenet': (32, 1281167, 16384, 128, 1000),
    'smoke': (8, 1000, 64, 16, 10),
}
FIELDS = ('batch-size', 'samples', 'negatives', 'width', 'classes')


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--size', choices=SIZES, default='cifar', help='default: cifar')
    parser.add_argument(
        '--modes',
        nargs='+',
        default=['sampled', 'shared', 'all'],
        choices=['sampled', 'shared', 'all'],
        help='how negatives are taken; default: all three',
    )
    for name, what in zip(
        FIELDS,
        (
            'samples a step',
            'rows of the bank',
            'negatives of a sample',
            'width of an embedding',
            'classes',
        ),
    ):
        parser.add_argument(
            f'--{name}', type=int, metavar='N', help=f'{what}; default: that of --size'
        )
    parser.add_argument(
        '--dtypes',
        nargs='+',
        default=['float32'],
        choices=['float64', 'float32', 'bfloat16', 'float16'],
        help='of the embeddings; default: float32, which the objective is '
        'computed in for narrower ones too',
    )
    add_run_arguments(parser)
    return parser.parse_args()


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what any benchmark of an objective takes.

    Args:
        parser (ArgumentParser): Gets ``--rounds``, ``--device``,
            ``--threads`` and ``--json``.
    """
    parser.add_argument('--rounds', type=int, default=7, help='timed steps of each; default 7')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu', help='default: cpu')
    parser.add_argument('--threads', type=int, default=2, help='CPU threads; default 2')
    parser.add_argument('--json', help='write the cases to this file')


def prepare(args: argparse.Namespace) -> None:
    """Check what :func:`add_run_arguments` added, set the threads.

    Args:
        args (Namespace): The parsed command line.
    """
    if args.rounds < 1 or args.threads < 1:
        sys.exit('--rounds and --threads must be at least 1.')
    check_writable('--json', args.json)
    import torch

    torch.set_num_threads(args.threads)
    if args.device == 'cuda' and not torch.cuda.is_available():
        sys.exit('--device cuda: no GPU is available; use --device cpu.')


def check_writable(option: str, path: Optional[str]) -> None:
    """End the program if a result could not be written, before it is made.

    Args:
        option (str): Of the command line, for the message.
        path (str, optional): Given for it.
    """
    if path is None:
        return
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path) or not os.path.isdir(folder):
        sys.exit(
            f'{option} is {path}, expected a file in a folder that '
            f'exists; make {folder} first, or name another.'
        )


def main() -> None:
    """Run, print the table, write the JSON."""
    args = parse_args()
    # The size in numbers, some of them perhaps given one by one.
    args.numbers = []
    for field, default in zip(FIELDS, SIZES[args.size]):
        given = getattr(args, field.replace('-', '_'))
        args.numbers.append(default if given is None else given)
        if args.numbers[-1] < 1:
            sys.exit(f'--{field} is {given}, expected at least 1.')
    batch, num_samples, _, _, num_classes = args.numbers
    if batch > num_samples:
        sys.exit(f'--batch-size is {batch}, expected at most the {num_samples} of --samples.')
    if not 1 < num_classes <= num_samples:
        sys.exit(
            f'--classes is {num_classes}, expected 2 to the '
            f'{num_samples} of --samples: negatives are of another '
            'class.'
        )
    prepare(args)

    steps, work = make_steps(args)
    times: Dict[str, List[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(args.rounds):
        for name, step in steps.items():
            times[name].append(time_step(step, args.device))
    peaks = {name: peak_mib(step, args.device) for name, step in steps.items()}
    gflops, gbytes = ceilings(args.device)

    reference = statistics.median(times['mmrazor'])
    cases = []
    for name in steps:
        seconds = statistics.median(times[name])
        cases.append(
            dict(
                name=name,
                seconds=seconds,
                reference_seconds=reference,
                ratio=reference / seconds,
                peak_mib=peaks[name],
                gflop_per_second=work[name]['flop'] / seconds / 1e9,
                gbyte_per_second=work[name]['bytes'] / seconds / 1e9,
                ceiling_gflop_per_second=gflops,
                ceiling_gbyte_per_second=gbytes,
                **work[name],
            )
        )
    sys.stdout.write(render(args, cases))
    if args.json:
        with open(args.json, 'w') as file:
            json.dump(cases, file, indent=2)


def make_steps(args: argparse.Namespace) -> Tuple[Dict[str, Callable[[], None]], Dict[str, dict]]:
    """A function that does one step for each candidate, and what it does."""
    import torch
    import torch.nn.functional as F

    from crd_plugin.models import CRDLoss  # first: mends the imports below

    from mmpretrain.structures import DataSample  # isort: skip
    from mmrazor.models.losses import CRDLoss as ReferenceLoss  # isort: skip

    batch, num_samples, num_negatives, width, num_classes = args.numbers
    device = torch.device(args.device)
    torch.manual_seed(0)
    labels = torch.arange(num_samples) % num_classes
    sample_idx = torch.randperm(num_samples)[:batch]
    feats = [
        F.normalize(torch.randn(batch, width), dim=1).to(device).requires_grad_() for _ in range(2)
    ]
    steps, work = {}, {}

    start = time.perf_counter()
    reference = ReferenceLoss(neg_num=num_negatives, sample_n=num_samples, dim_out=width).to(device)
    copies = 2 * batch * (1 + num_negatives) * width
    work['mmrazor'] = dict(
        build_seconds=time.perf_counter() - start,
        index_seconds=None,  # Part of building.
        flop=4 * copies,
        bytes=4 * 4 * copies,
        draw_seconds=0.0,
    )
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
        loss = CRDLoss(width, num_negatives, negatives=mode).to(device)

        def fill(loss: Any = loss) -> None:
            loss.bank.resize(num_samples, labels, seed=0)

        filled = time_step(fill, args.device)
        indexed = time_step(lambda: loss.bank.label_index, args.device)
        drawing = statistics.median(
            time_step(lambda: loss.draw(on_device), args.device) for _ in range(1 + args.rounds)
        )
        for dtype in args.dtypes:
            embeddings = [
                feat.detach().to(getattr(torch, dtype)).requires_grad_() for feat in feats
            ]
            name = mode if dtype == 'float32' else f'{mode} {dtype}'
            # Both directions read the rows once and use them twice.
            rows, pairs = scored(loss, on_device)
            work[name] = dict(
                build_seconds=filled + indexed,
                index_seconds=indexed,
                flop=2 * 4 * pairs * width,
                bytes=2 * 4 * rows * width,
                draw_seconds=drawing,
            )

            def step(loss: Any = loss, embeddings: Any = embeddings) -> None:
                loss(*embeddings, on_device).backward()
                loss.bank.commit()

            steps[name] = step
    return steps, work


def scored(loss: Any, sample_idx: Any) -> Tuple[int, int]:
    """Rows of the bank that a step reads, and pairs that it multiplies."""
    drawn = loss.draw(sample_idx)
    if drawn.parts is not None:
        rows, anchors = drawn.parts.rows.numel(), drawn.parts.anchor.size(1)
        return rows, rows * anchors
    rows = (
        loss.bank.num_samples
        if drawn.index is None or drawn.drawn is not None
        else drawn.index.size(-1)
    )
    return rows, rows * len(sample_idx)


def ceilings(device: str) -> Tuple[float, float]:
    """GFLOP/s of a large float32 product and GB/s of a large copy."""
    import torch
    from crd_plugin.ops.matmul import times_transposed

    side, size = (1024, 1 << 25) if device == 'cpu' else (8192, 1 << 28)
    left, right = torch.randn(2, side, side, device=device)
    source = torch.randn(size, device=device)
    target = torch.empty_like(source)
    product = min(time_step(lambda: times_transposed(left, right), device) for _ in range(10))
    copy = min(time_step(lambda: target.copy_(source), device) for _ in range(5))
    return 2 * side**3 / product / 1e9, 2 * 4 * size / copy / 1e9


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
    from crd_plugin.ops.scratch import release

    gc.collect()
    release()  # Memory that is kept counts as well.
    if device != 'cpu':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with (
        quiet_stderr(),
        torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profile,
    ):
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

    batch, num_samples, num_negatives, width, _ = args.numbers
    hardware = processor_name()
    if args.device != 'cpu':
        hardware = torch.cuda.get_device_name()
    lines = [
        f'B={batch} N={num_samples} K={num_negatives} D={width} float32, '
        f'{args.device} ({hardware}, {args.threads} threads), '
        f'torch {torch.__version__}, median of {args.rounds}',
        f'{"case":<18}{"ms a step":>12}{"ratio":>9}{"drawing":>9}'
        f'{"peak MiB":>11}{"GFLOP/s":>9}{"GB/s":>7}{"build s":>10}'
        f'{"index s":>9}',
    ]
    for case in cases:
        index = case['index_seconds']
        lines.append(
            f'{case["name"]:<18}{case["seconds"] * 1e3:>12.2f}'
            f'{case["ratio"]:>8.1f}x'
            f'{case["draw_seconds"] / case["seconds"]:>9.0%}'
            f'{case["peak_mib"]:>11.1f}'
            f'{case["gflop_per_second"]:>9.0f}'
            f'{case["gbyte_per_second"]:>7.1f}'
            f'{case["build_seconds"]:>10.3f}' + ('        -' if index is None else f'{index:>9.4f}')
        )
    lines.append(
        'The machine reaches '
        f'{cases[0]["ceiling_gflop_per_second"]:.0f} GFLOP/s in a '
        'matrix product and '
        f'{cases[0]["ceiling_gbyte_per_second"]:.1f} GB/s in a copy.'
    )
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    main()
