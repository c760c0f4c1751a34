"""Where a training goes on after an interruption, and how it is interrupted without harm."""

import errno
import logging
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import MessageHub

from crd_plugin.compat import CheckpointError, load_checkpoint_file

from . import launch
from .arguments import UsageError, check_checkpoint, rank_and_ranks

POINTER = 'last_checkpoint'
# The disk, or the user's share of it, is full; Windows has no shares.
_FULL = {errno.ENOSPC, getattr(errno, 'EDQUOT', errno.ENOSPC)}
# Without these, nothing is resumed.
_PARTS = {'meta', 'state_dict', 'message_hub', 'optimizer'}
_NUMBERED = re.compile(r'(\d+)\.(?:pth|pt|ckpt)$')


def checkpoints(folder: Path, pointer: Path) -> list[Path]:
    """List the checkpoints that a run may go on from: the named one, then from new to old."""
    # A best checkpoint lacks the optimizer.
    found = [path for path in folder.glob('*') if not path.name.startswith('best_')]
    numbers = {path: match for path in found if (match := _NUMBERED.search(path.name))}
    found = sorted(numbers, key=lambda path: int(numbers[path][1]), reverse=True)
    named = folder / _named(pointer)
    return [named, *(path for path in found if path != named)] if named.is_file() else found


def _named(pointer: Path) -> str:
    """Name of the file that a pointer names, without its folder: the work dir may be moved."""
    try:
        name = Path(pointer.read_text(encoding='utf-8').strip()).name
    except (OSError, ValueError):  # missing, or not a text
        return ''
    return name if name.isprintable() else ''


def resume(cfg: Config, wanted: str | None) -> str:
    """Let a config go on from ``--resume``, or as it says itself; return a remark for the log."""
    if wanted is None and cfg.get('resume') and not cfg.get('load_from'):
        wanted = 'auto'
    if wanted is None:
        return ''
    if wanted != 'auto':
        check_checkpoint(wanted, '--resume')
        cfg.resume, cfg.load_from = True, wanted
        return f'resume from {wanted}'
    folder, pointer = _folder(cfg), Path(cfg.work_dir, POINTER)
    faults = []
    for path in checkpoints(folder, pointer):
        fault = _fault(path)
        if not fault:
            break
        faults.append(f'{path.name} {fault}')
    else:
        if faults:
            raise UsageError(
                f'--resume auto: {folder} has no whole checkpoint ({", ".join(faults)}); give one '
                'with --resume FILE, or train in another --work-dir.'
            )
        cfg.resume = False
        return f'--resume auto: no checkpoint in {folder} yet, start from the beginning'
    if not faults and path.name != _named(pointer):
        faults.append(f'{POINTER} does not name one that is there')
    cfg.resume, cfg.load_from = True, str(path)
    reason = f', because {", ".join(faults)}' if faults else ''
    return f'--resume auto: go on from {path}{reason}'


def _folder(cfg: Config) -> Path:
    """Where the checkpoints of a run are: its work dir, or as the checkpoint hook is told."""
    work_dir = Path(cfg.work_dir)
    elsewhere = ((cfg.get('default_hooks') or {}).get('checkpoint') or {}).get('out_dir')
    if not elsewhere or Path(elsewhere) == work_dir:
        return work_dir
    return Path(elsewhere, work_dir.absolute().name)


def _fault(path: Path) -> str:
    """Why a run cannot go on from a checkpoint; empty if it can."""
    try:
        missing = sorted(_PARTS - set(load_checkpoint_file(path)))
    except (CheckpointError, OSError):
        return 'is damaged'
    return f'has no {missing[0]}' if missing else ''


@contextmanager
def guarded(
    cfg: Config, go_on: str = 'the same command with --resume goes on from'
) -> Iterator[None]:
    """Train in a work dir that nobody else uses; end in one line if interrupted or out of space."""
    first = rank_and_ranks(cfg.launcher)[0] == 0
    work_dir = Path(cfg.work_dir)
    # What torchrun or run_table.py started ends when that is gone; Slurm and MPI end their tasks.
    if cfg.launcher == 'pytorch' or launch.is_watched():
        launch.end_with_parent()
    try:
        with ExitStack() as stack:
            # On a full disk, a traceback per line that the log file cannot take helps nobody.
            stack.callback(setattr, logging, 'raiseExceptions', logging.raiseExceptions)
            logging.raiseExceptions = False
            # MMEngine says that it trains until a training has ended as planned.
            stack.callback(lambda: MessageHub.get_current_instance().pop_info('loop_stage', None))
            if first and not launch.is_watched():
                work_dir.mkdir(parents=True, exist_ok=True)
                stack.enter_context(launch.hold(work_dir))
            yield
    except BaseException as error:
        if launch.received(error):
            kept = checkpoints(_folder(cfg), work_dir / POINTER)
            hint = f'{work_dir} has no checkpoint yet, start again'
            if kept:
                hint = f'{go_on} {kept[0]}'
            raise KeyboardInterrupt(f'interrupted; {hint}.' if first else '') from error
        if not isinstance(error, OSError) or error.errno not in _FULL:
            raise
        raise UsageError(
            f'{error.filename or work_dir} cannot be written: {error.strerror}; free some space. '
            f'The earlier checkpoints are whole; {go_on} the latest.'
        ) from error
