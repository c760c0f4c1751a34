"""Check the settings of a config that nothing has been built from: names, types, ranges."""

import inspect
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from mmengine.config import Config
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.runner import (
    EpochBasedTrainLoop,
    IterBasedTrainLoop,
    LogProcessor,
    Runner,
    TestLoop,
    ValLoop,
    set_random_seed,
)
from mmengine.utils.dl_utils import set_multi_processing
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.utils.data import DataLoader

from .lookup import arguments_of, find_type, nearest, unknown_type, walk

# What the runner takes out of a dict before it builds what `type` names.
_TAKEN_OUT = (
    'type',
    '_scope_',
    'priority',
    'constructor',
    'paramwise_cfg',
    'convert_to_iter_based',
)
# Settings that a runner or a tool reads from the config beside the arguments of `Runner`.
_READ_FROM_CONFIG = (
    'compile',
    'custom_imports',
    'find_unused_parameters',
    'model_wrapper_cfg',
    'runner_type',
    'sync_bn',
    'tta_model',
    'tta_pipeline',
)


def _scale_lr(base_batch_size: int, enable: bool = False) -> None:
    """Stand for what ``Runner.scale_lr`` reads."""


def _setup_env(
    cudnn_benchmark: bool = False,
    mp_cfg: Mapping | None = None,
    dist_cfg: Mapping | None = None,
    resource_limit: int = 4096,
) -> None:
    """Stand for what ``Runner.setup_env`` reads."""


# Parts without a `type`: what the runner makes of them, and what it reads itself.
_WITHOUT_TYPE: dict[str, tuple[Any, tuple[str, ...]]] = {
    'auto_scale_lr': (_scale_lr, ()),
    'env_cfg': (_setup_env, ()),
    'env_cfg.mp_cfg': (set_multi_processing, ()),
    'log_processor': (LogProcessor, ()),
    'optim_wrapper': (OptimWrapper, ()),
    'optim_wrapper.clip_grad': (clip_grad_norm_, ()),
    'randomness': (set_random_seed, ('diff_rank_seed',)),
    'test_cfg': (TestLoop, ()),
    'val_cfg': (ValLoop, ()),
    'train_dataloader': (DataLoader, ('num_batch_per_epoch',)),
    'val_dataloader': (DataLoader, ('num_batch_per_epoch',)),
    'test_dataloader': (DataLoader, ('num_batch_per_epoch',)),
}
# Settings of a runner that are plain values.
_PLAIN = ('experiment_name', 'load_from', 'resume', 'work_dir')
# The least value of numbers, wherever they stand.
_LEAST = dict(
    base_batch_size=1,
    batch_size=1,
    max_epochs=1,
    max_iters=1,
    num_workers=0,
    prefetch_factor=1,
    val_interval=1,
)
_NOT_NEGATIVE = ('loss_weight', 'lr', 'momentum', 'weight_decay')
_POSITIVE = ('tau', 'temperature')
_LIMITS = ('clip_value', 'max_norm')  # of gradients; infinity only watches them
# What a default constructor of optimizers reads from `paramwise_cfg`.
_PARAMWISE = re.compile(r"paramwise_cfg(?:\.get\(|\[)\s*'(\w+)'")


def merge_options(cfg: Config, options: Mapping[str, Any]) -> None:
    """Write settings of the command line, by dotted name, into a config that reads them."""
    # Imports are done while the file is loaded.
    known = {*arguments_of(Runner), *_READ_FROM_CONFIG} - {'custom_imports'}
    for name in options:
        if name.partition('.')[0] not in known:
            places = [f'{path}.{key}'.lstrip('.') for path, part in walk(dict(cfg)) for key in part]
            close = nearest(name, [place for place in places if place.partition('.')[0] in known])
            raise ValueError(f'{name}: nothing reads a setting of this name; {close}.')
        own = (cfg.get('model') or {}).get('data_preprocessor')
        if name.partition('.')[0] == 'data_preprocessor' and own:
            raise ValueError(
                f'{name} has no effect: the model has a data_preprocessor of its own; set '
                f'model.{name}.'
            )
    try:
        cfg.merge_from_dict(dict(options))
    except (TypeError, KeyError, IndexError, AssertionError) as error:
        raise ValueError(f'{", ".join(options)} cannot be set: {error}') from error


def check_settings(cfg: Mapping[str, Any]) -> Iterator[str]:
    """Find settings that nothing reads, and values that cannot be meant; a line each."""
    # Other names are variables of the config's file, unless they look like a setting's.
    known = [name for name in arguments_of(Runner) if name != 'cfg']
    for name in cfg:
        if name not in (*known, *_READ_FROM_CONFIG):
            close = nearest(name, known, cutoff=0.85)
            if close.startswith('the nearest'):
                yield f'{name}: the config has no such setting; {close}.'
    given = {name: cfg[name] for name in cfg if name in (*known, 'model_wrapper_cfg')}
    for path, part in walk(given):
        yield from _check_part(part, path)
    yield from _check_types({k: v for k, v in given.items() if k in _PLAIN}, '', Runner)
    unused = cfg.get('find_unused_parameters', False)
    if not isinstance(unused, bool):
        yield f'find_unused_parameters is {unused!r}, expected bool.'
    seed = (given.get('randomness') or {}).get('seed')
    if type(seed) is int and not 0 <= seed < 2**32:
        yield f'randomness.seed is {seed}, expected an integer from 0 to {2**32 - 1}, or None.'
    for loop in ('val', 'test'):
        parts = [f'{loop}_{part}' for part in ('cfg', 'dataloader', 'evaluator')]
        missing = [part for part in parts if cfg.get(part) is None]
        if len(missing) in (1, 2):
            yield (
                f'{", ".join(parts)}: all of them or none is needed, but {" and ".join(missing)} '
                f'{"is" if len(missing) == 1 else "are"} not given.'
            )
    wrapper = given.get('optim_wrapper') or {}
    if wrapper.get('constructor') in (None, 'DefaultOptimWrapperConstructor'):
        known = sorted(set(_PARAMWISE.findall(inspect.getsource(DefaultOptimWrapperConstructor))))
        for key in wrapper.get('paramwise_cfg') or {}:
            if key not in known:
                yield f'optim_wrapper.paramwise_cfg.{key}: unknown; {nearest(key, known)}.'
    model = given.get('model')
    if isinstance(model, Mapping) and isinstance(model.get('distiller'), Mapping):
        yield from _check_mappings(model)
    own = model.get('data_preprocessor') if isinstance(model, Mapping) else None
    shared = given.get('data_preprocessor')
    if own and shared:
        names = ('to_rgb', 'bgr_to_rgb')  # of MMPretrain and of MMEngine
        ours, theirs = (any(part.get(name) for name in names) for part in (own, shared))
        if ours != theirs:
            yield (
                f'model.data_preprocessor has to_rgb={ours}, but the data_preprocessor of the data '
                f'set, which is not used beside it, has to_rgb={theirs}; set both to the same, or '
                'the network sees red as blue.'
            )


def _check_part(part: Mapping[str, Any], path: str) -> Iterator[str]:
    """Check a dict: its type, the names of the arguments, and their values."""
    found, taken_out = _WITHOUT_TYPE.get(path, (None, ()))
    kind = part.get('type')
    if path == 'train_cfg' and kind is None:
        found = EpochBasedTrainLoop if part.get('by_epoch') else IterBasedTrainLoop
        taken_out = ('by_epoch',)
    elif path == 'optim_wrapper.clip_grad':
        found, kind = clip_grad_value_ if kind == 'value' else clip_grad_norm_, None
    elif isinstance(kind, str):
        found = find_type(kind)
    if path.partition('.')[0] != 'model':  # names within it show when it is built
        if isinstance(kind, str) and found is None:
            yield unknown_type(kind, path)
        parameters = inspect.signature(found).parameters if found else {}
        handed_on = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        for key in part if parameters and not handed_on else ():
            if key not in (*parameters, *_TAKEN_OUT, *taken_out):
                name = kind or found.__name__.lstrip('_')
                yield f'{path}.{key}: {name} has no such argument; {nearest(key, parameters)}.'
    ours = getattr(found, '__module__', '').startswith('crd_plugin.')
    if ours or (path in _WITHOUT_TYPE and kind is None):
        yield from _check_types(part, path, found)
    for key, value in () if ours else part.items():  # ours check ranges when they are built
        expected, number = '', type(value) in (int, float)
        if key in _LEAST and (value is not None or path == 'train_cfg'):
            if type(value) is not int or value < _LEAST[key]:
                expected = f'an integer of at least {_LEAST[key]}'
        elif key == 'interval' and value == 0:
            expected = 'a positive integer, or -1 for never'
        elif key in _POSITIVE and number and not 0 < value < math.inf:
            expected = 'a finite number above zero'
        elif key in _LIMITS and path.endswith('.clip_grad') and not (number and value > 0):
            expected = 'a number above zero'
        elif (
            key in _NOT_NEGATIVE
            and (number or (key == 'lr' and isinstance(value, (list, tuple, str))))
            and not (number and 0 <= value < math.inf)
        ):
            expected = 'a finite number that is not negative'
        if expected:
            yield f'{f"{path}.{key}".lstrip(".")} is {value!r}, expected {expected}.'


def _check_types(part: Mapping[str, Any], path: str, kind: Any) -> Iterator[str]:
    """Compare the arguments of a class and its parents, or of a function, with their types."""
    classes = inspect.getmro(kind) if inspect.isclass(kind) else ()
    hints: dict[str, Any] = {}
    for function in [vars(base).get('__init__') for base in classes] or [kind]:
        with suppress(NameError, TypeError):  # names imported for type checkers alone
            hints = {**get_type_hints(function), **hints}
    for key, value in part.items():
        if key in hints and not _fits(value, hints[key]):
            hint = hints[key]
            name = hint.__name__ if isinstance(hint, type) else str(hint)
            name = name.replace('collections.abc.', '').replace('typing.', '')
            yield f'{f"{path}.{key}".lstrip(".")} is {value!r}, expected {name}.'


def _fits(value: Any, hint: Any) -> bool:
    """Tell whether a value of a config may be meant for a type; in doubt it may."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    kind = origin or hint
    if kind in (int, float):
        return type(value) in (int, kind)
    if kind in (bool, str, type(None)):
        return isinstance(value, kind)
    if kind in (list, tuple, Sequence, Iterable):
        sequence = isinstance(value, (list, tuple))
        return sequence and all(_fits(one, inner[0]) for one in value if inner)
    return True


def _check_mappings(model: Mapping[str, Any]) -> Iterator[str]:
    """Find mistakes in ``loss_forward_mappings`` of a MMRazor distiller."""
    cfg, path = model['distiller'], 'model.distiller.loss_forward_mappings'
    losses, mappings = cfg.get('distill_losses') or {}, cfg.get('loss_forward_mappings') or {}

    def unknown(place: str, name: Any, where: str) -> Iterator[str]:
        known = cfg.get(where) or {}
        if name not in known:
            yield f'{place}: {where} has no {name!r}; {nearest(name, known)}.'

    for name in losses:
        if name not in mappings:
            yield f'{path} has no {name}, so this loss is never computed; add its arguments.'
    for name, mapping in mappings.items():
        yield from unknown(f'{path}.{name}', name, 'distill_losses')
        if name not in losses or not isinstance(mapping, Mapping):
            continue  # MMRazor refuses it
        loss = find_type(losses[name].get('type'))
        if loss is not None:
            try:
                inspect.signature(loss.forward).bind(None, **mapping)
            except TypeError as error:
                known = arguments_of(loss.forward)[1:]
                yield f'{path}.{name}: {error}; {loss.__name__} takes {", ".join(known)}.'
        features: dict[str, str] = {}
        for key, record in mapping.items():
            place = f'{path}.{name}.{key}'
            if not isinstance(record, Mapping) or 'from_student' not in record:
                yield f'{place} is {record}, expected dict(recorder=..., from_student=...).'
                continue
            side, recorder = (
                'student' if record['from_student'] else 'teacher',
                record.get('recorder'),
            )
            yield from unknown(f'{place}.recorder', recorder, f'{side}_recorders')
            if record.get('connector') is not None:
                yield from unknown(f'{place}.connector', record['connector'], 'connectors')
            recorders = cfg.get(f'{side}_recorders') or {}
            if not str(recorders.get(recorder, {}).get('type')).endswith('SampleField'):
                features[key] = side
        sides = {*features.values()}
        if 'teacher' in model and len(features) > 1 and len(sides) == 1:
            yield (
                f'{path}.{name}: {" and ".join(features)} come from the {sides.pop()} only, so '
                'nothing is distilled; check from_student of each.'
            )
