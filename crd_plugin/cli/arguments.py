"""What ``tools/train.py`` and ``tools/test.py`` have in common.

Only light modules are imported at the top, so that ``--help`` and a misspelt argument are answered
at once.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import os.path as osp
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmengine.config import Config, ConfigDict, DictAction

from crd_plugin.compat import CheckpointError, use_load_checkpoint_file

if TYPE_CHECKING:
    from mmengine.runner import Runner

# Variables that a launcher sets, and what starts it.
_LAUNCHERS = dict(
    pytorch=(
        ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'),
        'torchrun or tools/dist_train.sh',
    ),
    slurm=(
        ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_NODELIST'),
        'srun or tools/slurm_train.sh',
    ),
    mpi=(
        (
            'OMPI_COMM_WORLD_LOCAL_RANK',
            'OMPI_COMM_WORLD_SIZE',
            'OMPI_COMM_WORLD_RANK',
            'MASTER_ADDR',
        ),
        'mpirun',
    ),
)


class UsageError(ValueError):
    """A mistake in the command line; shown as one line, without a traceback."""


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that training and testing share.

    Args:
        parser (argparse.ArgumentParser): The parser to extend.
    """
    parser.add_argument(
        '--work-dir',
        metavar='DIR',
        help='folder for logs and checkpoints; defaults to the work_dir of the config, else to '
        './work_dirs/<name of the config>',
    )
    parser.add_argument(
        '--amp',
        action='store_true',
        help='compute in mixed precision (float16 on a GPU, bfloat16 on a CPU)',
    )
    parser.add_argument(
        '--no-pin-memory',
        action='store_true',
        help='do not pin the memory of batches; without a GPU it is never pinned',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='replace settings of the config, for example train_cfg.max_epochs=10; a list is '
        'written key="[a,b]" or key=a,b without spaces',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', *_LAUNCHERS],
        default='none',
        help='what has started the processes of a distributed run',
    )
    # Older launchers pass the rank as an argument instead of a variable.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def load_config(filename: str) -> Config:
    """Load a config.

    Args:
        filename (str): Path of the config file.

    Returns:
        Config: The config.

    Raises:
        UsageError: If there is no such file.
    """
    if osp.isfile(filename):
        return Config.fromfile(filename)
    package = Path(__file__).resolve().parents[1]
    folders = (Path(filename).parent, package.parent / 'configs', package / '.mim' / 'configs')
    paths = [path for folder in folders for path in sorted(folder.rglob('*.py'))]
    known = {path.stem: path for path in reversed(paths)}  # the first folder counts
    names = difflib.get_close_matches(Path(filename).stem, known, cutoff=0.5)
    nearest = ', '.join(osp.relpath(known[name]) for name in names)
    hint = f'; the nearest are {nearest}' if nearest else ''
    raise UsageError(f'config {filename} does not exist{hint}.')


def check_checkpoint(filename: str, argument: str) -> None:
    """Refuse a local checkpoint that does not exist before anything is built.

    Args:
        filename (str): Path or URL of the checkpoint.
        argument (str): Name of the argument, for the message.

    Raises:
        UsageError: If the path is local and is not a file.
    """
    if '://' not in filename and not osp.isfile(osp.expanduser(filename)):
        raise UsageError(f'{argument} {filename} does not exist; give the path of a .pth file.')


def merge_common_arguments(cfg: Config, args: argparse.Namespace) -> None:
    """Write the shared flags into the config.

    ``--cfg-options`` has the last word, except that pinned memory and persistent workers are
    switched off where they cannot work.

    Args:
        cfg (Config): The config, changed in place.
        args (argparse.Namespace): The parsed arguments.

    Raises:
        UsageError: If a flag does not fit the config or the environment.
    """
    _check_launcher(args)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = osp.join('./work_dirs', Path(args.config).stem)
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if cfg.get(name) is not None:
            cfg[name] = _dataloader(cfg[name], args)


def _dataloader(cfg: ConfigDict, args: argparse.Namespace) -> ConfigDict:
    """Settings of a data loader, with what the config leaves out."""
    import torch

    cfg.setdefault('collate_fn', dict(type='default_collate'))
    # Pinning without a GPU only makes torch warn.
    pin = not args.no_pin_memory and torch.cuda.is_available()
    cfg.pin_memory = cfg.get('pin_memory', True) and pin
    # Persistent workers need workers.
    persist = not getattr(args, 'no_persistent_workers', False) and cfg.get('num_workers', 0) > 0
    cfg.persistent_workers = cfg.get('persistent_workers', True) and persist
    return cfg


def _check_launcher(args: argparse.Namespace) -> None:
    """Check the variables that a launcher has to set."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    if args.launcher == 'none':
        return
    variables, program = _LAUNCHERS[args.launcher]
    missing = [name for name in variables if name not in os.environ]
    if missing:
        raise UsageError(
            f'--launcher {args.launcher} needs the environment variables {", ".join(missing)}; '
            f'start the script with {program}.'
        )
    import torch

    devices = torch.cuda.device_count()
    rank = os.environ['LOCAL_RANK']
    if args.launcher == 'pytorch' and 0 < devices <= int(rank):
        raise UsageError(
            f'LOCAL_RANK is {rank}, but this machine has {devices} GPU(s); start at most '
            f'{devices} process(es) on it.'
        )


def build_runner(cfg: Config) -> Runner:
    """Build the runner that the config asks for.

    MMEngine loads local checkpoints with
    :func:`crd_plugin.compat.load_checkpoint_file` from then on. With
    ``randomness.deterministic`` cuBLAS is told to be so, unless the
    environment says how.

    Args:
        cfg (Config): The complete config.

    Returns:
        Runner: MMEngine's runner, or the one named by ``runner_type``.
    """
    from mmengine.registry import RUNNERS
    from mmengine.runner import Runner

    use_load_checkpoint_file()
    if cfg.get('randomness', {}).get('deterministic', False):
        # cuBLAS is refused without it, and reads it when it is first used.
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    if 'runner_type' in cfg:
        return RUNNERS.build(cfg)
    return Runner.from_cfg(cfg)


def run(main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> int:
    """Run a tool; report a mistake of the user in one line.

    Any other error keeps its traceback.

    Args:
        main (Callable): The tool, which takes the arguments.
        argv (Sequence[str], optional): Arguments. Defaults to None: those of the command line.

    Returns:
        int: Exit status, 0 or 1.
    """
    try:
        main(argv)
    except (UsageError, CheckpointError, FileNotFoundError) as error:
        message = ' '.join(str(error).split())
        sys.stderr.write(f'error: {message}\n')
        return 1
    _leave_process_group()
    return 0


def _leave_process_group() -> None:
    """End a distributed run without torch's warning about leaks.

    On CPU the process ends right here, once all ranks are done: when gloo's threads are torn down,
    a finished rank may abort ("terminate called without an active exception"), which a launcher
    takes for a failed run.
    """
    torch = sys.modules.get('torch')
    if torch is None or not torch.distributed.is_available():
        return
    if not torch.distributed.is_initialized():
        return
    if torch.distributed.get_backend() != 'gloo':
        torch.distributed.destroy_process_group()
        return
    torch.distributed.barrier()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
