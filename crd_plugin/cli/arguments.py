"""What ``tools/train.py`` and ``tools/test.py`` have in common.

Only light modules are imported at the top, so that ``--help`` and a mistyped
argument are answered at once.
"""

import argparse
import difflib
import logging
import os
import os.path as osp
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Callable, List, Optional, Sequence

from mmengine.config import Config, ConfigDict, DictAction

from crd_plugin.compat import CheckpointError, use_load_checkpoint_file

if TYPE_CHECKING:
    from mmengine.runner import Runner

_LAUNCHER_VARIABLES = dict(
    pytorch=('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'),
    slurm=('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_NODELIST'),
    mpi=(
        'OMPI_COMM_WORLD_LOCAL_RANK',
        'OMPI_COMM_WORLD_SIZE',
        'OMPI_COMM_WORLD_RANK',
        'MASTER_ADDR',
    ),
)
_DATALOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


class UsageError(ValueError):
    """A mistake in the command line; shown as one line, no traceback."""


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that training and testing share.

    Args:
        parser (argparse.ArgumentParser): The parser to extend.
    """
    parser.add_argument(
        '--work-dir',
        metavar='DIR',
        help='folder for logs and checkpoints; defaults to the work_dir of '
        'the config, else to ./work_dirs/<name of the config>',
    )
    parser.add_argument(
        '--amp',
        action='store_true',
        help='compute in mixed precision (float16 on a GPU, bfloat16 on a CPU)',
    )
    parser.add_argument(
        '--no-pin-memory',
        action='store_true',
        help='do not pin the memory of batches; without a GPU it never is',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='replace settings of the config, for example '
        'train_cfg.max_epochs=10; a list is written key="[a,b]" or key=a,b '
        'without spaces',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', *_LAUNCHER_VARIABLES],
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
    if not osp.isfile(filename):
        message = f'config {filename} does not exist'
        nearest = _nearest_configs(filename)
        if nearest:
            message += f'; the nearest are {", ".join(nearest)}'
        raise UsageError(f'{message}.')
    return Config.fromfile(filename)


def _nearest_configs(filename: str) -> List[str]:
    """Up to three existing configs whose names are like the given one."""
    package = Path(__file__).resolve().parents[1]
    folders = (Path(filename).parent, package.parent / 'configs', package / '.mim' / 'configs')
    found = {}
    for folder in folders:
        for path in sorted(folder.rglob('*.py')) if folder.is_dir() else ():
            found.setdefault(path.stem, path)
    names = difflib.get_close_matches(Path(filename).stem, found, cutoff=0.5)
    return [osp.relpath(found[name]) for name in names]


def check_checkpoint(filename: str, argument: str) -> None:
    """Refuse a local checkpoint that is not there before anything is built.

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

    ``--cfg-options`` has the last word, save that pinning and persistent
    workers are switched off wherever they cannot work.

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
    for name in _DATALOADERS:
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
    missing = [name for name in _LAUNCHER_VARIABLES[args.launcher] if name not in os.environ]
    if missing:
        start = dict(
            pytorch='torchrun or tools/dist_train.sh',
            slurm='srun or tools/slurm_train.sh',
            mpi='mpirun',
        )[args.launcher]
        raise UsageError(
            f'--launcher {args.launcher} needs the environment variables '
            f'{", ".join(missing)}; start the script with {start}.'
        )
    import torch

    devices = torch.cuda.device_count()
    rank = os.environ['LOCAL_RANK']
    if args.launcher == 'pytorch' and 0 < devices <= int(rank):
        raise UsageError(
            f'LOCAL_RANK is {rank}, but this machine has {devices} GPU(s); '
            f'start at most {devices} process(es) on it.'
        )


def build_runner(cfg: Config) -> 'Runner':
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


def run(
    main: Callable[[Optional[Sequence[str]]], None], argv: Optional[Sequence[str]] = None
) -> int:
    """Run a tool; say what the user did wrong in one line.

    Anything but a plain mistake of the user keeps its traceback.

    Args:
        main (Callable): The tool, which takes the arguments.
        argv (Sequence[str], optional): Arguments; defaults to those of the
            command line.

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

    On CPU the process ends right here, once all ranks are done: tearing
    gloo's threads down has been seen to abort a finished rank ("terminate
    called without an active exception"), which a launcher takes for a failed
    run.
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
