"""Checkpoints of HobbitLong/RepDistiller as checkpoints of our configs."""

import argparse
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmpretrain.registry import MODELS
from torch import Tensor

from crd_plugin.compat import load_checkpoint_file
from crd_plugin.models.algorithms.checkpoints import find_weights, load_strictly
from crd_plugin.models.backbones import CIFAR_ZOO, build_cifar_classifier_cfg, find_cifar_name

from .publish import serialize, write_once

# What the original calls its last layer: ResNet and WRN; ResNet-50 and the ShuffleNets; VGG and
# (with an index behind it) MobileNetV2.
_CLASSIFIERS = ('fc', 'linear', 'classifier')
_COUNTER = 'num_batches_tracked'


def convert_repdistiller(
    checkpoint: str | os.PathLike, out: str | os.PathLike, arch: str | None = None
) -> Path:
    """Write a teacher of RepDistiller as a checkpoint of our config.

    The config is ``build_cifar_classifier_cfg(arch, num_classes)`` with the classes of the weights;
    it is written into the file too. Equal input gives equal bytes.

    Args:
        checkpoint (str): File of ``train_teacher.py`` of HobbitLong/RepDistiller, ``{'model':
            state_dict, 'epoch', 'accuracy' | 'best_acc', 'optimizer' | 'opt'}``, also of torch
            0.4.0, in which batch norm counts no batches.
        out (str): File to write.
        arch (str, optional): Name in ``CIFAR_ZOO``. Defaults to None: that of the weights.

    Returns:
        Path: The file written: ``state_dict`` and, under ``meta``, ``architecture``,
        ``num_classes``, ``cfg``, the source's name and SHA-256, and, as far as known, ``epoch`` and
        ``accuracy`` (percent).

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        CheckpointError: If it cannot be read, or holds objects that might run code.
        ValueError: If it is of another format, or the weights fit no architecture, or another.
        FileExistsError: If ``out`` is a folder or another file.
    """
    source = Path(checkpoint)
    # `opt` may hold the options of the command line; making a Namespace runs no code.
    with torch.serialization.safe_globals([argparse.Namespace]):
        loaded = load_checkpoint_file(source)
    weights = find_weights(loaded, f'checkpoint {source}')
    if all(key.startswith('module.') for key in weights):  # DataParallel
        weights = {key.removeprefix('module.'): value for key, value in weights.items()}
    name = find_cifar_name(arch) if arch else _architecture(weights, source)
    # torch 0.4.0 has no counters; nothing but a cumulative average reads them.
    zero = torch.zeros((), dtype=torch.int64)
    state = {_our_key(key): value for key, value in weights.items()}
    classes = state['head.fc.bias'].numel() if 'head.fc.bias' in state else 100
    cfg = build_cifar_classifier_cfg(name, classes)
    model = MODELS.build(cfg)
    own = model.state_dict()
    state = {key: zero for key in own if key.endswith(_COUNTER)} | state
    load_strictly(model, state, f'checkpoint {source}', name, 'Leave --arch out, or give another.')
    state = {key: state[key] for key in own}
    plain = dict(default_scope='mmpretrain', custom_imports=dict(imports=['crd_plugin']), model=cfg)
    meta = dict(
        architecture=name,
        num_classes=cfg['head']['num_classes'],
        source=source.name,
        source_sha256=hashlib.sha256(source.read_bytes()).hexdigest(),
        cfg=Config(plain).pretty_text,
    )
    if loaded.get('epoch') is not None:
        meta['epoch'] = int(loaded['epoch'])
    accuracy = loaded.get('accuracy', loaded.get('best_acc'))
    if accuracy is not None:
        meta['accuracy'] = float(accuracy)
    target = write_once(serialize(state, meta), Path(out).expanduser())
    MMLogger.get_current_instance().info(
        f'{target}: {name} of {meta["num_classes"]} classes, {len(state)} tensors.'
    )
    return target


def _architecture(weights: dict[str, Tensor], source: Path) -> str:
    """Name of the network of the zoo that the weights are of; no two have the same shapes."""
    given = _shapes({_our_key(key): value for key, value in weights.items()})
    classes = given.get('head.fc.bias', (0,))[0]
    for name in CIFAR_ZOO if classes else ():
        if given == _shapes(MODELS.build(build_cifar_classifier_cfg(name, classes)).state_dict()):
            return name
    raise ValueError(
        f'checkpoint {source} fits no network of the zoo ({", ".join(CIFAR_ZOO)}); --arch NAME '
        'says what is missing of one.'
    )


def _our_key(key: str) -> str:
    """Name of a weight of the original in our config."""
    if key.partition('.')[0] in _CLASSIFIERS:
        return f'head.fc.{key.rpartition(".")[2]}'
    return 'backbone.' + key.replace('.shortcut.', '.downsample.')


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Names and shapes, without the counters of batch norm."""
    return {k: tuple(v.shape) for k, v in weights.items() if not k.endswith(_COUNTER)}
