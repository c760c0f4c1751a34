"""Mends of writing and reading checkpoints."""

import errno
import functools
import os
import os.path as osp
import pickle
import re
from types import ModuleType
from typing import Any, Callable, Dict, List


class CheckpointError(RuntimeError):
    """A checkpoint file that is there but cannot be read."""


def allow_checkpoint_globals(torch: ModuleType) -> None:
    """Let ``torch.load(weights_only=True)`` read MMEngine's checkpoints.

    What breaks: since torch 2.6 only tensors and plain containers are loaded
    by default, but MMEngine saves its log history as ``HistoryBuffer`` with
    NumPy arrays and scalars, so ``--resume`` fails
    (open-mmlab/mmengine#1655).
    Mend: allow exactly those classes, under the names of NumPy 1 and 2. None
    of them runs code of the file. ``HistoryBuffer`` also refers to its own
    four methods through ``getattr``; the real one would let a file reach
    anything, so it is stood in for by one that knows these four.
    No longer needed: when MMEngine registers them itself.

    Args:
        torch (ModuleType): The module ``torch``.
    """
    add = getattr(torch.serialization, 'add_safe_globals', None)
    if add is None:
        return  # torch<2.4 knows no list
    import numpy as np
    from mmengine.logging import HistoryBuffer

    allowed: List[Any] = [
        HistoryBuffer,
        np.ndarray,
        np.dtype,
        (_history_buffer_method, 'builtins.getattr'),
    ]
    core = getattr(np, '_core', None) or np.core
    for name in ('_reconstruct', 'scalar'):
        function = getattr(core.multiarray, name)
        for package in ('numpy.core', 'numpy._core'):
            allowed.append((function, f'{package}.multiarray.{name}'))
    # One class a number type: numpy.dtypes.Float64DType and so on.
    for code in '?bBhHiIlLqQefd':
        allowed.append(type(np.dtype(code)))
    add(allowed)


def _history_buffer_method(owner: Any, name: str) -> Callable:
    """The only attributes a checkpoint may ask for.

    Args:
        owner: Object whose attribute the checkpoint wants.
        name (str): Name of the attribute.

    Returns:
        Callable: A statistic of MMEngine's ``HistoryBuffer``.

    Raises:
        pickle.UnpicklingError: If it is anything else.
    """
    from mmengine.logging import HistoryBuffer

    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise pickle.UnpicklingError(f'GLOBAL getattr({owner!r}, {name!r}) is not allowed')
    return getattr(HistoryBuffer, name)


def load_checkpoint_file(filename: str, map_location: Any = 'cpu') -> Dict[str, Any]:
    """Load a local checkpoint safely and say clearly why it fails.

    Args:
        filename (str): The checkpoint file.
        map_location: See :func:`torch.load`. Defaults to ``'cpu'``.

    Returns:
        dict: The checkpoint.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is empty, cut short, no checkpoint at
            all, or holds more than tensors and plain data.
    """
    import torch

    path = osp.expanduser(os.fspath(filename))
    if not osp.isfile(path):
        kind = 'is a folder' if osp.isdir(path) else 'does not exist'
        raise FileNotFoundError(
            f'checkpoint {filename} {kind}; give the path of a .pth file, '
            'for example one named in `last_checkpoint` of a work dir.'
        )
    size = osp.getsize(path)
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r'GLOBAL (\S+)', str(error))
        if found is None:
            raise _broken_checkpoint(filename, size, error) from error
        raise CheckpointError(
            f'checkpoint {filename} holds an object of class '
            f'{found.group(1)}, but only tensors, numbers and plain '
            'containers are loaded, because anything else may run code; '
            'save it again with its `state_dict` alone.'
        ) from error
    except Exception as error:
        # A damaged file makes the reader fail in any way whatever. These
        # three are not the file's fault; EINVAL is how the reader says that
        # an index points past the end.
        if (
            isinstance(error, MemoryError)
            or 'CUDA' in str(error)
            or (isinstance(error, OSError) and error.errno != errno.EINVAL)
        ):
            raise
        raise _broken_checkpoint(filename, size, error) from error


def _broken_checkpoint(filename: str, size: int, error: Exception) -> CheckpointError:
    """The error for a file whose content is no checkpoint."""
    # torch appends paragraphs of advice to what went wrong.
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    reason = reason.split('. ')[0]
    return CheckpointError(
        f'checkpoint {filename} ({size} bytes) is truncated or no checkpoint '
        f'of torch ({reason}); copy or download it again, or give an earlier '
        'one of the same work dir.'
    )


def load_local_checkpoints_clearly(checkpoint: ModuleType) -> None:
    """Give MMEngine's loader for local files our checks and messages.

    What breaks: a truncated file ends in ``PytorchStreamReader failed reading
    zip archive`` with neither file name nor advice; before torch 2.6 any
    object in the file was loaded.
    Mend: the local loader calls :func:`load_checkpoint_file`, so ``--resume``,
    ``load_from``, ``init_cfg`` and ``teacher_ckpt`` all give one message.
    No longer needed: never, as long as the messages are wanted.

    Args:
        checkpoint (ModuleType): ``mmengine.runner.checkpoint``.
    """
    loader = checkpoint.load_from_local

    @functools.wraps(loader)
    def load_from_local(filename, map_location=None):
        return load_checkpoint_file(filename, map_location)

    checkpoint.load_from_local = load_from_local
    checkpoint.CheckpointLoader.register_scheme(prefixes='', loader=load_from_local, force=True)


def write_files_at_once(local_backend: ModuleType) -> None:
    """Keep a file whole when its writer is killed or the disk is full.

    What breaks: MMEngine writes a checkpoint into its final place, so a run
    killed meanwhile leaves a truncated file under a good name. No upstream
    report known.
    Mend: write beside it, then rename.
    No longer needed: when ``LocalBackend.put`` does so.

    Args:
        local_backend (ModuleType): ``mmengine.fileio.backends.local_backend``.
    """
    backend = local_backend.LocalBackend
    put = backend.put

    @functools.wraps(put)
    def put_at_once(self, obj, filepath):
        target = osp.realpath(filepath)
        if osp.exists(target) and not osp.isfile(target):
            return put(self, obj, filepath)  # a device or a pipe
        partial = f'{target}.{os.getpid()}.part'
        try:
            put(self, obj, partial)
            os.replace(partial, target)
        finally:
            if osp.exists(partial):
                os.remove(partial)

    backend.put = put_at_once


def save_before_removing(checkpoint_hook: ModuleType) -> None:
    """Keep the earlier checkpoint until the new one is written.

    What breaks: with ``max_keep_ckpts`` or ``save_best`` the hook removes the
    outdated checkpoint first, so a run that dies while it saves, or finds
    the disk full, may be left with none. No upstream report known.
    Mend: put the removals off until the method has returned.
    No longer needed: when ``CheckpointHook`` saves first.

    Args:
        checkpoint_hook (ModuleType): ``mmengine.hooks.checkpoint_hook``.
    """
    hook = checkpoint_hook.CheckpointHook
    for name in ('_save_checkpoint_with_step', '_save_best_checkpoint'):
        setattr(hook, name, _removing_last(getattr(hook, name)))


class _RemoveLater:
    """A file backend that only notes down what is to be removed."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.removals: List[tuple] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        """Note down a file."""
        self.removals.append((self._backend.remove, path))

    def rmtree(self, path: str) -> None:
        """Note down a folder."""
        self.removals.append((self._backend.rmtree, path))


def _removing_last(save: Callable) -> Callable:
    """Wrap a method of ``CheckpointHook``."""

    @functools.wraps(save)
    def wrapper(self, *args, **kwargs):
        backend = self.file_backend
        self.file_backend = later = _RemoveLater(backend)
        try:
            save(self, *args, **kwargs)
        finally:
            self.file_backend = backend
        # What has just been written again under the same name stays.
        current = {
            self.last_ckpt,
            getattr(self, 'best_ckpt_path', None),
            *getattr(self, 'best_ckpt_path_dict', {}).values(),
        }
        for remove, path in later.removals:
            if path not in current:
                remove(path)

    return wrapper
