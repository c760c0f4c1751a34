"""Images per second of whole training steps, and where the time goes.

Several configs take turns of ``--iters`` steps, fetching included, built and driven as
``tools/train.py`` does it. A part is charged with the time that the GPU works for it or waits for
the host. Peak memory is that of one step beyond what is held between steps.
"""

import argparse
import functools
import itertools
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from operator import truediv
from pathlib import Path
from typing import Any

import timing

PARTS = dict(
    data='waiting for a batch and preparing it on the device',
    teacher="the teacher's forward pass",
    student="the student's forward pass with its own loss",
    objective='connectors and distillation losses',
    backward='backward pass',
    optimizer='optimizer step and zero_grad',
    commit='MemoryBankHook',
    other='other hooks and the logging of losses',
)


def parse_args() -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n')[0],
        epilog='Parts of a step: ' + '; '.join(f'{part}: {text}' for part, text in PARTS.items()),
    )
    add, at_least = parser.add_argument, timing.at_least
    add('configs', nargs='+', metavar='CONFIG', help='config files')
    what = 'measure the first config once more with these options; may be given several times'
    add('--vary', nargs='+', action='append', default=[], metavar='KEY=VALUE', help=what)
    what = 'replace settings of all configs'
    add('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help=what)
    what = 'random images of the number and size of the real training set'
    add('--synthetic', action='store_true', help=what)
    add('--num-workers', type=at_least(0), help='default: that of the config')
    add('--iters', type=at_least(1), default=20, help='steps per turn; default 20')
    what = 'steps of a turn that are not counted; default: what the loader holds ready, at least 2'
    add('--warmup', type=at_least(0), help=what)
    what = (
        'cpu: seconds that the processor works for this process, all its threads together and '
        'data workers not counted; for --device cpu on a busy machine. Default: wall'
    )
    add('--clock', choices=['wall', 'cpu'], default='wall', help=what)
    what = 'run one step that must not wait for the GPU; exit status 1 if one does'
    add('--check-sync', action='store_true', help=what)
    args = timing.parse(parser, rounds=5)
    if args.check_sync and args.device == 'cpu':
        parser.error('--check-sync looks for waits on a GPU; it needs --device cuda')
    if args.clock == 'cpu' and args.device != 'cpu':
        parser.error('--clock cpu does not see what a GPU does; add --device cpu')
    return args


def load_config(path: str, options: Sequence[str], args: argparse.Namespace, folder: str) -> Any:
    """Load a config ready to be driven: no validation, no checkpoints."""
    import crd_plugin  # noqa: F401  first: makes the imports below work

    from crd_plugin.cli import arguments as cli, runs  # isort: skip

    try:
        cfg = runs.load_config(path, options)
    except cli.UsageError as error:
        sys.exit(f'error: {error}')
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.test_cfg = cfg.test_dataloader = cfg.test_evaluator = None
    cfg.setdefault('default_hooks', {})
    cfg.default_hooks.checkpoint = None
    cfg.log_level = 'ERROR'
    if args.num_workers is not None:
        cfg.train_dataloader.num_workers = args.num_workers
    # What tools/train.py fills in.
    given = dict(launcher='none', local_rank=0, cfg_options=None, no_pin_memory=False)
    cli.merge_common_arguments(cfg, argparse.Namespace(work_dir=folder, **given))
    if 'teacher_ckpt' in cfg.model:  # random weights take the same time
        cfg.model.teacher_ckpt = cli.without_files(cfg.model.teacher_ckpt)
    if args.synthetic:
        from stand_in import replace_dataset

        replace_dataset(cfg.train_dataloader, path, folder)
    return cfg


class Clock:
    """Charge the time between two marks to the name of the second.

    On a GPU it is that of the stream, by events, for which nothing waits; on a CPU, ``kind`` says
    whether it is that of the clock or of the processor.
    """

    def __init__(self, device: str, kind: str) -> None:
        from torch.utils.benchmark import timer

        self.on_cpu = device == 'cpu'
        self._seconds = time.process_time if kind == 'cpu' else timer  # waits for the GPU
        self._marks: list[tuple[str, Any]] = []

    def mark(self, name: str) -> None:
        """Charge what has passed since the last mark."""
        if self.on_cpu:
            now: Any = self._seconds()
        else:
            import torch

            now = torch.cuda.Event(enable_timing=True)
            now.record()
        self._marks.append((name, now))

    def time(self, step: timing.Step) -> tuple[Any, float, dict[str, float]]:
        """Call a function; return its result, and the seconds of the whole and of each part."""
        begin, self._marks = self._seconds(), []
        self.mark('')
        result = step()
        seconds, parts = self._seconds() - begin, dict.fromkeys(PARTS, 0.0)
        for (_, first), (name, last) in itertools.pairwise(self._marks):
            parts[name] += last - first if self.on_cpu else first.elapsed_time(last) / 1e3
        return result, seconds, parts

    def charge(self, owner: Any, method: str, name: str) -> None:
        """Put a mark before and after each call of a method."""
        function = getattr(owner, method)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            self.mark('other')
            result = function(*args, **kwargs)
            self.mark(name)
            return result

        setattr(owner, method, call)


class Case:
    """One config with its runner.

    The runner is built up to where its first epoch begins, and the borders of the parts marked.
    """

    def __init__(self, name: str, cfg: Any, args: argparse.Namespace) -> None:
        from crd_plugin.cli import arguments as cli

        self.name, self.batch_size = name, cfg.train_dataloader.batch_size
        self.clock = Clock(args.device, args.clock)
        self.runner = runner = cli.build_runner(cfg)
        self.loop = runner.train_loop
        self.loop.run = lambda: runner.model  # Runner.train builds everything, then runs the loop
        runner.train()
        runner.call_hook('before_train')
        model, charge = getattr(runner.model, 'module', runner.model), self.clock.charge
        charge(model.data_preprocessor, 'forward', 'data')
        if hasattr(model, 'teacher'):
            charge(model.teacher, 'forward', 'teacher')
        charge(model.student if hasattr(model, 'teacher') else model, 'forward', 'student')
        if hasattr(model, 'distiller'):
            charge(model.distiller, 'compute_distill_losses', 'objective')
        charge(runner.optim_wrapper, 'backward', 'backward')
        charge(runner.optim_wrapper, 'step', 'optimizer')
        charge(runner.optim_wrapper, 'zero_grad', 'optimizer')
        for hook in runner.hooks:
            if type(hook).__name__ == 'MemoryBankHook':
                charge(hook, 'before_train_iter', 'commit')
                charge(hook, 'after_train_iter', 'commit')
        self.steps = self._run()

    def _run(self) -> Iterator[int]:
        """Do step after step, epoch after epoch; yield the images of each."""
        from mmengine.runner import IterBasedTrainLoop

        while True:
            self.runner.call_hook('before_train_epoch')
            self.runner.model.train()
            if isinstance(self.loop, IterBasedTrainLoop):
                inputs: Iterable[tuple[Any, ...]] = zip(self.loop.dataloader_iterator)
            else:
                inputs = enumerate(self.loop.dataloader)
            for args in inputs:
                self.clock.mark('data')
                self.loop.run_iter(*args)
                self.clock.mark('other')
                yield len(args[-1]['data_samples'])
            self.runner.call_hook('after_train_epoch')
            self.loop._epoch += 1

    def do(self, number: int) -> int:
        """Do some steps; return the images that they saw."""
        return sum(itertools.islice(self.steps, number))

    def warm_up(self) -> None:
        """Do two steps, which allocate and compile; write every buffer once as a whole."""
        self.do(2)
        # Else the system would copy, step by step, the pages that are shared with data workers.
        for buffer in self.runner.model.buffers():
            buffer.copy_(buffer.clone())

    def turn(self, warmup: int | None, iters: int) -> dict[str, float]:
        """Do steps that are not counted, then ``iters``; seconds per image, whole and of parts."""
        if warmup is None:
            loader = self.loop.dataloader
            warmup = max(2, loader.num_workers * (loader.prefetch_factor or 2))
        self.do(warmup)
        images, seconds, parts = self.clock.time(functools.partial(self.do, iters))
        return {part: value / images for part, value in dict(parts, whole=seconds).items()}

    def find_wait(self) -> str:
        """Do a last step, which breaks off where it waits for the GPU; say where, or nothing."""
        import torch

        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode('error')
        try:
            self.do(1)
            return ''
        except RuntimeError as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f'{Path(place.filename).name}:{place.lineno} {place.line}'
            return f'{where} ({str(error).splitlines()[0]})'
        finally:
            torch.cuda.set_sync_debug_mode('default')


def measure(cases: Sequence[Case], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Let the cases take turns; return medians over the rounds."""
    for case in cases:
        case.warm_up()
    turns = {case: functools.partial(case.turn, args.warmup, args.iters) for case in cases}
    taken = timing.take_turns(turns, args.rounds)
    rows = []
    for case, rounds in taken.items():
        size = case.batch_size
        times, first = ([one['whole'] for one in some] for some in (rounds, taken[cases[0]]))
        row = dict(
            timing.summarise(case.name, size, times),
            batch_size=size,
            ratio=statistics.median(map(truediv, times, first)),
            peak_mib=timing.peak_mib(functools.partial(case.do, 1), args.device),
            parts={part: size * statistics.median(one[part] for one in rounds) for part in PARTS},
        )
        rows.append(row)
    return rows


def main() -> None:
    """Build the runners, measure, print the table, write the JSON."""
    args = parse_args()
    plan = [(Path(path).stem, path, args.cfg_options) for path in args.configs]
    plan += [(' '.join(more), args.configs[0], [*args.cfg_options, *more]) for more in args.vary]
    with tempfile.TemporaryDirectory() as folder:
        configs = [(name, load_config(path, options, args, folder)) for name, path, options in plan]
        cases = [Case(name, cfg, args) for name, cfg in configs]
        rows = measure(cases, args)
        # At the end: after a step that broke off nothing can be measured.
        waits = {case.name: case.find_wait() for case in cases} if args.check_sync else {}
    machine = timing.machine(args.device)
    head = f'{machine}; median of {args.rounds} turns of {args.iters} steps'
    head += ', random images' * args.synthetic + ', processor time' * (args.clock == 'cpu')
    columns = timing.columns('step', ratio='{ratio:.3f}') | {'peak MiB': '{peak_mib:.1f}'}
    timing.write_table(head, rows, columns)
    parts = [dict(name=row['name'], **row['parts']) for row in rows]
    timing.write_table('\nms of each part', parts, {part: f'{{{part}_ms:.2f}}' for part in PARTS})
    waits = {name: place for name, place in waits.items() if place}
    timing.write_json(args.json, dict(machine=machine, args=vars(args), cases=rows, waits=waits))
    if args.check_sync:
        lines = [f'{name} waits for the GPU: {place}' for name, place in waits.items()]
        sys.stdout.write('\n'.join(lines or ['No step waits for the GPU.']) + '\n')
        sys.exit(bool(waits))


if __name__ == '__main__':
    main()
