"""What ``tools/train.py`` and ``tools/test.py`` have in common.

Only light modules are imported at the top, so that a misspelt argument is answered at once.
"""

from __future__ import annotations

import argparse
import ast
import copy
import difflib
import itertools
import logging
import os
import os.path as osp
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.config import Config, DictAction

from crd_plugin.compat import CheckpointError, use_load_checkpoint_file

if TYPE_CHECKING:
    from mmengine.runner import Runner

# Variables that a launcher sets, rank and number of ranks first, and what starts it.
_LAUNCHERS = dict(
    pytorch=('RANK WORLD_SIZE MASTER_ADDR MASTER_PORT', 'torchrun or tools/dist_train.sh'),
    slurm=('SLURM_PROCID SLURM_NTASKS SLURM_NODELIST', 'srun or tools/slurm_train.sh'),
    mpi=('OMPI_COMM_WORLD_RANK OMPI_COMM_WORLD_SIZE MASTER_ADDR', 'mpirun'),
)
_NUMBERS = itertools.count()  # of the runs of this process


class SettingAction(argparse.Action):
    """Read settings as ``mmengine.config.DictAction`` does, but keep texts whole.

    A single text may have spaces. Texts in quotes stand as they are, alone or in a list. A setting
    without a value is answered in one line.
    """

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        """Read ``KEY=VALUE`` ..."""
        settings = dict(getattr(namespace, self.dest, None) or {})
        for setting in values:
            key, equals, text = setting.partition('=')
            if not equals:
                parser.error(f'{option_string} {setting}: expected KEY=VALUE without spaces')
            settings[key] = read_value(text)
        setattr(namespace, self.dest, settings)


def read_value(text: str) -> Any:
    """Read the value of a setting as :class:`SettingAction` does."""
    if '"' in text or "'" in text:
        with suppress(ValueError, SyntaxError):  # not all texts in it are in quotes
            value = ast.literal_eval(text.replace('\\', r'\\'))
            return list(value) if isinstance(value, tuple) and text[0] != '(' else value
    with suppress(AssertionError):  # brackets that do not match
        value = DictAction._parse_iterable(text)
        return text if value == text.replace(' ', '') else value
    return text


def setting(key: str, text: str) -> str:
    """Compose ``KEY=VALUE`` that is read as this text."""
    if read_value(text) != text:
        text = f"'{text}'" if '"' in text else f'"{text}"'
    return f'{key}={text}'


class UsageError(ValueError):
    """A mistake in the command line; shown as one line, without a traceback."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options``."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=SettingAction,
        metavar='KEY=VALUE',
        help='replace settings of the config, for example train_cfg.max_epochs=10; a list is '
        'written key="[a,b]" or key=a,b without spaces; a text with a comma, or in a list with a '
        """space, in quotes of its own: key='"/my data/a,b.pth"'""",
    )


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that training and testing share."""
    add = parser.add_argument
    add(
        '--work-dir',
        metavar='DIR',
        help='folder for logs and checkpoints (default: the work_dir of the config, else '
        './work_dirs/<name of the config>)',
    )
    amp = 'compute in mixed precision (float16 on a GPU, bfloat16 on a CPU)'
    add('--amp', action='store_true', help=amp)
    pin = 'do not pin the memory of batches; without a GPU it is never pinned'
    add('--no-pin-memory', action='store_true', help=pin)
    add_options(parser)
    launcher = 'what has started the processes of a distributed run'
    add('--launcher', choices=['none', *_LAUNCHERS], default='none', help=launcher)
    # Older launchers pass the rank as an argument instead of a variable.
    add('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def load_config(filename: str) -> Config:
    """Load a config; of one that does not exist the nearest are named."""
    if osp.isfile(filename):
        try:
            return Config.fromfile(filename)
        except Exception as error:  # A config is code and may raise anything.
            text = ' '.join(str(error).split())
            if 'Duplicate key' in text:
                text += '; rename it in one of the files of _base_, and join both in the config'
            kind = type(error).__name__
            raise UsageError(f'the config cannot be loaded: {text} ({kind}).') from error
    package = Path(__file__).resolve().parents[1]
    folders = (Path(filename).parent, package.parent / 'configs', package / '.mim' / 'configs')
    paths = [path for folder in folders for path in sorted(folder.rglob('*.py'))]
    known = {path.stem: path for path in reversed(paths)}  # the first folder counts
    names = difflib.get_close_matches(Path(filename).stem, known, cutoff=0.5)
    nearest = ', '.join(osp.relpath(known[name]) for name in names)
    hint = nearest and f'; the nearest are {nearest}'
    raise UsageError(f'config {filename} does not exist{hint}.')


def merge_options(cfg: Config, options: dict[str, Any] | None) -> None:
    """Write the settings of ``--cfg-options`` into a config; refuse what nothing reads."""
    if not options:
        return
    from . import settings  # knows all of OpenMMLab, which takes seconds to import

    try:
        settings.merge_options(cfg, options)
    except ValueError as error:
        raise UsageError(f'--cfg-options {error}') from error


def check_checkpoint(filename: str, argument: str) -> None:
    """Refuse a local checkpoint that does not exist, before anything is built."""
    if '://' not in filename and not osp.isfile(osp.expanduser(filename)):
        raise UsageError(f'{argument} {filename} does not exist; give the path of a .pth file.')


def without_files(checkpoints: Any) -> Any:
    """Return what stands for weights that come later: None, or one None per teacher of several."""
    return [None] * len(checkpoints) if isinstance(checkpoints, (list, tuple)) else None


def merge_common_arguments(cfg: Config, args: argparse.Namespace) -> None:
    """Write the shared flags into the config.

    ``--cfg-options`` has the last word, except that pinned memory and persistent workers are
    switched off where they cannot work.
    """
    cfg.launcher = args.launcher
    given = args.work_dir or cfg.get('work_dir')
    cfg.work_dir = given or osp.join('./work_dirs', Path(args.config).stem)
    merge_options(cfg, args.cfg_options)
    _check_launcher(cfg.launcher, args.local_rank)
    import torch

    # Pinning without a GPU only makes torch warn.
    pin = torch.cuda.is_available() and not args.no_pin_memory
    persist = not getattr(args, 'no_persistent_workers', False)
    loaders = map(cfg.get, ('train_dataloader', 'val_dataloader', 'test_dataloader'))
    for loader in filter(None, loaders):
        loader.setdefault('collate_fn', dict(type='default_collate'))
        loader.pin_memory = pin and loader.get('pin_memory', True)
        persistent = persist and loader.get('persistent_workers', True)
        loader.persistent_workers = persistent and loader.get('num_workers', 0) > 0


def _check_launcher(launcher: str, local_rank: int) -> None:
    """Check what a launcher has to set."""
    os.environ.setdefault('LOCAL_RANK', str(local_rank))
    if launcher == 'none':
        return
    if launcher not in _LAUNCHERS:
        raise UsageError(f'launcher is {launcher!r}, expected none, {", ".join(_LAUNCHERS)}.')
    variables, program = _LAUNCHERS[launcher]
    missing = [name for name in variables.split() if name not in os.environ]
    if missing:
        raise UsageError(
            f'--launcher {launcher} needs the environment variables {", ".join(missing)}; '
            f'start the script with {program}.'
        )
    if launcher == 'slurm' and 'MASTER_ADDR' not in os.environ and not shutil.which('scontrol'):
        raise UsageError(
            '--launcher slurm asks scontrol for the address of the first node, but there is no '
            'scontrol here, as in a container; set the environment variable MASTER_ADDR to the '
            'name of that node.'
        )


def rank_and_ranks(launcher: str) -> tuple[int, int]:
    """Return the rank of this process and the number of ranks, as its launcher has set them."""
    if launcher not in _LAUNCHERS:
        return 0, 1
    rank, ranks = _LAUNCHERS[launcher][0].split()[:2]
    return int(os.environ.get(rank, 0)), int(os.environ.get(ranks, 1))


def build_runner(cfg: Config) -> Runner:
    """Build the runner that the config asks for; it loads strictly, and logs to a file."""
    from mmengine.registry import RUNNERS
    from mmengine.runner import Runner

    from crd_plugin.models.algorithms.checkpoints import use_pretrained_init

    from .lookup import wants_complete

    use_load_checkpoint_file()
    use_pretrained_init()
    log_to_file(cfg)
    if cfg.get('randomness', {}).get('deterministic'):
        # cuBLAS reads it when it is first used, and is refused without it.
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    # MMEngine names a run by its config and the second, and runs of one name share their history.
    cfg = copy.deepcopy(cfg)
    cfg.setdefault('experiment_name', f'{Path(cfg.work_dir).name}-{next(_NUMBERS)}')
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    runner.register_hook(dict(type='crd_plugin.StrictLoadingHook'))
    named = dict(type='crd_plugin.NamedSamplesHook', complete=wants_complete(cfg))
    runner.register_hook(named)
    return runner


def log_to_file(cfg: dict[str, Any]) -> None:
    """Have a config write the file that tables are made of, beside what other backends show."""
    visualizer = cfg.get('visualizer')
    if not isinstance(visualizer, dict):
        return  # MMEngine's own writes the file
    given = visualizer.get('vis_backends') or []
    given = given if isinstance(given, (list, tuple)) else [given]
    # Names are what the command line can give.
    backends = [dict(type=one) if isinstance(one, str) else one for one in given]
    for kind in (one.get('type') for one in backends):
        if isinstance(kind, str) and not re.fullmatch(r'[\w.]+', kind):
            raise UsageError(
                f'visualizer.vis_backends has {kind!r}, expected dicts in the config, or names on '
                'the command line: --cfg-options visualizer.vis_backends=[TensorboardVisBackend].'
            )
    if not any('LocalVisBackend' in str(one.get('type')) for one in backends):
        backends.insert(0, dict(type='LocalVisBackend'))
    visualizer['vis_backends'] = backends


def try_out(cfg: Config) -> list[str]:
    """Run the dry run before training, on rank 0; return its notes, raise its problem."""
    if rank_and_ranks(cfg.launcher)[0]:
        return []
    from .dry_run import run_dry

    tried = copy.deepcopy(cfg)
    if tried.get('model', {}).get('compile'):
        tried.model.compile = False  # takes minutes, and changes nothing that could be wrong
    report = run_dry(tried, stand_ins=False)
    if report.error is not None:
        _keep_traceback(cfg, report.error)
    if report.problems:
        raise UsageError(report.problems[0])
    return report.notes


def _keep_traceback(cfg: Config, error: BaseException) -> None:
    """Write a traceback to the log, or to ``error.log`` in the work dir before there is one."""
    from mmengine.logging import MMLogger

    logger = MMLogger.get_current_instance()
    files = [file for file in logger.handlers if isinstance(file, logging.FileHandler)]
    trace = (type(error), error, error.__traceback__)
    for file in files:
        file.handle(logger.makeRecord('', logging.ERROR, __file__, 0, repr(error), (), trace))
    if not files:  # the runner opens one first of all, but on rank 0 alone
        with suppress(OSError):
            os.makedirs(cfg.work_dir, exist_ok=True)
            with open(osp.join(cfg.work_dir, 'error.log'), 'a', encoding='utf-8') as log:
                log.writelines(traceback.format_exception(*trace))


@contextmanager
def explained(cfg: Config) -> Iterator[None]:
    """Report an exception as the dry run does; its traceback goes to the log file."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        from .explain import explain

        _keep_traceback(cfg, error)
        raise UsageError(explain(error, cfg.to_dict())) from error


def run(main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> int:
    """Run a tool and return its exit status; a mistake of the user is reported in one line."""
    try:
        main(argv)
    except (UsageError, CheckpointError, OSError) as error:
        message = str(error)
        if isinstance(error, OSError) and error.filename is not None:
            message = f'{error.filename}: {error.strerror}'
        elif isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise  # not about a file
        sys.stderr.write(f'error: {" ".join(message.split())}\n')
        return 1
    _leave_process_group()
    return 0


def _leave_process_group() -> None:
    """End a distributed run without torch's warning about leaks."""
    distributed = 'torch' in sys.modules and sys.modules['torch'].distributed
    if not (distributed and distributed.is_available() and distributed.is_initialized()):
        return
    if distributed.get_backend() != 'gloo':
        distributed.destroy_process_group()
        return
    # On a CPU the process ends right here, once all ranks are done: when gloo's threads are torn
    # down, a finished rank may abort, which a launcher takes for a failed run.
    distributed.barrier()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
