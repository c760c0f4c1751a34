"""Images per second of a training set's data loader: plain, and resident.

Random images of the number and size of the real ones stand in their place (the digits are real). A
batch counts when it is what a training step takes: normalised images, ids and labels on the device.
The row ``contrast_idx`` also draws the ids of each sample's negatives, as published data sets do.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from operator import truediv
from pathlib import Path
from typing import Any, NamedTuple

import timing

DATA = ('cifar10', 'cifar100', 'digits', 'stl10', 'tiny-imagenet')
BASES = Path(__file__).parents[2] / 'configs' / '_base_' / 'datasets'


class Source(NamedTuple):
    """Sizes of the ready batches of a data loader, and how many its workers hold ready."""

    batches: Iterator[int]
    ahead: int


def parse_args() -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('--data', choices=DATA, default='cifar100', help='default: cifar100')
    add('--batch-size', type=int, default=64, help='default: 64')
    what = 'workers of the plain loader, a row each; default: 0 1 2'
    add('--workers', type=int, nargs='*', default=[0, 1, 2], help=what)
    what = 'ids per sample in the row contrast_idx; 0 leaves it out; default: 16384'
    add('--negatives', type=int, default=16384, help=what)
    add('--batches', type=int, default=50, help='batches per turn; default: 50')
    args = timing.parse(parser, 'out', rounds=5, batch_size=1, batches=1, negatives=0)
    if any(number < 0 for number in args.workers):
        sys.exit(f'--workers is {args.workers}, expected at least 0 each.')
    return args


def batches(cfg: Any, fields: Sequence[str], device: str) -> Iterator[int]:
    """Yield the images of each batch, fewer at an epoch's end, when a step could take it."""
    import torch
    from mmengine.registry import MODELS
    from mmengine.runner import Runner

    from crd_plugin.models.recorders.sample_field_recorder import stack_field

    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    preprocess = MODELS.build(cfg.data_preprocessor).to(device)
    for epoch in itertools.count():
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            batch = preprocess(batch, training=True)
            for field in fields:
                stack_field(batch['data_samples'], field, torch.device(device))
            yield len(batch['inputs'])


def make_sources(args: argparse.Namespace, folder: Path) -> dict[str, Source]:
    """Make the loaders by name, the plain ones first."""
    import crd_plugin  # isort: skip  # noqa: F401  makes the imports below work
    from mmengine.config import Config
    from stand_in import replace_dataset

    from crd_plugin.fragments import keep_on_device

    path = BASES / f'{args.data.replace("-", "_")}.py'

    def make(workers: int, negatives: int = 0, resident: bool = False) -> Source:
        cfg = Config.fromfile(path)
        loader = cfg.train_dataloader
        loader.update(
            batch_size=args.batch_size,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=args.device == 'cuda',
            collate_fn=dict(type='default_collate'),
        )
        fields = ['sample_idx', 'gt_label']
        if args.data != 'digits':
            replace_dataset(loader, str(path), folder)
        if negatives:
            loader.dataset.num_negatives = negatives
            fields.append('contrast_idx')
        if resident:
            keep_on_device(cfg)
        ahead = workers * loader.get('prefetch_factor', 2)
        return Source(batches(cfg, fields, args.device), ahead)

    sources = {
        f'plain, {workers} worker{"s" * (workers != 1)}': make(workers) for workers in args.workers
    }
    if args.negatives:
        sources['contrast_idx'] = make(0, negatives=args.negatives)
    sources['resident'] = make(0, resident=True)
    return sources


def turn(source: Source, batches: int) -> float:
    """Seconds per image of some batches, after those that the workers hold ready."""
    from torch.utils.benchmark import timer

    for _ in range(source.ahead + 1):
        next(source.batches)
    start = timer()
    images = sum(itertools.islice(source.batches, batches))
    return (timer() - start) / images


def main() -> None:
    """Build the loaders, measure, print the table, write the JSON."""
    args = parse_args()
    from mmengine.logging import MMLogger
    from mmengine.registry import DefaultScope

    DefaultScope.get_instance('data-pipeline', scope_name='mmpretrain')
    # Building a data set says something; the table is all that is wanted.
    MMLogger.get_instance('data-pipeline', log_level='ERROR')
    with tempfile.TemporaryDirectory() as folder:
        sources = make_sources(args, Path(folder))
        for source in sources.values():
            next(source.batches)  # starts workers, reads what is read once
        turns = {name: partial(turn, source, args.batches) for name, source in sources.items()}
        seconds = timing.take_turns(turns, args.rounds)
    first = next(iter(seconds.values()))
    cases = [
        # Ratios are of one round each, which saw the same machine.
        dict(
            timing.summarise(name, args.batch_size, times),
            ratio=statistics.median(map(truediv, first, times)),
        )
        for name, times in seconds.items()
    ]
    machine = timing.machine(args.device)
    head = (
        f'{args.data}, batch {args.batch_size}, {args.device}; median of {args.rounds} turns of '
        f'{args.batches} batches\n{machine}'
    )
    columns = {
        'images/s': '{images_per_second:,.0f}',
        'ms per batch': '{seconds_ms:.3f}',
        'fastest': '{fastest_ms:.3f}',
        'slowest': '{slowest_ms:.3f}',
        'ratio': '{ratio:.2f}x',
    }
    timing.write_table(head, cases, columns)
    timing.write_json(args.out, dict(args=vars(args), machine=machine, cases=cases))


if __name__ == '__main__':
    main()
