"""Checkpoints of HobbitLong/RepDistiller as checkpoints of our configs."""

import argparse
import hashlib
import io
import os
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from torch import Tensor

from crd_plugin.compat import CheckpointError, load_checkpoint_file
from crd_plugin.models.backbones import CIFAR_ZOO, build_cifar_classifier_cfg, find_cifar_name

# What the original calls its last layer: ResNet and WRN; ResNet-50 and the
# ShuffleNets; VGG and (with an index behind it) MobileNetV2.
_CLASSIFIERS = ('fc', 'linear', 'classifier')
_COUNTER = 'num_batches_tracked'


def convert_repdistiller(
    checkpoint: Union[str, os.PathLike], out: Union[str, os.PathLike], arch: Optional[str] = None
) -> Path:
    """Write a teacher of RepDistiller as a checkpoint of our config.

    The config is ``build_cifar_classifier_cfg(arch, num_classes)``, where the
    number of classes is that of the weights; it stands in the file too. Equal
    input gives equal bytes.

    Source: the files that ``train_teacher.py`` of HobbitLong/RepDistiller
    writes, ``{'model': state_dict, 'epoch', 'accuracy' | 'best_acc',
    'optimizer' | 'opt'}``, also those of torch 0.4.0, in which batch norm
    counts no batches.

    Args:
        checkpoint (str): Such a file.
        out (str): File to write.
        arch (str, optional): Name in ``CIFAR_ZOO``. Defaults to None: the
            folder's name, such as ``resnet32x4_vanilla``, or the file's.

    Returns:
        Path: The file written: ``state_dict`` and, under ``meta``,
        ``architecture``, ``num_classes``, ``cfg``, the source's name and
        SHA-256, and, as far as known, ``epoch`` and ``accuracy`` (percent).

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        CheckpointError: If it cannot be read, or holds objects that might run
            code.
        ValueError: If it is of another format, the architecture is unknown,
            or the weights do not fit it.
        FileExistsError: If ``out`` is a folder or another file.
    """
    source = Path(checkpoint)
    loaded = _load(source)
    weights = _weights(loaded, source)
    name = _architecture(source, arch, weights)
    cfg, state = _fit(weights, name, source)
    meta = dict(
        architecture=name,
        num_classes=cfg['head']['num_classes'],
        source=source.name,
        source_sha256=hashlib.sha256(source.read_bytes()).hexdigest(),
        cfg=Config(
            dict(default_scope='mmpretrain', custom_imports=dict(imports=['crd_plugin']), model=cfg)
        ).pretty_text,
    )
    accuracy = loaded.get('accuracy', loaded.get('best_acc'))
    for key, kind, value in (('epoch', int, loaded.get('epoch')), ('accuracy', float, accuracy)):
        if value is not None:
            meta[key] = kind(value)
    # Through memory: in a file, torch writes the file's name into the bytes.
    buffer = io.BytesIO()
    torch.save(dict(meta=meta, state_dict=state), buffer)
    target = _write(buffer.getvalue(), Path(out).expanduser())
    MMLogger.get_current_instance().info(
        f'{target}: {name} of {meta["num_classes"]} classes, {len(state)} tensors.'
    )
    return target


def _load(source: Path) -> Dict[str, Any]:
    """Read the file; ``opt`` may hold the options of the command line."""
    try:
        # A Namespace is a bare set of attributes; making one runs no code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return load_checkpoint_file(os.fspath(source))
    except CheckpointError as error:
        if 'object of class' not in str(error):
            raise
        raise CheckpointError(
            f'{error} For a file of RepDistiller that you trust, keep its '
            f'weights alone: load {source.name} with the code that made it, '
            "then torch.save({'model': loaded['model']}, NEW)."
        ) from error


def _weights(loaded: Any, source: Path) -> Dict[str, Tensor]:
    """Weights under ``model``, without the prefix of DataParallel."""
    weights = loaded.get('model') if isinstance(loaded, dict) else None
    if (
        not isinstance(weights, dict)
        or not weights
        or not all(isinstance(value, Tensor) for value in weights.values())
    ):
        found = type(loaded).__name__
        if isinstance(loaded, dict):
            found = f'a dict of {_shorten(list(map(str, loaded)))}'
        raise ValueError(
            f'checkpoint {source} holds {found}, expected a dict whose '
            "'model' is a state_dict; give a file that RepDistiller has "
            'saved, such as resnet32x4_vanilla/ckpt_epoch_240.pth.'
        )
    if all(key.startswith('module.') for key in weights):
        return {key[len('module.') :]: weights[key] for key in weights}
    return weights


def _architecture(source: Path, arch: Optional[str], weights: Dict[str, Tensor]) -> str:
    """Name as given, else the one that folder or file begins with."""
    if arch is not None:
        return find_cifar_name(arch)
    for text in (source.absolute().parent.name, source.stem):
        # A student's folder is called S:resnet8x4_T:resnet32x4_...
        text = re.sub('^S:', '', text).lower() + '_'
        for name in CIFAR_ZOO:
            if text.startswith(f'{name.lower()}_'):
                return name
    raise ValueError(
        f'neither the folder nor the name of {source} begins with a known '
        f'architecture; give it by --arch. {_advice(weights)}'
    )


def _fit(
    weights: Dict[str, Tensor], name: str, source: Path
) -> Tuple[Dict[str, Any], 'OrderedDict[str, Tensor]']:
    """Config of the network, and the weights under its names."""
    theirs = {_our_key(key): key for key in weights}
    fc = theirs.get('head.fc.weight')
    if fc is None or not len(weights[fc]):
        raise ValueError(
            f'checkpoint {source} has no classifier: none of '
            f'{", ".join(_CLASSIFIERS)} is among its keys, which begin with '
            f'{_shorten(list(weights))}; give the file of a whole network.'
        )
    cfg = build_cifar_classifier_cfg(name, len(weights[fc]))
    own = _shapes(cfg)
    if not any(key.endswith(_COUNTER) for key in weights):
        # torch 0.4.0; nothing but a cumulative average reads them.
        weights = dict(weights)
        for key in own:
            if key.endswith(_COUNTER):
                weights[key] = torch.zeros((), dtype=torch.int64)
                theirs[key] = key
    missing = [key for key in own if key not in theirs]
    unexpected = [theirs[key] for key in theirs if key not in own]
    shapes = [
        f'{theirs[key]} {tuple(weights[theirs[key]].shape)} instead of {own[key]}'
        for key in own
        if key in theirs and weights[theirs[key]].shape != own[key]
    ]
    if missing or unexpected or shapes:
        raise ValueError(
            f'checkpoint {source} does not fit {name}: missing '
            f'{_shorten(missing)}; unexpected {_shorten(unexpected)}; other '
            f'shapes {_shorten(shapes)}. {_advice(weights)}'
        )
    # A view would be saved with all of the storage behind it.
    return cfg, OrderedDict((key, weights[theirs[key]].detach().clone()) for key in own)


def _our_key(key: str) -> str:
    """Name of a weight of the original in our config."""
    module, _, _ = key.partition('.')
    if module in _CLASSIFIERS:
        return f'head.fc.{key.rpartition(".")[2]}'
    return 'backbone.' + key.replace('.shortcut.', '.downsample.')


def _shapes(cfg: Dict[str, Any]) -> Dict[str, Tuple[int, ...]]:
    """Names and shapes of the weights, in order."""
    from mmpretrain.registry import MODELS

    weights = MODELS.build(cfg).state_dict()
    return {key: tuple(value.shape) for key, value in weights.items()}


def _advice(weights: Dict[str, Tensor]) -> str:
    """Which networks of the zoo the weights are of."""
    shapes = {
        _our_key(key): tuple(value.shape)
        for key, value in weights.items()
        if not key.endswith(_COUNTER)
    }
    classes = shapes.get('head.fc.bias', (0,))[0]
    for name in CIFAR_ZOO if classes else ():
        own = _shapes(build_cifar_classifier_cfg(name, classes))
        if shapes == {key: shape for key, shape in own.items() if not key.endswith(_COUNTER)}:
            return f'Its weights are those of {name}: give --arch {name}.'
    return f'Its weights fit no network of the zoo: {", ".join(CIFAR_ZOO)}.'


def _write(content: bytes, target: Path) -> Path:
    """Write whole or not at all; never over another file."""
    if target.is_dir():
        raise FileExistsError(
            f'OUT {target} is a folder; give a file in it, such as {target / "resnet32x4.pth"}.'
        )
    if target.exists():
        if target.read_bytes() == content:
            return target
        raise FileExistsError(
            f'{target} exists already and is another file; remove it or choose another OUT.'
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f'{target.name}.part')
    try:
        partial.write_bytes(content)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _shorten(names: Sequence[str], most: int = 5) -> str:
    """The first few names and how many more there are."""
    more = f' and {len(names) - most} more' if len(names) > most else ''
    shown: List[str] = list(names[:most])
    return (', '.join(shown) or 'none') + more
