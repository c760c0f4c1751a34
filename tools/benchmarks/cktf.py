"""Time and memory of CKTF's objective against CRD alone, in one run.

A step is connectors, objective, backward and the update of the banks, from features of ResNet-32x4
and ResNet-8x4 on CIFAR-100. Levels are the penultimate one, then the stem and one stage after the
other. `4 apart` are four times CRD, with negatives and labels of their own; `pairing` is what is
done with the blocks, without an objective.
"""

import argparse
import time
from collections.abc import Sequence
from typing import Any

import timing
import torch
from torch import nn

SIZES = {
    # batch, samples, negatives, width, classes
    'cifar': (64, 50000, 16384, 128, 100),
    'tiny-imagenet': (64, 100000, 16384, 128, 200),
    'smoke': (4, 200, 32, 8, 10),
}
# Channels and side of stem and stages; the fourth stage stands for networks that have one.
MAPS = ((32, 32), (64, 32), (128, 16), (256, 8), (256, 8))


def parse_args() -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('--size', choices=SIZES, default='cifar', help='default: cifar')
    what = 'levels of CKTF; default: 1 4 5 6 (5: three stages, 6: four)'
    levels = [1, 3, 4, 5, 6]
    add('--levels', nargs='+', type=int, default=[1, 4, 5, 6], choices=levels, help=what)
    return timing.parse(parser, 'json', rounds=7, device='cpu', threads=2, clock=True)


def make_steps(
    args: argparse.Namespace,
) -> tuple[dict[str, timing.Step], dict[str, list[Any]]]:
    """Return a step of each candidate, and the losses with a bank in it."""
    from crd_plugin.models import CKTFLoss, CRDLoss, EmbeddingConnector

    batch, samples, negatives, width, classes = SIZES[args.size]
    device = args.device
    torch.manual_seed(0)
    labels = (torch.arange(samples) % classes).to(device)
    ids = torch.randperm(samples)[:batch].to(device)
    stem, *stages = [torch.rand(batch, *(size, side, side), device=device) for size, side in MAPS]
    vector = torch.rand(batch, 256, device=device)
    s_feats = vector.clone().requires_grad_()
    s_stem, *s_stages = [one.clone().requires_grad_() for one in (stem, *stages)]
    steps: dict[str, timing.Step] = {}
    losses: dict[str, list[Any]] = {}

    def inputs(number: int) -> dict[str, Any]:
        """Features with the first stages only."""
        blocks = dict(s_blocks=s_stages[:number], t_blocks=stages[:number])
        return dict(s_stem=s_stem, t_stem=stem, s_feats=s_feats, t_feats=vector, **blocks)

    def add(name: str, module: nn.Module, forward: timing.Step) -> None:
        found = [part for part in module.modules() if isinstance(part, CRDLoss)]

        def step() -> None:
            forward().backward()
            for loss in found:
                loss.bank.commit()

        steps[name], losses[name] = step, found

    def add_crd(name: str, count: int) -> None:
        """CRD so many times, with nothing in common."""
        parts = []
        for number in range(count):
            crd = CRDLoss(width, negatives)
            crd.bank.resize(samples, labels.cpu().clone(), seed=number)
            parts.append([crd, *(EmbeddingConnector(256, width) for _ in range(2))])
        modules = nn.ModuleList(map(nn.ModuleList, parts)).to(device)
        add(name, modules, lambda: sum(crd(s(s_feats), t(vector), ids) for crd, s, t in modules))

    def add_cktf(levels: int) -> None:
        """CKTF with its banks as the hook sizes them."""
        groups = max(levels - 2, 1)
        features = inputs(max(groups, 3))
        pool = 'avg8' if levels < 6 else 'global'
        theta = 0.1 if levels > 1 else 0
        settings = dict(num_negatives=negatives, pool=pool, theta=theta, num_groups=groups)
        loss = CKTFLoss(width, **settings)
        loss.infer_width(**features)
        loss.to(device)
        banks = [crd.bank for crd in loss.losses.values()]
        for number, bank in enumerate(banks):
            bank.resize(samples, labels, seed=number)
            if number:
                bank.share_labels(banks[0])
        name = f'{levels} level' + 's' * (levels > 1)
        add(name, loss, lambda: loss(**features, sample_idx=ids))

    def pair() -> Any:
        """Stem and three stages, pooled and flattened."""
        pairs = pairing.features(**inputs(3))
        return sum(student.sum() for student, _ in pairs.values())

    add_crd('crd', 1)
    pairing = CKTFLoss(beta=0, num_groups=3)
    add('pairing', nn.Module(), pair)
    for levels in args.levels:
        add_cktf(levels)
    add_crd('4 apart', 4)
    return steps, losses


def held_mib(losses: Sequence[Any]) -> float:
    """MiB of rows, labels and their index; what is shared counts once."""
    storages = [buffer.untyped_storage() for loss in losses for buffer in loss.bank.buffers()]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()) / 2**20


def main() -> None:
    """Run, print the table, write the JSON."""
    args = parse_args()
    steps, losses = make_steps(args)
    cases = timing.measure(steps, args, time.process_time if args.clock == 'cpu' else None)
    for case in cases:
        case['ratio'] = case['seconds'] / cases[0]['seconds']
        case['held_mib'] = held_mib(losses[case['name']])
    batch, samples, negatives, width, _ = SIZES[args.size]
    head = (
        f'B={batch} N={samples} K={negatives} D={width} float32, {timing.machine(args.device)}, '
        f'{args.clock} time, median of {args.rounds}'
    )
    columns = {
        'ms per step': '{seconds_ms:.2f}',
        'ratio': '{ratio:.2f}x',
        'peak MiB': '{peak_mib:.1f}',
        'held MiB': '{held_mib:.1f}',
    }
    timing.write_table(head, cases, columns)
    timing.write_json(args.json, cases)


if __name__ == '__main__':
    main()
