"""The weights that a dry run loads, and how the teacher's images were normalised."""

from __future__ import annotations

import hashlib
import os.path as osp
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import mmpretrain
import numpy as np
from mmengine.config import Config
from mmengine.fileio import load

from crd_plugin.checkpoints.publish import parse_config_text
from crd_plugin.compat import CheckpointError, load_checkpoint_file
from crd_plugin.models.algorithms.checkpoints import how_to_train

from .arguments import without_files
from .dry_run_report import DryRunReport
from .lookup import walk


def check_weights(cfg: dict[str, Any], use_teacher_ckpt: bool, report: DryRunReport) -> None:
    """Look for the files of given weights; take out those that would be downloaded."""
    model = cfg['model']
    own = all(map(_brings_weights, _listed(model.get('teacher') or {})))
    given = model.get('teacher_ckpt')
    for key in () if use_teacher_ckpt else ('backbone_ckpt', 'teacher_ckpt'):
        if model.get(key):
            model[key] = without_files(model[key])
            report.notes.append(f'model.{key} is passed over as asked for.')
    if 'teacher' in model and not (given or own):
        report.notes.append(
            'model.teacher_ckpt is not given: the teacher has random weights; set it before '
            'training.'
        )
    teachers = []
    for part, key, path, name in _files(cfg):
        of_teacher = 'teacher_ckpt' in name
        if '://' in path:
            report.notes.append(f'{name}={path} is not fetched here; random weights stand in.')
            part[key] = None
        elif not osp.isfile(osp.expanduser(path)):
            passable = of_teacher or key == 'backbone_ckpt'
            hint = ' (--no-teacher-ckpt goes on without it)' if passable else ''
            raise FileNotFoundError(f'{name}={path} does not exist; {how_to_train(path)}{hint}.')
        elif of_teacher:
            digest = hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()
            teachers.append(f'{osp.basename(path)}, sha256 {digest[:8]}')
    if 'teacher' in model:
        report.teacher = '; '.join(teachers) or ('its own weights' if own else 'random weights')


def _files(cfg: dict[str, Any]) -> Iterator[tuple[Any, Any, str, str]]:
    """Files of weights that a config names: owner and key of the setting, path, place."""
    found: list[tuple[Any, Any, Any, str]] = [(cfg, 'load_from', cfg.get('load_from'), 'load_from')]
    for place, part in walk(cfg['model'], 'model'):
        for key in ('teacher_ckpt', 'student_ckpt', 'backbone_ckpt'):
            path = part.get(key)
            if isinstance(path, (list, tuple)):
                part[key] = list(path)
                found += [(part[key], i, one, f'{place}.{key}[{i}]') for i, one in enumerate(path)]
            else:
                found.append((part, key, path, f'{place}.{key}'))
        if isinstance(part.get('init_cfg'), dict):
            path = part['init_cfg'].get('checkpoint')
            found.append((part, 'init_cfg', path, f'{place}.init_cfg.checkpoint'))
    return (entry for entry in found if entry[2])


def normalisation_notes(model: Mapping[str, Any]) -> Iterator[str]:
    """Find a teacher that was trained on images of another mean and std than it is given here."""
    if 'teacher' not in model:
        return
    networks, checkpoints = (_listed(model.get(key)) for key in ('teacher', 'teacher_ckpt'))
    if any(network.get('train_cfg') for network in networks):
        yield 'model.teacher.train_cfg has no effect, because the teacher is not trained.'
    several = isinstance(model['teacher'], (list, tuple))
    given = _normalisation(model)
    for number, checkpoint in enumerate(checkpoints):
        # With a data preprocessor of its own a teacher is given what it says.
        if not checkpoint or _normalisation(networks[number if several else 0]):
            continue
        trained_cfg = _config_of_checkpoint(checkpoint)
        trained = _normalisation(trained_cfg.get('model'), trained_cfg)
        if not all(np.allclose(*pair, atol=1) for pair in zip(given, trained)):  # grey levels
            mean, std = trained
            place = f'model.teacher[{number}]' if several else 'model.teacher'
            yield (
                f'model.teacher_ckpt={checkpoint}: the teacher was trained on images with mean '
                f'{mean} and std {std}, but is given images with mean {given[0]} and std '
                f"{given[1]}, as the student is; set {place}.data_preprocessor=dict(type='Cls"
                f"DataPreprocessor', mean={mean}, std={std})."
            )


def _listed(given: Any) -> list[Any]:
    """Return the settings of several teachers, or those of one, as a list."""
    return list(given) if isinstance(given, (list, tuple)) else [given]


def _brings_weights(network: Mapping[str, Any]) -> bool:
    """Tell whether a network initialises itself, from a file or in its constructor."""
    backbone = network.get('backbone') or {}
    by_itself = network.get('pretrained') or backbone.get('pretrained')
    by_itself = by_itself or backbone.get('type') == 'crd_plugin.plain_network'
    return bool(network.get('init_cfg') or by_itself)


def _normalisation(*parts: Any) -> list[Any]:
    """Mean and std of the first config that has a ``data_preprocessor`` with both."""
    for part in parts:
        preprocessor = (part or {}).get('data_preprocessor') or {}
        if preprocessor.get('mean') and preprocessor.get('std'):
            return [preprocessor['mean'], preprocessor['std']]
    return []


def _config_of_checkpoint(path: str) -> dict[str, Any]:
    """Config that a checkpoint was trained with; empty if it is not known."""
    with suppress(CheckpointError, FileNotFoundError, ValueError):  # told when it is loaded
        meta = {} if '://' in path else load_checkpoint_file(path).get('meta')
        if isinstance(meta, dict) and meta.get('cfg'):
            return parse_config_text(meta['cfg'])
    name, root = path.rpartition('/')[2], Path(mmpretrain.__file__).parent / '.mim'
    for index in root.glob('configs/*/metafile.yml') if name else ():
        if name in index.read_text(encoding='utf-8'):
            for entry in load(index)['Models']:
                if str(entry.get('Weights')).endswith(f'/{name}'):
                    return Config.fromfile(root / entry['Config']).to_dict()
    return {}
