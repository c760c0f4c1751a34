"""Images a second of a training set's data loader: plain, and resident.

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

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List

DATA = ('cifar10', 'cifar100', 'digits', 'stl10', 'tiny-imagenet')
BASES = Path(__file__).parents[2] / 'configs' / '_base_' / 'datasets'


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--data', choices=DATA, default='cifar100', help='default: cifar100')
    parser.add_argument('--batch-size', type=int, default=64, help='default: 64')
    parser.add_argument(
        '--workers',
        type=int,
        nargs='*',
        default=[0, 1, 2],
        help='workers of the plain loader, a row each; default: 0 1 2',
    )
    parser.add_argument(
        '--negatives',
        type=int,
        default=16384,
        help='ids a sample in the row contrast_idx; 0 leaves it out; default: 16384',
    )
    parser.add_argument('--batches', type=int, default=50, help='batches a turn; default: 50')
    parser.add_argument('--rounds', type=int, default=5, help='turns of each; default: 5')
    parser.add_argument('--device', choices=['cpu', 'cuda'], help='default: cuda if there is a GPU')
    parser.add_argument('--threads', type=int, help="CPU threads; default: torch's")
    parser.add_argument('--out', help='write the result to this JSON file')
    return parser.parse_args()


def main() -> None:
    """Build the loaders, measure, print the table, write the JSON."""
    from crd_loss import check_writable

    args = parse_args()
    for name, least in dict(batch_size=1, batches=1, rounds=1, threads=1, negatives=0).items():
        number = getattr(args, name)
        if number is not None and number < least:
            sys.exit(f'--{name.replace("_", "-")} is {number}, expected at least {least}.')
    if any(number < 0 for number in args.workers):
        sys.exit(f'--workers is {args.workers}, expected at least 0 each.')
    check_writable('--out', args.out)
    if args.device == 'cpu':
        # Before torch looks; MMEngine takes whatever GPU it can see.
        os.environ['CUDA_VISIBLE_DEVICES'] = ''
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device is None:
        args.device = 'cuda' if torch.cuda.is_available() else 'cpu'
    if args.device == 'cuda' and not torch.cuda.is_available():
        sys.exit('--device cuda: no GPU is available; use --device cpu.')

    with tempfile.TemporaryDirectory() as folder:
        sources = make_sources(args, Path(folder))
        seconds = measure(sources, args)
    result = summarise(seconds, args)
    sys.stdout.write(render(result))
    if args.out:
        with open(args.out, 'w') as file:
            json.dump(result, file, indent=2)


class Source:
    """A data loader that gives ready batches without end.

    Args:
        cfg (dict): Config of the loader.
        preprocessor (dict): Config of the data preprocessor.
        device (str): Where batches are wanted.
        fields (list): Fields of the samples that a step takes, as tensors.
    """

    def __init__(
        self, cfg: Dict[str, Any], preprocessor: Dict[str, Any], device: str, fields: List[str]
    ) -> None:
        import torch
        from mmengine.registry import MODELS
        from mmengine.runner import Runner

        from crd_plugin.engine.hooks.random_state_hook import seeded_reading

        self.device = torch.device(device)
        self.fields = fields
        self.loader = Runner.build_dataloader(cfg, seed=0)
        self.reading = seeded_reading(self.loader.dataset)
        self.reading.set_seed(0)
        self.preprocess = MODELS.build(preprocessor).to(self.device)
        # Batches that workers have ready when a turn begins.
        self.ready = self.loader.num_workers * (self.loader.prefetch_factor or 0)
        self.batches = self._endless()

    def step(self) -> int:
        """Wait for the next batch; its images, fewer at an epoch's end."""
        return len(next(self.batches)[0])

    def _endless(self) -> Iterator[Any]:
        from crd_plugin.models.recorders.sample_field_recorder import stack_field

        for epoch in itertools.count():
            self.loader.sampler.set_epoch(epoch)
            self.reading.set_epoch(epoch)
            for batch in self.loader:
                batch = self.preprocess(batch, training=True)
                yield (
                    batch['inputs'],
                    [
                        stack_field(batch['data_samples'], field, self.device)
                        for field in self.fields
                    ],
                )


def make_sources(args: argparse.Namespace, folder: Path) -> Dict[str, Source]:
    """The loaders by name, the plain ones first."""
    import crd_plugin  # isort: skip  # noqa: F401  mends the imports below
    from mmengine.config import Config
    from mmengine.logging import MMLogger
    from mmengine.registry import DefaultScope
    from stand_in import replace_dataset

    from crd_plugin.fragments import keep_on_device

    DefaultScope.get_instance('data-pipeline', scope_name='mmpretrain')
    # Building a data set says something; the table is all that is wanted.
    MMLogger.get_instance('data-pipeline', log_level='ERROR')

    def build(resident: bool, fields: List[str], **changes: Any) -> Source:
        path = BASES / f'{args.data.replace("-", "_")}.py'
        cfg = Config.fromfile(path)
        if resident:
            keep_on_device(cfg)
        cfg.merge_from_dict(dict(train_dataloader=changes))
        loader = cfg.train_dataloader
        loader.batch_size = args.batch_size
        loader.setdefault('collate_fn', dict(type='default_collate'))
        if args.data != 'digits':
            replace_dataset(loader, str(path), folder)
        return Source(loader, cfg.data_preprocessor, args.device, fields)

    fields = ['sample_idx', 'gt_label']
    pin = args.device == 'cuda'
    sources = {}
    for workers in args.workers:
        name = f'plain, {workers} worker{"s" * (workers != 1)}'
        sources[name] = build(
            False, fields, num_workers=workers, persistent_workers=workers > 0, pin_memory=pin
        )
    if args.negatives:
        sources['contrast_idx'] = build(
            False,
            fields + ['contrast_idx'],
            num_workers=0,
            persistent_workers=False,
            pin_memory=pin,
            dataset=dict(num_negatives=args.negatives),
        )
    sources['resident'] = build(True, fields)
    return sources


def measure(sources: Dict[str, Source], args: argparse.Namespace) -> Dict[str, List[float]]:
    """Seconds of a full batch's images, one number a turn, by loader."""
    import torch

    wait = torch.cuda.synchronize if args.device == 'cuda' else (lambda: None)
    seconds: Dict[str, List[float]] = {name: [] for name in sources}
    names = list(sources)
    for source in sources.values():
        source.step()  # starts workers, reads what is read once
    for turn in range(args.rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            source = sources[name]
            for _ in range(source.ready + 1):
                source.step()
            wait()
            start = time.perf_counter()
            images = sum(source.step() for _ in range(args.batches))
            wait()
            seconds[name].append((time.perf_counter() - start) * args.batch_size / images)
    return seconds


def summarise(seconds: Dict[str, List[float]], args: argparse.Namespace) -> Dict[str, Any]:
    """Arguments, machine and a case for each loader."""
    import torch
    from crd_loss import processor_name

    hardware = processor_name()
    if args.device == 'cuda':
        hardware += f', {torch.cuda.get_device_name()}'
    baseline = next(iter(seconds.values()))
    cases = []
    for name, turns in seconds.items():
        # Of one round each: they saw the same machine.
        ratios = [theirs / ours for theirs, ours in zip(baseline, turns)]
        cases.append(
            dict(
                name=name,
                seconds=statistics.median(turns),
                fastest=min(turns),
                slowest=max(turns),
                images_per_second=args.batch_size / statistics.median(turns),
                ratio=statistics.median(ratios),
            )
        )
    return dict(
        args=vars(args),
        machine=f'{hardware}, {torch.get_num_threads()} threads, torch {torch.__version__}',
        cases=cases,
    )


def render(result: Dict[str, Any]) -> str:
    """The table and what it was measured on."""
    args = result['args']
    lines = [
        f'{args["data"]}, batch {args["batch_size"]}, {args["device"]}; '
        f'median of {args["rounds"]} turns of {args["batches"]} batches',
        result['machine'],
        f'{"loader":<18}{"images/s":>11}{"ms a batch":>12}{"fastest":>10}'
        f'{"slowest":>10}{"ratio":>9}',
    ]
    for case in result['cases']:
        lines.append(
            f'{case["name"]:<18}{case["images_per_second"]:>11,.0f}'
            f'{case["seconds"] * 1e3:>12.3f}'
            f'{case["fastest"] * 1e3:>10.3f}'
            f'{case["slowest"] * 1e3:>10.3f}{case["ratio"]:>8.2f}x'
        )
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    main()
