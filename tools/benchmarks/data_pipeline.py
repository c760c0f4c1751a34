"""Images per second of a training set's data loader: plain, and resident.

A batch counts when it is what a training step takes: normalised images, ids
and labels as tensors on the device. All loaders are built as ``tools/
train.py`` builds them, from ``configs/_base_/datasets``; random images of the
number and size of the real ones stand in their place (the digits are real).
The loaders take turns of ``--batches`` batches, in an order that rotates from
round to round, so a drift of the machine hits all of them. A turn begins with
as many batches that are not counted as the workers hold ready.

The row ``contrast_idx`` is the plain loader with no worker that also draws
the ids of the negatives of each sample, as the published data sets do.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timing

DATA = ('cifar10', 'cifar100', 'digits', 'stl10', 'tiny-imagenet')
BASES = Path(__file__).parents[2] / 'configs' / '_base_' / 'datasets'
# Settings of a loader whose batches are made on the device.
RESIDENT = dict(
    num_workers=0,
    persistent_workers=False,
    pin_memory=False,
    collate_fn=dict(type='crd_plugin.whole_batch'),
    dataset=dict(type='crd_plugin.ResidentDataset'),
)


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
    add('--rounds', type=int, default=5, help='turns of each; default: 5')
    add('--device', choices=['cpu', 'cuda'], help='default: cuda if there is a GPU')
    add('--threads', type=int, help="CPU threads; default: torch's")
    add('--out', help='write the result to this JSON file')
    args = parser.parse_args()
    if any(number < 0 for number in args.workers):
        sys.exit(f'--workers is {args.workers}, expected at least 0 each.')
    timing.prepare(args, 'out', batch_size=1, batches=1, rounds=1, threads=1, negatives=0)
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

    fields = ['sample_idx', 'gt_label']

    def make(loader: dict[str, Any], fields: list[str], **preprocessor: str) -> Source:
        path = BASES / f'{args.data.replace("-", "_")}.py'
        cfg = Config.fromfile(path)
        cfg.merge_from_dict(dict(train_dataloader=loader, data_preprocessor=preprocessor))
        cfg.train_dataloader.batch_size = args.batch_size
        cfg.train_dataloader.setdefault('collate_fn', dict(type='default_collate'))
        if args.data != 'digits':
            replace_dataset(cfg.train_dataloader, str(path), folder)
        ahead = loader['num_workers'] * cfg.train_dataloader.get('prefetch_factor', 2)
        return Source(batches(cfg, fields, args.device), ahead)

    def plain(workers: int) -> dict[str, Any]:
        pin = args.device == 'cuda'
        return dict(num_workers=workers, persistent_workers=workers > 0, pin_memory=pin)

    sources = {
        f'plain, {workers} worker{"s" * (workers != 1)}': make(plain(workers), fields)
        for workers in args.workers
    }
    if args.negatives:
        loader = plain(0) | dict(dataset=dict(num_negatives=args.negatives))
        sources['contrast_idx'] = make(loader, [*fields, 'contrast_idx'])
    sources['resident'] = make(RESIDENT, fields, type='crd_plugin.ResidentDataPreprocessor')
    return sources


def measure(sources: dict[str, Source], args: argparse.Namespace) -> dict[str, list[float]]:
    """Measure seconds of a full batch's images, one number per turn, by loader."""
    from torch.utils.benchmark import timer

    seconds: dict[str, list[float]] = {name: [] for name in sources}
    for source in sources.values():
        next(source.batches)  # starts workers, reads what is read once
    for name in timing.turns(list(sources), args.rounds):
        source = sources[name]
        for _ in range(source.ahead + 1):
            next(source.batches)
        start = timer()
        images = sum(itertools.islice(source.batches, args.batches))
        seconds[name].append((timer() - start) * args.batch_size / images)
    return seconds


def summarise(seconds: dict[str, list[float]], batch_size: int) -> list[dict[str, Any]]:
    """Make a case for each loader; ratios are of one round each, which saw the same machine."""
    baseline = next(iter(seconds.values()))
    return [
        dict(
            name=name,
            seconds=statistics.median(times),
            fastest=min(times),
            slowest=max(times),
            images_per_second=batch_size / statistics.median(times),
            ratio=statistics.median(a / b for a, b in zip(baseline, times, strict=True)),
        )
        for name, times in seconds.items()
    ]


def main() -> None:
    """Build the loaders, measure, print the table, write the JSON."""
    args = parse_args()
    from mmengine.logging import MMLogger
    from mmengine.registry import DefaultScope

    DefaultScope.get_instance('data-pipeline', scope_name='mmpretrain')
    # Building a data set says something; the table is all that is wanted.
    MMLogger.get_instance('data-pipeline', log_level='ERROR')
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(make_sources(args, Path(folder)), args)
    cases = summarise(seconds, args.batch_size)
    head = (
        f'{args.data}, batch {args.batch_size}, {args.device}; median of {args.rounds} turns of '
        f'{args.batches} batches\n{timing.machine(args.device)}'
    )
    columns = {
        'images/s': '{images_per_second:,.0f}',
        'ms per batch': '{seconds_ms:.3f}',
        'fastest': '{fastest_ms:.3f}',
        'slowest': '{slowest_ms:.3f}',
        'ratio': '{ratio:.2f}x',
    }
    timing.write_table(head, cases, columns)
    timing.write_json(
        args.out, dict(args=vars(args), machine=timing.machine(args.device), cases=cases)
    )


if __name__ == '__main__':
    main()
