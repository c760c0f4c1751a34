"""Time of the CRD objective against ``mmrazor.CRDLoss``, in one run.

A step is forward, backward and the update of the banks. Ours draws its negatives within the step,
and so does `plain`, the objective as one would first write it; the reference gets its ids for free.
FLOP and bytes are those of the scores, by the sizes alone: two products per direction with the rows
that are scored, which are read once; the reference writes a copy of K + 1 rows per anchor and reads
it twice. Building is what it takes until the bank has its rows and the index of its classes.
"""

import argparse
import itertools
import math
import statistics
import sys
from functools import partial
from typing import Any

import timing
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.benchmark import timer

SIZES = {
    # batch, samples, negatives, width, classes
    'cifar': (64, 50000, 16384, 128, 100),
    'imagenet': (32, 1281167, 16384, 128, 1000),
    'smoke': (8, 1000, 64, 16, 10),
}
MODES = ('sampled', 'shared', 'all')
FIELDS = dict(
    batch_size='samples per step',
    samples='rows of the bank',
    negatives='negatives of a sample',
    width='width of an embedding',
    classes='classes',
)


def parse_args() -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('--size', choices=SIZES, default='cifar', help='default: cifar')
    what = 'how negatives are taken; default: all three'
    add('--modes', nargs='+', default=MODES, choices=MODES, help=what)
    what = 'every mode once more with other arguments of CRDLoss'
    add('--vary', action='append', nargs='+', default=[], metavar='KEY=VALUE', help=what)
    for name, what in FIELDS.items():
        option = f'--{name.replace("_", "-")}'
        add(option, type=int, metavar='N', help=f'{what}; default: that of --size')
    dtypes = ('float64', 'float32', 'bfloat16', 'float16')
    what = 'of the embeddings; default: float32, which the objective uses for narrower ones too'
    add('--dtypes', nargs='+', default=['float32'], choices=dtypes, help=what)
    least = dict.fromkeys(FIELDS, 1)
    args = timing.parse(parser, 'json', rounds=7, device='cpu', threads=2, **least)
    for name, default in zip(FIELDS, SIZES[args.size], strict=True):
        setattr(args, name, getattr(args, name) or default)
    for option in itertools.chain(*args.vary):
        if '=' not in option:
            sys.exit(f'--vary {option}: expected KEY=VALUE, such as kernel=triton.')
    for name, least in (('batch_size', 1), ('classes', 2)):  # negatives are of another class
        if not least <= (number := getattr(args, name)) <= args.samples:
            option = f'--{name.replace("_", "-")}'
            sys.exit(f'{option} is {number}, expected {least} to the {args.samples} of --samples.')
    return args


class PlainCRD(nn.Module):
    """The objective with negatives of any class, as one would first write it."""

    def __init__(self, num_samples: int, num_negatives: int, width: int) -> None:
        super().__init__()
        self.num_samples, self.num_negatives = num_samples, num_negatives
        self.tau, self.momentum = 0.07, 0.5
        for name in ('teacher', 'student'):
            self.register_buffer(name, F.normalize(torch.randn(num_samples, width), dim=1))
        self.log_z: list[Tensor] = []  # set by the first batch, one per direction

    def forward(
        self, s_feats: Tensor, t_feats: Tensor, sample_idx: Tensor, ids: Tensor | None = None
    ) -> Tensor:
        """Return the loss; ``ids (B, 1 + K)`` are drawn here unless given."""
        if ids is None:
            size = (len(sample_idx), self.num_negatives)
            drawn = torch.randint(self.num_samples, size, device=sample_idx.device)
            ids = torch.cat([sample_idx[:, None], drawn], 1)
        losses = []
        for side, (anchors, bank) in enumerate([(s_feats, self.teacher), (t_feats, self.student)]):
            scores = (anchors @ bank.T).gather(1, ids) / self.tau
            if len(self.log_z) == side:
                mean = scores.detach().logsumexp((0, 1)) - math.log(scores.numel())
                self.log_z.append(mean + math.log(self.num_samples))
            logits = scores - self.log_z[side] - math.log(self.num_negatives / self.num_samples)
            losses.append((F.softplus(-logits[:, 0]) + F.softplus(logits[:, 1:]).sum(1)).mean())
        return losses[0] + losses[1]

    @torch.no_grad()
    def update(self, s_feats: Tensor, t_feats: Tensor, sample_idx: Tensor) -> None:
        """Move the rows of the batch towards its embeddings."""
        for bank, feats in ((self.student, s_feats), (self.teacher, t_feats)):
            bank[sample_idx] = F.normalize(
                torch.lerp(feats, bank[sample_idx], self.momentum), dim=1
            )


def make_steps(
    args: argparse.Namespace,
) -> tuple[dict[str, timing.Step], dict[str, dict[str, Any]]]:
    """Return a step of each candidate, and what it takes beside its time."""
    from crd_plugin.models import CRDLoss  # first: it makes MMRazor importable

    batch, num_samples, width = args.batch_size, args.samples, args.width
    torch.manual_seed(0)
    labels = torch.arange(num_samples) % args.classes
    ids = torch.randperm(num_samples)[:batch].to(args.device)
    feats = [F.normalize(torch.randn(batch, width), dim=1).to(args.device) for _ in range(2)]
    feats = [feat.requires_grad_() for feat in feats]
    steps: dict[str, timing.Step] = {}
    work: dict[str, dict[str, Any]] = {}

    def add(name: str, step: timing.Step, rows: int, pairs: int, **seconds: float) -> None:
        # Two directions, two products of 2 FLOP per number; float32.
        flop, read = 2 * 2 * 2 * pairs * width, 2 * 4 * rows * width
        steps[name] = step
        # The index of earlier versions took seconds of its own.
        work[name] = dict(flop=flop, bytes=read, index_seconds=None, draw_seconds=None) | seconds

    start = timer()
    step = reference_step(args, feats, ids)
    pairs = batch * (1 + args.negatives)
    add('mmrazor', step, 4 * pairs, pairs, build_seconds=timer() - start, draw_seconds=0.0)

    start = timer()
    plain = PlainCRD(num_samples, args.negatives, width).to(args.device)

    def plain_step() -> None:
        plain(*feats, ids).backward()
        plain.update(*feats, ids)

    add('plain', plain_step, num_samples, batch * num_samples, build_seconds=timer() - start)
    for mode, options in itertools.product(args.modes, [[], *args.vary]):
        taken = num_samples if mode == 'all' else args.negatives
        rows = min(num_samples, taken * (batch if mode == 'sampled' else 1))
        words = (option.split('=', 1) for option in options)
        given = {key: {'True': True, 'False': False}.get(value, value) for key, value in words}
        loss = CRDLoss(width, args.negatives, negatives=mode, **given).to(args.device)
        build = timing.seconds_of(partial(loss.bank.resize, num_samples, labels, seed=0))
        draw = statistics.median(
            timing.seconds_of(partial(loss.draw, ids)) for _ in range(args.rounds)
        )
        for dtype in args.dtypes:
            inputs = [feat.detach().to(getattr(torch, dtype)).requires_grad_() for feat in feats]

            def step(loss: Any = loss, inputs: list[Tensor] = inputs) -> None:
                loss(*inputs, ids).backward()
                loss.bank.commit()

            name = ' '.join([mode, *options, *([] if dtype == 'float32' else [dtype])])
            add(name, step, rows, batch * taken, build_seconds=build, draw_seconds=draw)
    return steps, work


def reference_step(
    args: argparse.Namespace, feats: list[Tensor], sample_idx: Tensor
) -> timing.Step:
    """Return a step of MMRazor's loss, its ids given by the data samples."""
    from mmrazor.models.losses import CRDLoss

    loss = CRDLoss(neg_num=args.negatives, sample_n=args.samples, dim_out=args.width)
    loss = loss.to(args.device)
    ids = torch.randint(args.samples, (args.batch_size, 1 + args.negatives), device=args.device)
    ids[:, 0] = sample_idx
    samples = mmrazor_samples(sample_idx, ids)
    return lambda: loss(*feats, samples).backward()


def mmrazor_samples(sample_idx: Tensor, contrast_idx: Tensor) -> list[Any]:
    """Data samples in which ids travel to MMRazor's loss."""
    from mmpretrain.structures import DataSample

    samples = [DataSample() for _ in sample_idx]
    for sample, index, others in zip(samples, sample_idx, contrast_idx, strict=True):
        sample.set_field(index, 'sample_idx')
        sample.set_field(others, 'contrast_sample_idxs')
    return samples


def ceilings(device: str) -> tuple[float, float]:
    """GFLOP/s of a large float32 product and GB/s of a large copy."""
    side, size = (1024, 1 << 25) if device == 'cpu' else (8192, 1 << 28)
    left, right = torch.randn(2, side, side, device=device)
    source = torch.randn(size, device=device)
    target = torch.empty_like(source)
    product = min(timing.seconds_of(lambda: left @ right.T) for _ in range(10))
    copy = min(timing.seconds_of(lambda: target.copy_(source)) for _ in range(5))
    return 2 * side**3 / product / 1e9, 2 * 4 * size / copy / 1e9


def main() -> None:
    """Run, print the table, write the JSON."""
    args = parse_args()
    steps, work = make_steps(args)
    cases = timing.measure(steps, args)
    gflops, gbytes = ceilings(args.device)
    for case in cases:
        seconds, costs = case['seconds'], work[case['name']]
        case.update(
            costs,
            reference_seconds=cases[0]['seconds'],
            ratio=cases[0]['seconds'] / seconds,
            gflop_per_second=costs['flop'] / seconds / 1e9,
            gbyte_per_second=costs['bytes'] / seconds / 1e9,
            ceiling_gflop_per_second=gflops,
            ceiling_gbyte_per_second=gbytes,
        )
    head = (
        f'B={args.batch_size} N={args.samples} K={args.negatives} D={args.width} float32, '
        f'{timing.machine(args.device)}, median of {args.rounds}\n'
        f'The machine reaches {gflops:.0f} GFLOP/s in a matrix product and {gbytes:.1f} GB/s in '
        'a copy.'
    )
    columns = {
        'ms per step': '{seconds_ms:.2f}',
        'ratio': '{ratio:.1f}x',
        'peak MiB': '{peak_mib:.1f}',
        'GFLOP/s': '{gflop_per_second:.0f}',
        'GB/s': '{gbyte_per_second:.1f}',
        'build s': '{build_seconds:.3f}',
    }
    timing.write_table(head, cases, columns)
    timing.write_json(args.json, cases)


if __name__ == '__main__':
    main()
