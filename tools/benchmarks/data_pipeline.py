"""Images per second of a training set's data loader: plain, and resident.

Random images of the number and size of the real ones stand in their place (the digits are real). A
batch counts when it is what a training step takes: normalised images, ids and labels on the device.
The row ``contrast_idx`` also draws the ids of each sample's negatives, as published data sets do.
"""

import argparse
import itertools
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import truediv
from pathlib import Path
from typing import Any

import timing

DATA = ('cifar10', 'cifar100', 'digits', 'stl10', 'tiny-imagenet')
BASES = Path(__file__).parents[2] / 'configs' / '_base_' / 'datasets'


def parse_args() -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('--data', choices=DATA, default='cifar100', help='default: cifar100')
    at_least = timing.at_least
    add('--batch-size', type=at_least(1), default=64, help='default: 64')
    what = 'workers of the plain loader, a row each; default: 0 1 2'
    add('--workers', type=at_least(0), nargs='+', default=[0, 1, 2], help=what)
    what = 'ids per sample in the row contrast_idx; default: 16384'
    add('--negatives', type=at_least(1), default=16384, help=what)
    add('--batches', type=at_least(1), default=50, help='batches per turn; default: 50')
    return timing.parse(parser, rounds=5)


def ready_batches(cfg: Any, fields: Sequence[str], device: str) -> Iterator[int]:
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


def make_turns(args: argparse.Namespace, folder: str) -> dict[str, Callable[[], float]]:
    """Make the loaders, the plain ones first; return a turn of each by name."""
    import crd_plugin  # isort: skip  # noqa: F401  makes the imports below work
    from mmengine.config import Config
    from stand_in import replace_dataset

    from crd_plugin.fragments import keep_on_device

    path = BASES / f'{args.data.replace("-", "_")}.py'

    def make(workers: int, negatives: int = 0, resident: bool = False) -> Callable[[], float]:
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
        batches = ready_batches(cfg, fields, args.device)
        next(batches)  # starts workers, reads what is read once
        # Workers hold so many batches ready, which are not counted.
        ahead = workers * loader.get('prefetch_factor', 2)
        return partial(turn, batches, ahead, args.batches)

    turns = {f'plain, {count} worker{"s" * (count != 1)}': make(count) for count in args.workers}
    turns['contrast_idx'] = make(0, negatives=args.negatives)
    turns['resident'] = make(0, resident=True)
    return turns


def turn(batches: Iterator[int], ahead: int, number: int) -> float:
    """Seconds per image of some batches, after those that the workers hold ready."""
    from torch.utils.benchmark import timer

    for _ in range(ahead + 1):
        next(batches)
    start = timer()
    images = sum(itertools.islice(batches, number))
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
        seconds = timing.take_turns(make_turns(args, folder), args.rounds)
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
    columns = timing.columns('batch', ratio='{ratio:.2f}x')
    timing.write_table(head, cases, columns)
    timing.write_json(args.json, dict(args=vars(args), machine=machine, cases=cases))


if __name__ == '__main__':
    main()
