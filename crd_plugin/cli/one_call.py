"""A distillation in one call: write its config, check it, train, publish the student."""

import argparse
import ast
import os
import re
from collections.abc import Mapping, Sequence
from itertools import starmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmengine.config import Config
from mmpretrain.datasets.custom import find_folders, get_samples
from torch import nn

from crd_plugin.checkpoints.publish import publish_student
from crd_plugin.models._numbers import not_negative

from . import arguments as cli
from .launch import PACKAGE, write_whole
from .lookup import nearest
from .networks import Network, network_cfg
from .resuming import guarded

_FRAGMENTS = PACKAGE / '.mim' / 'configs' / '_base_' / 'distillers'
_UNLABELED = '_unlabeled'
_RECIPE = """\
\"\"\"Written by crd_plugin.distill; a config as any other.\"\"\"

_base_ = [
{bases}]
from crd_plugin.fragments import join

{pair}
model = join(pair, {methods})

{settings}"""


class Distilled(NamedTuple):
    """What a distillation leaves.

    Attributes:
        student (Path): The student alone, a checkpoint of MMPretrain.
        config (Path): Config of the run, for ``tools/train.py`` and ``tools/test.py``.
        checkpoint (Path): Last checkpoint of the run, with teacher and memory bank.
        last (float, optional): Top-1 accuracy in percent after the last epoch; None without
            validation.
        best (float, optional): Best top-1 accuracy of all epochs, in percent.
    """

    student: Path
    config: Path
    checkpoint: Path
    last: float | None = None
    best: float | None = None


def distill(
    student: Network,
    teacher: Network,
    train_data: str | os.PathLike,
    val_data: str | os.PathLike | None = None,
    method: str | Sequence[str] = 'crd',
    epochs: int = 100,
    batch_size: int = 64,
    lr: float | None = None,
    image_size: int = 224,
    teacher_checkpoint: str | os.PathLike | None = None,
    seed: int = 0,
    work_dir: str | os.PathLike | None = None,
    cfg_options: Mapping[str, Any] | None = None,
) -> Distilled:
    """Distil a teacher into a student on a folder of images: ``docs/one_call.md``.

    It writes a config, checks it, trains as ``tools/train.py`` does and publishes the student.

    Args:
        student (str | Path | nn.Module | Callable | dict): Network to train, as
            :func:`crd_plugin.cli.networks.network_cfg` takes it.
        teacher (str | Path | nn.Module | Callable | dict): Network to learn from.
        train_data (str | Path): Folder with one folder of images per class, or of images without
            classes: then the student learns without labels.
        val_data (str | Path, optional): Folder with one folder of images per class. Defaults to
            None: no validation.
        method (str | Sequence[str]): Files in ``configs/_base_/distillers``, several as
            ``'crd+kd'``; ``'..._unlabeled'`` ignores the classes of ``train_data``. Defaults to
            ``'crd'``.
        epochs (int): Number of epochs. Defaults to 100.
        batch_size (int): Images per batch. Defaults to 64.
        lr (float, optional): Initial learning rate of SGD, which a cosine takes to zero. Defaults
            to None: 0.1 per 256 images of a batch; 0.05 per 64 for images of at most 64 pixels.
        image_size (int): Height and width of the images, in pixels. Defaults to 224.
        teacher_checkpoint (str | Path, optional): File or URL of the teacher's weights, or
            ``'pretrained'``: those of the model zoo, or that its constructor loads. Defaults to
            None, for a module or a checkpoint.
        seed (int): Seed of all random numbers. Defaults to 0.
        work_dir (str | Path, optional): Folder of the run. Defaults to None:
            ``work_dirs/METHOD_TEACHER_STUDENT``.
        cfg_options (dict, optional): Other settings by dotted name, such as
            ``{'train_dataloader.num_workers': 8}``. Defaults to None.

    Returns:
        Distilled: Files and accuracies.

    Raises:
        UsageError: If an argument is wrong, the dry run finds a fault, or the training fails.
    """
    for name, value in dict(epochs=epochs, batch_size=batch_size, image_size=image_size).items():
        if type(value) is not int or value < 1:
            raise cli.UsageError(f'{name} is {value!r}, expected an integer of at least 1.')
    try:
        if lr is not None:
            not_negative('lr', lr)
    except (TypeError, ValueError) as error:
        raise cli.UsageError(str(error)) from error
    if not method or not isinstance(method, Sequence):
        raise cli.UsageError(f"method is {method!r}, expected a name such as 'crd', or several.")
    if not isinstance(cfg_options, Mapping | None):
        raise cli.UsageError(f'cfg_options is {cfg_options!r}, expected a dict by dotted name.')
    names = method.split('+') if isinstance(method, str) else list(method)
    variables = [_check_method(name) for name in names]
    notes: list[str] = []
    classes, val_classes = _read_classes('train_data', train_data, notes), None
    labeled = classes is not None and not any(name.endswith(_UNLABELED) for name in names)
    if val_data is not None:
        val_classes = _read_classes('val_data', val_data, notes)
        if val_classes is None:
            raise cli.UsageError(
                f'val_data {val_data} has images without classes; give a folder with one folder of '
                'images per class, or leave val_data out.'
            )
        odd = sorted(set(val_classes) ^ set(classes or ())) if labeled else []
        if odd:
            raise cli.UsageError(
                f'val_data {val_data} must have the folders of classes that train_data has; only '
                f'one of them has {", ".join(odd[:5])}.'
            )
    if not labeled:  # methods have a fragment of their own, or need no labels
        free = [f'{name.removesuffix(_UNLABELED)}{_UNLABELED}' for name in names]
        names = [b if (_FRAGMENTS / f'{b}.py').exists() else a for a, b in zip(names, free)]
    num_classes = len((classes if labeled else val_classes) or ()) or None
    try:
        pair = _pair(student, teacher, teacher_checkpoint, num_classes)
    except (ValueError, OSError) as error:
        raise cli.UsageError(str(error)) from error
    pair['input_shape'] = (3, image_size, image_size)
    if work_dir is None:
        work_dir = Path('work_dirs', '_'.join(['+'.join(names), *map(_name, (teacher, student))]))
    folder = Path(work_dir)
    path = folder / 'recipe' / f'{folder.absolute().name}.py'
    go_on = f'`python tools/train.py {path} --resume` goes on from'
    if any(isinstance(network, nn.Module) for network in (student, teacher)):
        go_on = 'a run with a module as a network cannot be resumed, but the weights are in'
    if (folder / 'last_checkpoint').exists():
        raise cli.UsageError(
            f'work_dir {folder} has a run already: {go_on} its latest checkpoint; for a new run '
            'give another work_dir.'
        )
    small = image_size <= 64
    rate = batch_size * (0.05 / 64 if small else 0.1 / 256) if lr is None else lr
    settings = {
        'work_dir': str(folder),
        'randomness.seed': seed,
        'data_preprocessor.num_classes': num_classes,
        'train_dataloader.batch_size': batch_size,
        'train_dataloader.dataset.dataset.data_root': os.fspath(train_data),
        **_sizes('train_dataloader.dataset.dataset', image_size, small),
        'optim_wrapper.optimizer.lr': rate,
        'auto_scale_lr.base_batch_size': batch_size,
        'param_scheduler.end': epochs,
        'train_cfg.max_epochs': epochs,
    }
    if not labeled:
        pair['calculate_student_loss'] = False
        settings['train_dataloader.dataset.dataset.with_label'] = False
        settings['find_unused_parameters'] = True  # CRD does not train the classifier
    for loop in ('val', 'test'):
        if val_classes is None:
            settings |= {f'{loop}_{part}': None for part in ('dataloader', 'evaluator', 'cfg')}
            settings['default_hooks.checkpoint.save_best'] = None
        else:
            settings[f'{loop}_dataloader.dataset.data_root'] = os.fspath(val_data or '')
            settings |= _sizes(f'{loop}_dataloader.dataset', image_size, small)
    bases = [f'settings/image-folder{"-small" * small}_b64-100e']
    bases += [f'distillers/{name}' for name in names]
    text = _RECIPE.format(
        bases=''.join(f"    'crd_plugin::_base_/{base}.py',\n" for base in bases),
        pair=Config(dict(pair=pair)).pretty_text.strip(),
        methods=', '.join(f'_base_.{name}' for name in variables),
        settings=''.join(starmap(_assign, settings.items())),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)
    if cfg_options:
        cli.merge_options(cli.load_config(str(path)), dict(cfg_options))  # checks the names
        write_whole(path, text + ''.join(starmap(_assign, cfg_options.items())))
    return _train(path, notes, go_on)


def _check_method(name: str) -> str:
    """Return the variable that the fragment of a method defines."""
    path = _FRAGMENTS / f'{name}.py'
    if not path.exists():
        known = (file.stem for file in sorted(_FRAGMENTS.glob('*.py')))
        raise cli.UsageError(f'method {name!r} is unknown; {nearest(name, known)}.')
    ((variable, fragment),) = Config.fromfile(path).items()
    if fragment['type'] != 'crd_plugin.FrozenTeacherDistill':
        raise cli.UsageError(
            f'method {name!r} needs a schedule or data of its own; write a config, see '
            f'docs/methods/{name.replace("_", "-")}.md.'
        )
    return variable


def _read_classes(argument: str, folder: str | os.PathLike, notes: list[str]) -> list[str] | None:
    """Return the folders in a folder of images; None if it has only images."""
    if not isinstance(folder, (str, os.PathLike)) or not Path(folder).is_dir():
        raise cli.UsageError(f'{argument} {folder!r} is not a folder; give a folder of images.')
    settings = Config.fromfile(_FRAGMENTS.parent / 'settings' / 'image-folder_b64-100e.py')
    endings = tuple(settings.val_dataloader.dataset.extensions)
    # As MMPretrain's CustomDataset finds them, which numbers all folders, empty ones too.
    files = [Path(name) for name in get_samples(os.fspath(folder), None, lambda _: True)[0]]
    images = [file for file in files if file.suffix.lower() in endings]
    if not images:
        raise cli.UsageError(f'{argument} {folder} has no images ({", ".join(endings)}).')
    if len(images) < len(files):
        kinds = {file.suffix or file.name for file in {*files}.difference(images)}
        text = f'{len(files) - len(images)} files are passed over ({", ".join(sorted(kinds)[:5])})'
        notes.append(f'{argument} {folder}: {text}; images end in {", ".join(endings)}.')
    classes = {file.parts[0] for file in images if len(file.parts) > 1}
    if not classes:
        return None
    if any(len(file.parts) == 1 for file in images):
        raise cli.UsageError(
            f'{argument} {folder} has both images and folders; put each image into the folder of '
            'its class, or none.'
        )
    empty = [name for name in find_folders(os.fspath(folder))[0] if name not in classes]
    if empty:
        raise cli.UsageError(
            f'{argument} {folder} has folders without images, each of which would be a class: '
            f'{", ".join(empty[:5])}; move them away.'
        )
    return sorted(classes)


def _pair(
    student: Network,
    teacher: Network,
    checkpoint: str | os.PathLike | None,
    num_classes: int | None,
) -> dict[str, Any]:
    """Return the networks and the teacher's weights."""
    pretrained = checkpoint == 'pretrained'
    # Weights of a zoo fit its own classes.
    network = network_cfg(teacher, None if pretrained else num_classes, pretrained)
    init = network.get('init_cfg')
    weights = init.get('checkpoint') if isinstance(init, Mapping) else None
    if checkpoint is not None and not pretrained:
        if not isinstance(checkpoint, (str, os.PathLike)):
            raise ValueError(
                f'teacher_checkpoint is a {type(checkpoint).__name__}, expected a file; load '
                'weights that you have into the module, and leave it out.'
            )
        weights = os.fspath(checkpoint)
        cli.check_checkpoint(weights, 'teacher_checkpoint')
    elif not (weights or pretrained or isinstance(teacher, (nn.Module, Mapping))):
        raise ValueError(
            f'teacher {_name(teacher)} has no weights; give its file as teacher_checkpoint, or '
            "'pretrained' for those of the model zoo."
        )
    if weights:
        network.pop('init_cfg', None)
    if num_classes is None:  # as many outputs as the teacher, for losses of logits
        num_classes = (network.get('head') or {}).get('num_classes')
    architecture = network_cfg(student, num_classes)
    return dict(architecture=architecture, teacher=network, teacher_ckpt=weights)


def _name(network: Network) -> str:
    """Return a name of a network that may be part of a file's name."""
    name = network if isinstance(network, (str, os.PathLike)) else type(network).__name__
    return re.sub(r'[^\w.-]+', '-', Path(getattr(network, '__name__', name)).name)


def _sizes(dataset: str, size: int, small: bool) -> dict[str, int]:
    """Return what the size of the images changes in a pipeline of the base settings."""
    train, sizes = dataset.startswith('train'), {'1.scale': size}
    if small and train:
        sizes |= {'2.crop_size': size, '2.padding': size // 8}
    elif not small and not train:
        sizes |= {'1.scale': size * 8 // 7, '2.crop_size': size}
    return {f'{dataset}.pipeline.{key}': value for key, value in sizes.items()}


def _assign(name: str, value: Any) -> str:
    """Return the line of a config that replaces a setting."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    elif isinstance(value, np.generic):
        value = value.item()
    try:
        ast.literal_eval(repr(value))
    except (SyntaxError, ValueError) as error:
        raise cli.UsageError(
            f'{name} is {value!r}, expected what a config can hold: numbers, texts, None, lists '
            'and dicts of them.'
        ) from error
    first, *keys = name.split('.')
    places = ''.join(f'[{key}]' if key.isdigit() else f'.{key}' for key in keys)
    return f'{"model" if first == "model" else f"_base_.{first}"}{places} = {value!r}\n'


def _train(path: Path, notes: Sequence[str], go_on: str) -> Distilled:
    """Train a config as ``tools/train.py`` does, and publish the student."""
    cfg = cli.load_config(str(path))
    parser = argparse.ArgumentParser()
    cli.add_common_arguments(parser)
    flags = parser.parse_args([], argparse.Namespace(config=str(path)))
    with cli.explained(cfg):
        cli.merge_common_arguments(cfg, flags)
        found = cli.try_out(cfg)
        with guarded(cfg, go_on):
            runner = cli.build_runner(cfg)
            for note in (*notes, *found):
                runner.logger.warning(note)
            runner.train()
        folder = Path(cfg.work_dir)
        last = folder / Path((folder / 'last_checkpoint').read_text().strip()).name
        result = Distilled(publish_student(last, folder / 'student.pth'), path, last)
    history = runner.message_hub.log_scalars.get('val/accuracy/top1')
    if history is None:
        return result
    values = history.data[0].tolist()
    return result._replace(last=values[-1], best=max(values))
