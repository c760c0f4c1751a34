"""Checkpoints: load them safely, say clearly why that fails."""

import errno
import functools
import importlib
import inspect
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlparse


class CheckpointError(RuntimeError):
    """A checkpoint file that exists but cannot be loaded."""


def load_checkpoint_file(filename: str | os.PathLike, map_location: Any = 'cpu') -> dict[str, Any]:
    """Load a local checkpoint, log history included, without running code of the file.

    Args:
        filename (str or PathLike): The checkpoint file, of torch or ``.safetensors``.
        map_location: See :func:`torch.load`. Defaults to ``'cpu'``.

    Returns:
        dict: The checkpoint.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is truncated, is not a checkpoint, holds objects of other
            classes, or is not a dict.
        ImportError: If safetensors is needed and not installed.
    """
    import torch

    path = Path(filename).expanduser()
    if not path.is_file():
        kind = 'is a folder' if path.is_dir() else 'does not exist'
        raise FileNotFoundError(
            f'checkpoint {filename} {kind}; give the path of a .pth file, for example one named in '
            '`last_checkpoint` of a work dir.'
        )
    try:
        if path.suffix == '.safetensors':
            loaded = importlib.import_module('safetensors.torch').load_file(path)
        else:
            with _log_history_allowed():
                loaded = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:
        # A damaged file makes torch fail in any way. EINVAL is how its reader says that an index
        # points past the end; other errors of the system are not the file's fault.
        number = getattr(error, 'errno', None)
        if isinstance(error, (ImportError, MemoryError)) or number not in (None, errno.EINVAL):
            raise
        raise CheckpointError(f'checkpoint {filename} {_explain(path, error)}') from error
    if not isinstance(loaded, dict):
        raise CheckpointError(
            f'checkpoint {filename} holds a {type(loaded).__name__}, expected a dict with weights, '
            'as model.state_dict() gives them: save it again with '
            'torch.save(dict(state_dict=...), FILE).'
        )
    return loaded


def _explain(path: Path, error: Exception) -> str:
    """Say what is wrong with a file that torch refused, and what to do."""
    found = re.search(r'GLOBAL (\S+)', str(error))
    if found:
        return (
            f'holds an object of class {found.group(1)}, but only tensors, numbers and plain '
            'containers are loaded, because anything else may run code; save it again with its '
            '`state_dict` alone.'
        )
    # torch appends paragraphs of advice to what went wrong.
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].split('. ')[0]
    # The index of a zip file stands at its end: with it, the file is not truncated.
    if zipfile.is_zipfile(path):
        return f'cannot be loaded ({reason}); save it again with its `state_dict` alone.'
    return (
        f'({path.stat().st_size} bytes) is truncated or not a checkpoint of torch ({reason}); copy '
        'or download it again, or give an earlier one of the same work dir.'
    )


@contextmanager
def _log_history_allowed() -> Iterator[None]:
    """Let ``torch.load`` read the log history of MMEngine's checkpoints, and nothing afterwards.

    What the process has allowed itself under the same names stays.
    """
    import numpy as np
    import torch
    from mmengine.logging import HistoryBuffer
    from numpy._core import multiarray

    allowed: dict[str, Any] = {
        'mmengine.logging.history_buffer.HistoryBuffer': HistoryBuffer,
        'builtins.getattr': _get_statistic,
        'numpy.ndarray': np.ndarray,
        'numpy.dtype': np.dtype,
        **{f'numpy.dtypes.{name}': getattr(np.dtypes, name) for name in np.dtypes.__all__},
    }
    for package in ('numpy.core', 'numpy._core'):  # as NumPy 1 and 2 write it
        allowed[f'{package}.multiarray._reconstruct'] = multiarray._reconstruct
        allowed[f'{package}.multiarray.scalar'] = multiarray.scalar
    for entry in torch.serialization.get_safe_globals():
        name = entry[1] if isinstance(entry, tuple) else f'{entry.__module__}.{entry.__qualname__}'
        allowed.pop(name, None)
    added: list[Any] = [(value, name) for name, value in allowed.items()]
    with torch.serialization.safe_globals(added):
        yield


def _get_statistic(owner: Any, name: str) -> Callable:
    """Stand in for ``getattr``, by which a ``HistoryBuffer`` refers to four of its own methods."""
    from mmengine.logging import HistoryBuffer

    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise pickle.UnpicklingError(f'GLOBAL getattr({owner!r}, {name!r}) is not allowed')
    return getattr(HistoryBuffer, name)


def load_log_history(checkpoint: ModuleType) -> None:
    """Let MMEngine load the checkpoints that it writes.

    Breaks: since torch 2.6, ``torch.load`` refuses the ``HistoryBuffer`` objects and NumPy scalars
    in each checkpoint, so a run cannot be resumed (open-mmlab/mmengine#1655).
    """
    if 'weights_only' in inspect.getsource(checkpoint):
        return  # this version chooses what it loads
    loader = checkpoint.CheckpointLoader
    load = loader.load_checkpoint.__func__

    @functools.wraps(load)
    def load_checkpoint(cls, *args, **kwargs):
        with _log_history_allowed():
            return load(cls, *args, **kwargs)

    loader.load_checkpoint = classmethod(load_checkpoint)


def load_checkpoint(source: str, map_location: Any = 'cpu') -> dict[str, Any]:
    """Load a checkpoint of any scheme that MMEngine knows without running code of the file.

    Args:
        source (str): Path, URL, or a name such as ``torchvision://resnet50``.
        map_location: See :func:`torch.load`. Defaults to ``'cpu'``.

    Returns:
        dict: The checkpoint.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If it cannot be downloaded or loaded.
    """
    if '://' not in source:
        return load_checkpoint_file(source, map_location)
    from mmengine.runner import CheckpointLoader, checkpoint

    upstream = checkpoint.load_url
    checkpoint.load_url = _load_url
    try:
        return CheckpointLoader.load_checkpoint(source, map_location)
    finally:
        checkpoint.load_url = upstream


def _load_url(url: str, map_location: Any = None, progress: bool = True, **_: Any) -> dict:
    """Stand in for ``torch.hub.load_state_dict_from_url``, which unpickles whatever it is sent."""
    import torch

    # torch knows a download by the last part of its URL alone; here the whole URL names the file.
    name = Path(urlparse(url).path).name
    folder, digest = Path(torch.hub.get_dir(), 'checkpoints'), sha256(url.encode()).hexdigest()[:12]
    path = folder / f'{digest}-{name}'
    is_new = not path.is_file()
    if is_new:
        folder.mkdir(parents=True, exist_ok=True)
        expected = re.search(r'-([a-f0-9]{8,})\.', name)  # as the names of published files end
        try:
            torch.hub.download_url_to_file(url, str(path), expected and expected[1], progress)
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f'checkpoint {url} cannot be downloaded ({error}); download it by hand and give '
                'its path.'
            ) from error
    try:
        return load_checkpoint_file(path, map_location)
    except CheckpointError as error:
        # A connection that was lost ends a download without a word: it is not kept.
        if is_new:
            path.unlink(missing_ok=True)
        raise CheckpointError(f'{url}: {error}') from error


def use_load_checkpoint_file() -> None:
    """Let MMEngine load all checkpoints of this process as :func:`load_checkpoint` does."""
    from mmengine.runner import CheckpointLoader, checkpoint

    CheckpointLoader.register_scheme(prefixes='', loader=load_checkpoint_file, force=True)
    checkpoint.load_url = _load_url
