"""Time and memory of CKTF's objective against CRD alone, in one run.

A step is connectors, objective, backward and the update of the banks, from
features of ResNet-32x4 and ResNet-8x4 on CIFAR-100; CKTF pairs and pools the
blocks too. Levels are the penultimate one, then the stem and one stage after
the other. `4 apart` are four times CRD, each with negatives and labels of its
own; `pairing` is what is done with the blocks, without an objective. Steps of
all candidates are interleaved and the median is shown.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

sys.path.insert(0, str(Path(__file__).parent))
from crd_loss import (
    add_run_arguments,
    peak_mib,
    prepare,  # noqa: E402
    processor_name,
    time_step,
)

SIZES = {
    # batch, samples, negatives, width, classes
    'cifar': (64, 50000, 16384, 128, 100),
    'tiny-imagenet': (64, 100000, 16384, 128, 200),
    'smoke': (4, 200, 32, 8, 10),
}
# Channels and side of stem and stages; the fourth stage stands for nets that
# have one.
MAPS = ((32, 32), (64, 32), (128, 16), (256, 8), (256, 8))


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--size', choices=SIZES, default='cifar', help='default: cifar')
    parser.add_argument(
        '--levels',
        nargs='+',
        type=int,
        default=[1, 4, 5, 6],
        choices=[1, 3, 4, 5, 6],
        help='levels of CKTF; default: 1 4 5 6 (5: three stages, 6: four)',
    )
    parser.add_argument(
        '--clock',
        choices=['wall', 'cpu'],
        default='wall',
        help='cpu: time of the processor, for a busy machine; default: wall',
    )
    add_run_arguments(parser)
    return parser.parse_args()


def main() -> None:
    """Run, print the table, write the JSON."""
    args = parse_args()
    prepare(args)
    if args.clock == 'cpu' and args.device != 'cpu':
        sys.exit('--clock cpu says nothing of a GPU; use --clock wall.')

    steps, held = make_steps(args)
    times: Dict[str, List[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(args.rounds):
        for name, step in steps.items():
            times[name].append(
                cpu_time(step) if args.clock == 'cpu' else time_step(step, args.device)
            )
    gc.collect()
    peaks = {name: peak_mib(step, args.device) for name, step in steps.items()}
    reference = statistics.median(times['crd'])
    cases = [
        dict(
            name=name,
            seconds=statistics.median(times[name]),
            ratio=statistics.median(times[name]) / reference,
            peak_mib=peaks[name],
            held_mib=held[name],
        )
        for name in steps
    ]
    sys.stdout.write(render(args, cases))
    if args.json:
        with open(args.json, 'w') as file:
            json.dump(cases, file, indent=2)


def make_steps(args: argparse.Namespace) -> Tuple[Dict[str, Callable[[], None]], Dict[str, float]]:
    """A function that does one step for each candidate, and MiB it holds."""
    import torch

    from crd_plugin.models import CKTFLoss, CRDLoss, EmbeddingConnector

    batch, num_samples, num_negatives, width, num_classes = SIZES[args.size]
    device = torch.device(args.device)
    torch.manual_seed(0)
    labels = (torch.arange(num_samples) % num_classes).to(device)
    ids = torch.randperm(num_samples)[:batch].to(device)
    maps = [torch.rand(batch, channels, side, side, device=device) for channels, side in MAPS]
    vector = torch.rand(batch, 256, device=device)
    inputs = dict(
        s_stem=maps[0].clone().requires_grad_(),
        t_stem=maps[0],
        s_blocks=[stage.clone().requires_grad_() for stage in maps[1:]],
        t_blocks=maps[1:],
        s_feats=vector.clone().requires_grad_(),
        t_feats=vector,
    )
    steps, held = {}, {}

    def add(name: str, parts: List[Any], forward: Callable[[], Any]) -> None:
        """One candidate; its banks are the memory banks of its parts."""
        losses = [
            module for part in parts for module in part.modules() if isinstance(module, CRDLoss)
        ]

        def step() -> None:
            forward().backward()
            for loss in losses:
                loss.bank.commit()

        steps[name], held[name] = step, held_mib(losses)

    def apart(count: int) -> None:
        """CRD so many times, with nothing in common."""
        parts = []
        for number in range(count):
            crd = CRDLoss(width, num_negatives).to(device)
            crd.bank.resize(num_samples, labels.clone(), seed=number)
            crd.bank.label_index
            connectors = [EmbeddingConnector(256, width).to(device) for _ in range(2)]
            parts.append((crd, *connectors))

        def forward() -> Any:
            return sum(
                crd(student(inputs['s_feats']), teacher(vector), ids)
                for crd, student, teacher in parts
            )

        add('crd' if count == 1 else f'{count} apart', [crd for crd, _, _ in parts], forward)

    def cktf(levels: int) -> None:
        """CKTF as the hook sizes it."""
        stages = max(levels - 2, 1)
        chosen = {
            **inputs,
            's_blocks': inputs['s_blocks'][: max(stages, 3)],
            't_blocks': inputs['t_blocks'][: max(stages, 3)],
        }
        loss = CKTFLoss(
            width,
            num_negatives=num_negatives,
            pool='avg8' if levels < 6 else 'global',
            theta=0.1 if levels > 1 else 0,
            num_groups=stages,
        )
        loss.infer_width(**chosen)
        loss.to(device)
        first = None
        for number, crd in enumerate(loss.losses.values()):
            crd.bank.resize(num_samples, labels, seed=number)
            if first is None:
                first = crd.bank
                first.label_index
            else:
                crd.bank.share_labels(first)
        name = f'{levels} level' + 's' * (levels > 1)
        add(name, [loss], lambda: loss(**chosen, sample_idx=ids))

    def pairing() -> Any:
        """Stem and three stages, pooled and flattened."""
        pairs = CKTFLoss(beta=0, num_groups=3).features(
            **{**inputs, 's_blocks': inputs['s_blocks'][:3], 't_blocks': inputs['t_blocks'][:3]}
        )
        return sum(student.sum() for student, _ in pairs.values())

    apart(1)
    add('pairing', [], pairing)
    for levels in args.levels:
        cktf(levels)
    apart(4)
    return steps, held


def cpu_time(step: Callable[[], None]) -> float:
    """Seconds of the processor that one step takes, all threads together."""
    start = time.process_time()
    step()
    return time.process_time() - start


def held_mib(losses: List[Any]) -> float:
    """MiB of rows, labels and their index; what is shared counts once."""
    stored = {}
    for loss in losses:
        tensors = [*loss.bank.buffers(), *loss.bank.label_index]
        for tensor in tensors:
            if hasattr(tensor, 'untyped_storage'):
                storage = tensor.untyped_storage()
                stored[storage.data_ptr()] = storage.nbytes()
    return sum(stored.values()) / 2**20


def render(args: argparse.Namespace, cases: List[dict]) -> str:
    """The table and what it was measured on."""
    import torch

    batch, num_samples, num_negatives, width, _ = SIZES[args.size]
    hardware = processor_name()
    if args.device != 'cpu':
        hardware = torch.cuda.get_device_name()
    lines = [
        f'B={batch} N={num_samples} K={num_negatives} D={width} float32, '
        f'{args.device} ({hardware}, {args.threads} threads), {args.clock} '
        f'time, torch {torch.__version__}, median of {args.rounds}',
        f'{"case":<10}{"ms a step":>12}{"ratio":>9}{"peak MiB":>11}{"held MiB":>11}',
    ]
    for case in cases:
        lines.append(
            f'{case["name"]:<10}{case["seconds"] * 1e3:>12.2f}'
            f'{case["ratio"]:>8.2f}x{case["peak_mib"]:>11.1f}'
            f'{case["held_mib"]:>11.1f}'
        )
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    main()
