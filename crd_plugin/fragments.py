"""Functions for configs: join networks and methods, keep data on the device."""

import copy
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config, ConfigDict

__all__ = ['join', 'keep_on_device', 'seeds']

# A method that needs no algorithm of its own joins any other.
_PLAIN_ALGORITHM = 'crd_plugin.FrozenTeacherDistill'


def join(pair: Mapping, *methods: Mapping) -> ConfigDict:
    """Join a pair of networks and one or more methods into the config of a model.

    A leaf names the files of the fragments in ``_base_`` and joins them::

        model = join(_base_.pair, _base_.crd, _base_.kd)

    Methods may share a recorder; any other part belongs to one method. Where two fragments
    disagree, it is an error that names both. The student's own loss has weight 1, or
    ``student_loss_weight`` of a method. See ``docs/combining_methods.md``.

    Args:
        pair (Mapping): Networks: ``architecture`` (the student), ``teacher``, ``teacher_ckpt``;
            settings of the algorithm; under ``published``, by the name of a loss, what was
            published for this pair only.
        *methods (Mapping): Fragments, each with the ``type`` of the algorithm and a ``distiller``;
            settings of networks or algorithm; under ``alone``, what counts without other methods.

    Returns:
        ConfigDict: Config of the algorithm. The fragments are not changed.

    Raises:
        ValueError: If an argument is not such a fragment, two methods need different algorithms,
            two fragments disagree, or the pair itself weighs the student's loss.
    """
    if 'architecture' not in pair:
        raise ValueError(
            f'The first argument of join has the keys {list(pair)}, expected the pair of networks '
            'with an `architecture`: join(_base_.pair, _base_.crd).'
        )
    if not methods:
        raise ValueError('join got a pair but no method; add one: join(_base_.pair, _base_.crd).')
    model, known = copy.deepcopy(ConfigDict(pair)), 'the pair'
    model.type, published = _PLAIN_ALGORITHM, model.pop('published', {})
    for method in methods:
        if 'type' not in method or 'distiller' not in method:
            raise ValueError(
                f'A method given to join has the keys {list(method)}, expected a fragment with '
                '`type` and `distiller` as in configs/_base_/distillers/crd.py.'
            )
        fragment = copy.deepcopy(ConfigDict(method))
        for loss in fragment.distiller.get('distill_losses', ()):
            fragment.merge(published.get(loss, {}))
        alone = fragment.pop('alone', None)
        if alone and len(methods) == 1:
            fragment.merge(alone)
        name = ' + '.join(fragment.distiller.get('distill_losses', [])) or fragment.type
        _unite(model, fragment, f'{known} and {name} cannot be joined: ')
        known = name if known == 'the pair' else f'{known} + {name}'
    _weigh_student_loss(model.architecture, model.pop('student_loss_weight', 1.0))
    return model


def seeds(pair: Mapping, number: int) -> ConfigDict:
    """Replace the teacher of a pair by an ensemble of its trainings with the seeds 0, 1, ...

    In a leaf: ``model = join(seeds(_base_.pair, 4), _base_.crd)``; the checkpoints are those of
    ``tools/run_table.py --seeds 0 1 ...``.

    Args:
        pair (Mapping): Networks, with a ``teacher_ckpt`` in the folder of the teacher's config.
        number (int): Number of members M.

    Returns:
        ConfigDict: The pair with a list as ``teacher_ckpt``.

    Raises:
        ValueError: If the pair's teacher is not trained by a config of ours, or there is no member.
    """
    path = pair.get('teacher_ckpt')
    if not isinstance(path, str) or '://' in path or '/' not in path:
        raise ValueError(
            f"The pair's teacher_ckpt is {path!r}, expected work_dirs/CONFIG/epoch_N.pth, beside "
            'which the seeds are; give the files of the members as a list, '
            'join(dict(_base_.pair, teacher_ckpt=[...]), ...).'
        )
    if not isinstance(number, int) or number < 1:
        raise ValueError(f'seeds got {number!r} members, expected a positive integer.')
    folder, _, file = path.rpartition('/')
    return ConfigDict(pair, teacher_ckpt=[f'{folder}/seed_{i}/{file}' for i in range(number)])


def keep_on_device(cfg: Config | ConfigDict) -> None:
    """Hold the data sets of a config on the training device, and make whole batches there.

    In a config, after ``_base_``: ``keep_on_device(_base_)``.

    Args:
        cfg (Config | ConfigDict): Config with a ``data_preprocessor`` and data loaders; changed
            in place.
    """
    cfg.data_preprocessor.type = 'crd_plugin.ResidentDataPreprocessor'
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(name)
        if loader is None or loader.dataset.type == 'crd_plugin.ResidentDataset':
            continue
        if loader.dataset.type == 'crd_plugin.SampleIndexDataset':
            loader.dataset.type = 'crd_plugin.ResidentDataset'
        else:
            loader.dataset = dict(type='crd_plugin.ResidentDataset', dataset=loader.dataset)
        # Batches are made on the device: there is nothing to load, collate or pin.
        loader.update(
            num_workers=0,
            persistent_workers=False,
            pin_memory=False,
            collate_fn=dict(type='crd_plugin.whole_batch'),
        )


def _unite(model: ConfigDict, method: ConfigDict, who: str) -> None:
    """Add the settings of a method to a model; ``who`` begins the message of an error."""
    algorithm = method.pop('type')
    if algorithm != _PLAIN_ALGORITHM:
        if model.type not in (_PLAIN_ALGORITHM, algorithm):
            raise ValueError(
                f'{who}one needs the algorithm {model.type}, the other {algorithm}; a model has '
                'one algorithm.'
            )
        model.type = algorithm
    known = model.setdefault('distiller', ConfigDict())
    for section, parts in method.distiller.items():
        for name, part in parts.items() if isinstance(parts, Mapping) else ():
            other = known.get(section, {}).get(name)
            shared = section.endswith('recorders') and other == part
            if other is not None and not shared:
                raise ValueError(
                    f'{who}both have {name} in distiller.{section}, {_text(other)} and '
                    f'{_text(part)}; give one of them another name.'
                )
    for key, value in method.items():
        _add_setting(model, key, value, '', who)


def _add_setting(known: ConfigDict, key: str, value: Any, path: str, who: str) -> None:
    """Add a setting, which nothing before may have set to something else."""
    path = f'{path}.{key}' if path else key
    if isinstance(value, Mapping) and isinstance(known.get(key), Mapping):
        for name, part in value.items():
            _add_setting(known[key], name, part, path, who)
    elif key not in known:
        known[key] = value
    elif known[key] != value:
        raise ValueError(f'{who}{path} is {_text(known[key])} in one, {_text(value)} in the other.')


def _weigh_student_loss(architecture: ConfigDict, weight: float) -> None:
    """Write the weight into the loss of the student's head, or of a network without one."""
    head = architecture.get('head')
    path = 'architecture.head.loss' if isinstance(head, ConfigDict) else 'architecture.loss'
    loss = (head if isinstance(head, ConfigDict) else architecture).get('loss')
    if not isinstance(loss, ConfigDict):
        if weight == 1:
            return
        raise ValueError(
            f"The method weighs the student's own loss by {weight}, but the pair has no {path} "
            "that could carry it; write it out, for example loss=dict(type='CrossEntropyLoss')."
        )
    if loss.get('loss_weight', 1) != 1:
        raise ValueError(
            f'{path}.loss_weight of the pair is {loss.loss_weight}, but the weight of the '
            f"student's own loss belongs to the method; set model.{path}.loss_weight after join."
        )
    loss.loss_weight = weight


def _text(value: Any) -> str:
    """A setting as it would be written in a config."""
    return repr(value.to_dict() if isinstance(value, ConfigDict) else value)
