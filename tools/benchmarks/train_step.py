"""Images a second of whole training steps, and where the time goes.

Each config is built as ``tools/train.py`` builds it, with its own data loader
and hooks, and driven through real iterations. Several configs take turns of
``--iters`` steps, in an order that rotates from round to round, so a drift of
the machine hits all of them; the ratio to the first config is taken round by
round. Fetching is part of a step. A turn begins with steps that are not
counted, as many as the loader holds ready.

On a GPU the parts are measured with events of its stream: a part is charged
with the time that the GPU works for it or waits for the host.
"""

import argparse
import functools
import json
import os
import statistics
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

PARTS = ('data', 'teacher', 'student', 'objective', 'backward', 'optimizer', 'commit', 'other')
WHAT = dict(
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
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n')[0],
        epilog='Parts of a step: ' + '; '.join(f'{part}: {text}' for part, text in WHAT.items()),
    )
    parser.add_argument('configs', nargs='+', metavar='CONFIG', help='config files')
    parser.add_argument(
        '--vary',
        nargs='+',
        action='append',
        default=[],
        metavar='KEY=VALUE',
        help='measure the first config once more with these options; may be '
        'given several times, for example --vary model.channels_last=True '
        '--vary optim_wrapper.type=AmpOptimWrapper',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='replace settings of all configs',
    )
    parser.add_argument(
        '--synthetic',
        action='store_true',
        help='random images of the number and size of the real training set; '
        'sampler, pipeline and workers stay',
    )
    parser.add_argument('--batch-size', type=int, help='default: that of the config')
    parser.add_argument('--num-workers', type=int, help='default: that of the config')
    parser.add_argument('--iters', type=int, default=20, help='steps a turn; default 20')
    parser.add_argument('--rounds', type=int, default=5, help='turns of each; default 5')
    parser.add_argument(
        '--warmup',
        type=int,
        help='steps at the start of a turn that are not counted; default: '
        'the batches that the loader holds ready, at least 2',
    )
    parser.add_argument('--device', choices=['cpu', 'cuda'], help='default: cuda if there is a GPU')
    parser.add_argument('--threads', type=int, help="CPU threads; default: torch's")
    parser.add_argument(
        '--clock',
        choices=['wall', 'cpu'],
        default='wall',
        help='cpu: seconds that the processor works for this process, all '
        'its threads together and the data workers not counted; for --device '
        'cpu on a machine that others use too. Default: wall',
    )
    parser.add_argument(
        '--check-sync',
        action='store_true',
        help='run one step of each config that must not wait for the GPU; '
        'exit status 1 if one does',
    )
    parser.add_argument('--out', help='write the result to this JSON file')
    return parser.parse_args()


def main() -> None:
    """Build the runners, measure, print the table, write the JSON."""
    from crd_loss import check_writable

    args = parse_args()
    numbers = dict(
        iters=args.iters,
        rounds=args.rounds,
        warmup=args.warmup,
        threads=args.threads,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
    )
    for name, number in numbers.items():
        least = 0 if name in ('warmup', 'num_workers') else 1
        if number is not None and number < least:
            sys.exit(f'--{name.replace("_", "-")} is {number}, expected more.')
    check_writable('--out', args.out)
    for option in sum(args.vary, args.cfg_options):
        if '=' not in option:
            sys.exit(f'{option} is no KEY=VALUE.')
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
    if args.clock == 'cpu' and args.device != 'cpu':
        sys.exit('--clock cpu does not see what a GPU does; add --device cpu.')
    if args.check_sync and args.device == 'cpu':
        sys.exit('--check-sync looks for waits on a GPU; it needs --device cuda.')
    with tempfile.TemporaryDirectory() as folder:
        cases = [
            Case(name, load_config(path, options, args, folder), args)
            for name, path, options in plan(args)
        ]
        with_runners(cases, lambda: measure(cases, args))
    result = dict(
        machine=machine(args),
        args=vars(args),
        cases=summary(
            [case.turns for case in cases],
            [case.name for case in cases],
            [case.batch_size for case in cases],
        ),
    )
    waits = [(case.name, case.wait) for case in cases if case.wait]
    result['waits'] = dict(waits)
    sys.stdout.write(render(result))
    if args.out:
        with open(args.out, 'w', encoding='utf-8') as file:
            json.dump(result, file, indent=2)
    if args.check_sync:
        for name, wait in waits:
            sys.stdout.write(f'{name} waits for the GPU: {wait}\n')
        if waits:
            sys.exit(1)
        sys.stdout.write('No step waits for the GPU.\n')


def plan(args: argparse.Namespace) -> List[Tuple[str, str, List[str]]]:
    """Name, file and options of each case."""
    cases = [(Path(path).stem, path, list(args.cfg_options)) for path in args.configs]
    for options in args.vary:
        cases.append((' '.join(options), args.configs[0], [*args.cfg_options, *options]))
    return cases


def load_config(path: str, options: List[str], args: argparse.Namespace, folder: str) -> Any:
    """A config ready to be driven: no validation, no checkpoints."""
    import crd_plugin  # noqa: F401  first: mends the imports below

    from crd_plugin.cli import arguments as cli, launch  # isort: skip

    try:
        if not Path(path).is_file():
            cli.load_config(path)  # names the nearest configs
        cfg = launch.load_config(Path(path), options)
    except (cli.UsageError, FileNotFoundError) as error:
        sys.exit(f'error: {error}')
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.test_cfg = cfg.test_dataloader = cfg.test_evaluator = None
    cfg.setdefault('default_hooks', {})
    cfg.default_hooks.checkpoint = None
    cfg.log_level = 'ERROR'
    loader = cfg.train_dataloader
    if args.batch_size:
        loader.batch_size = args.batch_size
    if args.num_workers is not None:
        loader.num_workers = args.num_workers
    # What tools/train.py fills in.
    cli.merge_common_arguments(
        cfg,
        argparse.Namespace(
            config=path,
            cfg_options=None,
            launcher='none',
            local_rank=0,
            no_pin_memory=False,
            work_dir=folder,
        ),
    )
    checkpoint = cfg.model.get('teacher_ckpt')
    if checkpoint and '://' not in checkpoint and not Path(checkpoint).is_file():
        # Random weights take the same time.
        cfg.model.teacher_ckpt = None
    if args.synthetic:
        from stand_in import replace_dataset

        replace_dataset(cfg.train_dataloader, path, Path(folder))
    return cfg


class Clock:
    """Charges the time between two marks to the name of the second.

    Args:
        device (str): ``'cpu'``: seconds of the host; ``'cuda'``: of the
            stream, by events, so that measuring does not wait for the GPU.
        kind (str): ``'wall'`` or ``'cpu'``, which seconds of the host.
    """

    def __init__(self, device: str, kind: str) -> None:
        self.device = device
        self._seconds = time.process_time if kind == 'cpu' else time.perf_counter
        self.running = False
        self._marks: List[Tuple[str, Any]] = []

    def start(self) -> None:
        """Begin a turn."""
        self.running = True
        self._marks = []
        self._begin = self._seconds()
        self.mark('')

    def mark(self, name: str) -> None:
        """Charge what has passed since the last mark."""
        if self.running:
            self._marks.append((name, self._now()))

    def stop(self) -> Tuple[float, Dict[str, float]]:
        """Seconds of the turn, and of each part."""
        wait(self.device)
        seconds = self._seconds() - self._begin
        self.running = False
        parts = dict.fromkeys(PARTS, 0.0)
        for (_, begin), (name, end) in zip(self._marks, self._marks[1:]):
            parts[name] += self._between(begin, end)
        return seconds, parts

    def _now(self) -> Any:
        if self.device == 'cpu':
            return self._seconds()
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, begin: Any, end: Any) -> float:
        if self.device == 'cpu':
            return end - begin
        return begin.elapsed_time(end) / 1e3


class Case:
    """One config with its runner and what was measured.

    Args:
        name (str): Of the table's row.
        cfg (Config): Complete config.
        args (argparse.Namespace): Command line.
    """

    def __init__(self, name: str, cfg: Any, args: argparse.Namespace) -> None:
        self.name = name
        self.cfg = cfg
        self.clock = Clock(args.device, args.clock)
        self.turns: List[Tuple[float, int, Dict[str, float]]] = []
        self.wait: Optional[str] = None
        self.runner = self._batches = None

    @property
    def batch_size(self) -> int:
        """int: Images a step."""
        return self.cfg.train_dataloader.batch_size

    @property
    def held_ready(self) -> int:
        """int: Batches that the loader fetches ahead."""
        loader = self.runner.train_loop.dataloader
        workers = getattr(loader, 'num_workers', 0)
        return workers * (getattr(loader, 'prefetch_factor', None) or 2)

    def prepare(self, runner: Any) -> None:
        """Put marks at the borders of the parts."""
        self.runner = runner
        clock, loop = self.clock, runner.train_loop
        model = getattr(runner.model, 'module', runner.model)
        modules = [(model.data_preprocessor, 'data')]
        if hasattr(model, 'teacher'):
            modules += [(model.teacher, 'teacher'), (model.student, 'student')]
        else:
            modules.append((model, 'student'))
        for module, name in modules:
            module.register_forward_pre_hook(lambda *_: clock.mark('other'), prepend=True)
            module.register_forward_hook(lambda *_, name=name: clock.mark(name))
        calls = [
            (runner.optim_wrapper, 'backward', 'backward'),
            (runner.optim_wrapper, 'step', 'optimizer'),
            (runner.optim_wrapper, 'zero_grad', 'optimizer'),
        ]
        if hasattr(model, 'distiller'):
            calls.append((model.distiller, 'compute_distill_losses', 'objective'))
        has_bank = any(name.endswith('.bank') for name, _ in model.named_modules())
        for hook in runner.hooks:
            if has_bank and type(hook).__name__ == 'MemoryBankHook':
                calls += [
                    (hook, 'before_train_iter', 'commit'),
                    (hook, 'after_train_iter', 'commit'),
                ]
        for owner, method, name in calls:
            setattr(owner, method, charged(getattr(owner, method), clock, name))
        self._batches = endless(runner, loop)

    def steps(self, number: int) -> int:
        """Do some steps; images that they saw."""
        images = 0
        for _ in range(number):
            args = next(self._batches)
            self.clock.mark('data')
            self.runner.train_loop.run_iter(*args)
            self.clock.mark('other')
            images += len(args[-1]['data_samples'])
        return images

    def own_pages(self) -> None:
        """Write what is written a few rows a step once as a whole.

        Data workers are forks of the process: the first write to a page that
        they share has the system copy it. In training that is over after the
        first epoch, here it would be in every step.
        """
        from crd_plugin.models import MemoryBank

        for module in self.runner.model.modules():
            if isinstance(module, MemoryBank):
                module.student.mul_(1)
                module.teacher.mul_(1)

    def turn(self, warmup: Optional[int], iters: int) -> None:
        """One turn: steps that are not counted, then steps that are."""
        self.steps(max(2, self.held_ready) if warmup is None else warmup)
        wait(self.clock.device)
        self.clock.start()
        images = self.steps(iters)
        seconds, parts = self.clock.stop()
        self.turns.append((seconds, images, parts))

    def check_sync(self) -> None:
        """Fetch and do one step in which waiting for the GPU is an error.

        Where it waits the step breaks off, so it must be the last one.
        """
        import torch

        wait('cuda')
        torch.cuda.set_sync_debug_mode('error')
        try:
            self.runner.train_loop.run_iter(*next(self._batches))
        except RuntimeError as error:
            places = traceback.extract_tb(error.__traceback__)
            place = places[-1]
            self.wait = (
                f'{Path(place.filename).name}:{place.lineno} '
                f'{place.line} ({str(error).splitlines()[0]})'
            )
        finally:
            torch.cuda.set_sync_debug_mode('default')


def charged(function: Callable, clock: Clock, name: str) -> Callable:
    """The function with a mark before and after it."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        clock.mark('other')
        result = function(*args, **kwargs)
        clock.mark(name)
        return result

    return call


def endless(runner: Any, loop: Any) -> Iterator[tuple]:
    """Arguments of ``run_iter``, epoch after epoch."""
    from mmengine.runner import IterBasedTrainLoop

    if isinstance(loop, IterBasedTrainLoop):
        runner.call_hook('before_train_epoch')
        runner.model.train()
        while True:
            yield (next(loop.dataloader_iterator),)
    while True:
        runner.call_hook('before_train_epoch')
        runner.model.train()
        for index, batch in enumerate(loop.dataloader):
            yield index, batch
        runner.call_hook('after_train_epoch')
        loop._epoch += 1


def with_runners(cases: List[Case], work: Callable[[], None]) -> None:
    """Call ``work`` while all runners are where they would begin to train.

    ``Runner.train`` builds everything and then runs the loop; in its place
    the next runner starts, and at last the work is done.
    """
    from crd_plugin.cli import arguments as cli

    def start(number: int) -> None:
        if number == len(cases):
            work()
            return
        case = cases[number]
        case.cfg.experiment_name = f'train_step_{os.getpid()}_{number}'
        runner = cli.build_runner(case.cfg)

        def run() -> Any:
            runner.call_hook('before_train')
            case.prepare(runner)
            start(number + 1)
            return runner.model

        runner.train_loop.run = run
        runner.train()

    start(0)


def measure(cases: List[Case], args: argparse.Namespace) -> None:
    """Let the cases take turns."""
    for case in cases:
        # Allocates, and compiles where the config asks for it.
        case.steps(2)
    for case in cases:
        case.own_pages()
    for number in range(args.rounds):
        shift = number % len(cases)
        for case in cases[shift:] + cases[:shift]:
            case.turn(args.warmup, args.iters)
    if args.check_sync:
        # At the end: a wait breaks its step off, after which bank, scaler and
        # gradients are not those of a step that was done.
        for case in cases:
            case.check_sync()


def summary(turns: List[list], names: List[str], batch_sizes: List[int]) -> List[dict]:
    """Medians over the rounds.

    Args:
        turns (list): Of each case: (seconds, images, seconds of parts) a
            round.
        names (list[str]): Of the cases.
        batch_sizes (list[int]): Images a step.

    Returns:
        list[dict]: A case each. ``seconds`` are those of one step;
        ``ratio`` is the median of the rounds' ratios of time an image to
        that of the first case; ``parts`` are seconds a step.
    """
    cases = []
    an_image = [[seconds / images for seconds, images, _ in rounds] for rounds in turns]
    for name, size, rounds, times in zip(names, batch_sizes, turns, an_image):
        cases.append(
            dict(
                name=name,
                batch_size=size,
                images_per_second=1 / statistics.median(times),
                seconds=size * statistics.median(times),
                slowest=size * max(times),
                fastest=size * min(times),
                ratio=statistics.median(own / first for own, first in zip(times, an_image[0])),
                parts={
                    part: size
                    * statistics.median(parts[part] / images for _, images, parts in rounds)
                    for part in PARTS
                },
            )
        )
    return cases


def wait(device: str) -> None:
    """Until the GPU has done all it was given."""
    if device != 'cpu':
        import torch

        torch.cuda.synchronize()


def machine(args: argparse.Namespace) -> str:
    """What it was measured on."""
    import torch
    from crd_loss import processor_name

    name = processor_name()
    if args.device == 'cuda':
        name = torch.cuda.get_device_name()
    return (
        f'{args.device} ({name}), {torch.get_num_threads()} CPU threads, torch {torch.__version__}'
    )


def render(result: dict) -> str:
    """The tables."""
    args, cases = result['args'], result['cases']
    width = max(len(case['name']) for case in cases) + 2
    lines = [
        f'{result["machine"]}; median of {args["rounds"]} turns of '
        f'{args["iters"]} steps'
        f'{", random images" if args["synthetic"] else ""}'
        f'{", processor time" if args["clock"] == "cpu" else ""}',
        f'{"case":<{width}}{"images/s":>10}{"ms a step":>11}'
        f'{"fastest":>10}{"slowest":>10}{"ratio":>8}',
    ]
    for case in cases:
        lines.append(
            f'{case["name"]:<{width}}'
            f'{case["images_per_second"]:>10.1f}'
            f'{case["seconds"] * 1e3:>11.2f}'
            f'{case["fastest"] * 1e3:>10.2f}'
            f'{case["slowest"] * 1e3:>10.2f}{case["ratio"]:>8.3f}'
        )
    lines += [
        '',
        'ms of each part',
        f'{"case":<{width}}' + ''.join(f'{part:>11}' for part in PARTS),
    ]
    for case in cases:
        lines.append(
            f'{case["name"]:<{width}}'
            + ''.join(f'{case["parts"][part] * 1e3:>11.2f}' for part in PARTS)
        )
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    main()
