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


def parse_args() -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('--size', choices=SIZES, default='cifar', help='default: cifar')
    what = 'how negatives are taken; default: all three'
    add('--modes', nargs='+', default=MODES, choices=MODES, help=what)
    what = 'every mode once more with other arguments of CRDLoss'
    add('--vary', action='append', nargs='+', default=[], metavar='KEY=VALUE', help=what)
    dtypes = ('float64', 'float32', 'bfloat16', 'float16')
    what = 'of the embeddings; default: float32, which the objective uses for narrower ones too'
    add('--dtypes', nargs='+', default=['float32'], choices=dtypes, help=what)
    args = timing.parse(parser, rounds=7, device='cpu', threads=2)
    for option in itertools.chain(*args.vary):
        if '=' not in option:
            parser.error(f'--vary {option}: expected KEY=VALUE, such as kernel=triton')
    return args


class PlainCRD(nn.Module):
    """The objective with negatives of any class, as one would first write it."""

    def __init__(self, num_samples: int, num_negatives: int, width: int) -> None:
        super().__init__()
        self.num_samples, self.num_negatives = num_samples, num_negatives
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
            scores = (anchors @ bank.T).gather(1, ids) / 0.07
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
            bank[sample_idx] = F.normalize(bank[sample_idx] + feats, dim=1)  # momentum 0.5


def mmrazor_samples(sample_idx: Tensor, contrast_idx: Tensor) -> list[Any]:
    """Data samples in which ids travel to MMRazor's loss."""
    from mmpretrain.structures import DataSample

    samples = [DataSample() for _ in sample_idx]
    for sample, index, others in zip(samples, sample_idx, contrast_idx, strict=True):
        sample.set_field(index, 'sample_idx')
        sample.set_field(others, 'contrast_sample_idxs')
    return samples


def make_steps(args: argparse.Namespace) -> tuple[dict[str, timing.Step], list[dict[str, Any]]]:
    """Return a step of each candidate, and what it takes beside its time."""
    from crd_plugin.models import CRDLoss  # first: it makes MMRazor importable

    from mmrazor.models import losses as mmrazor  # isort: skip

    batch, num_samples, negatives, width, classes = SIZES[args.size]
    torch.manual_seed(0)
    labels = torch.arange(num_samples) % classes
    idx = torch.randperm(num_samples)[:batch].to(args.device)
    feats = [F.normalize(torch.randn(batch, width), dim=1).to(args.device) for _ in range(2)]
    feats = [feat.requires_grad_() for feat in feats]
    steps: dict[str, timing.Step] = {}
    cases: list[dict[str, Any]] = []

    def add(name: str, step: timing.Step, rows: int, pairs: int, build: float, draw: Any) -> None:
        # Two directions, two products of 2 FLOP per number; float32.
        work = dict(flop=2 * 2 * 2 * pairs * width, bytes=2 * 4 * rows * width)
        # The index of earlier versions took seconds of its own.
        seconds = dict(index_seconds=None, draw_seconds=draw, build_seconds=build)
        steps[name] = step
        cases.append(dict(name=name) | work | seconds)

    start = timer()
    reference = mmrazor.CRDLoss(neg_num=negatives, sample_n=num_samples, dim_out=width)
    reference = reference.to(args.device)
    ids = torch.randint(num_samples, (batch, 1 + negatives), device=args.device)
    ids[:, 0] = idx
    samples = mmrazor_samples(idx, ids)
    pairs = batch * (1 + negatives)
    build = timer() - start
    add('mmrazor', lambda: reference(*feats, samples).backward(), 4 * pairs, pairs, build, 0.0)

    start = timer()
    plain = PlainCRD(num_samples, negatives, width).to(args.device)

    def plain_step() -> None:
        plain(*feats, idx).backward()
        plain.update(*feats, idx)

    add('plain', plain_step, num_samples, batch * num_samples, timer() - start, None)
    for mode, options in itertools.product(args.modes, [[], *args.vary]):
        taken = num_samples if mode == 'all' else negatives
        rows = min(num_samples, taken * (batch if mode == 'sampled' else 1))
        words = (option.split('=', 1) for option in options)
        given = {key: {'True': True, 'False': False}.get(value, value) for key, value in words}
        loss = CRDLoss(width, negatives, negatives=mode, **given).to(args.device)
        build = timing.seconds_of(partial(loss.bank.resize, num_samples, labels, seed=0))
        draws = [timing.seconds_of(partial(loss.draw, idx)) for _ in range(args.rounds)]
        for dtype in args.dtypes:
            inputs = [feat.detach().to(getattr(torch, dtype)).requires_grad_() for feat in feats]

            def step(loss: Any = loss, inputs: list[Tensor] = inputs) -> None:
                loss(*inputs, idx).backward()
                loss.bank.commit()

            name = ' '.join([mode, *options, *([] if dtype == 'float32' else [dtype])])
            add(name, step, rows, batch * taken, build, statistics.median(draws))
    return steps, cases


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
    steps, cases = make_steps(args)
    for step in steps.values():
        step()  # allocates
    turns = {name: partial(timing.seconds_of, step) for name, step in steps.items()}
    taken = timing.take_turns(turns, args.rounds)
    gflops, gbytes = ceilings(args.device)
    reference = statistics.median(taken['mmrazor'])
    for case in cases:
        seconds = statistics.median(taken[case['name']])
        case.update(
            seconds=seconds,
            peak_mib=timing.peak_mib(steps[case['name']], args.device),
            reference_seconds=reference,
            ratio=reference / seconds,
            gflop_per_second=case['flop'] / seconds / 1e9,
            gbyte_per_second=case['bytes'] / seconds / 1e9,
            ceiling_gflop_per_second=gflops,
            ceiling_gbyte_per_second=gbytes,
        )
    batch, num_samples, negatives, width, _ = SIZES[args.size]
    head = (
        f'B={batch} N={num_samples} K={negatives} D={width} float32, '
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
