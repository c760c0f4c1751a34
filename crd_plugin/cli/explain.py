"""Turn what is wrong with a config into one line: where it is, what came, what to do.

Nothing here knows a method, a loss or a hook. Names are looked up in the registries of OpenMMLab,
arguments in the signature of what a ``type`` names, and the place of an exception is read from its
traceback: the dicts that were being built and the modules that were running.
"""

from __future__ import annotations

import difflib
import inspect
import itertools
import os.path as osp
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from types import FrameType
from typing import Any

import mmengine.registry.root as root_registries
import torch
from mmengine.registry import DefaultScope, Registry
from mmengine.runner import Runner
from mmpretrain.registry import BATCH_AUGMENTS
from torch import Tensor, nn

from crd_plugin.compat import CheckpointError

_REGISTRIES = [value for value in vars(root_registries).values() if isinstance(value, Registry)]
_REGISTRIES.append(BATCH_AUGMENTS)  # Mixup and the like; it has no root
# What the runner takes out of a dict before it builds what `type` names.
_TAKEN_OUT = {
    'type',
    '_scope_',
    'priority',
    'constructor',
    'paramwise_cfg',
    'convert_to_iter_based',
}
_SUFFIX = 'Recorder'  # MMRazor appends it to the type of a recorder
_UNKNOWN_TYPE = re.compile(r'^(\S+) is not in the (?:\S+::)?(.+?) registry')
_UNKNOWN_ARGUMENT = re.compile(r"got an unexpected keyword argument '(\w+)'")
# Raised with a sentence; to others the line of code and the shapes given are added.
_WITH_SENTENCE = (ValueError, TypeError, OSError, ImportError, CheckpointError)
# A function call on the way to an exception: frame, line, and place in the config.
_Call = tuple[FrameType, int, str]


def explain(error: BaseException, cfg: Mapping[str, Any]) -> str:
    """Say in one line where in the config an exception comes from and what to do.

    Args:
        error (BaseException): Raised while objects of the config were built or used.
        cfg (dict): The whole config.

    Returns:
        str: ``PLACE: what came; what to do``, without the place if it is not known.
    """
    # MMRazor asserts what is told here with the nearest names.
    misspelt = isinstance(error, (AssertionError, TypeError)) and next(check_names(cfg), None)
    if misspelt:
        return misspelt
    calls = list(_calls(error, cfg))
    frame, line, place = calls[-1]
    text, kind = one_line(error), _at(cfg, place).get('type')
    unknown = _UNKNOWN_TYPE.match(text)
    if isinstance(error, KeyError) and unknown:
        asked = kind if unknown[1] in (kind, f'{kind}{_SUFFIX}') else unknown[1]
        return _unknown_type(str(asked), place, unknown[2])
    hint = _recorder_hint(calls, text) or _width_hint(calls, cfg)
    if hint:
        return hint
    argument = _UNKNOWN_ARGUMENT.search(text)
    if isinstance(error, TypeError) and argument:
        text += f'; {nearest(argument[1], arguments_of(find_type(kind)))}.'
    ours = frame.f_globals.get('__name__', '').startswith('crd_plugin.')
    if not ours and not isinstance(error, _WITH_SENTENCE):
        where = f'{frame.f_code.co_name}, {osp.basename(frame.f_code.co_filename)}:{line}'
        text = f'{text.rstrip(".")}{_inputs(calls)} ({type(error).__name__} in {where}).'
    return f'{place}: {text}' if place else text


def check_names(cfg: Mapping[str, Any]) -> Iterator[str]:
    """Find names in a config that nothing has: types, their arguments, and parts of a distiller.

    Args:
        cfg (dict): The whole config.

    Yields:
        str: One line per unknown name, with the nearest known ones.
    """
    # What the runner is given; names in the model are checked where it is built.
    given = set(arguments_of(Runner)) - {'model'}
    for path, part in walk({key: cfg[key] for key in cfg if key in given}):
        kind = part.get('type')
        if not isinstance(kind, str):
            continue
        found = find_type(kind)
        if found is None:
            yield _unknown_type(kind, path)
            continue
        known = inspect.signature(found).parameters
        if any(p.kind is p.VAR_KEYWORD for p in known.values()):
            continue  # what is handed on shows when it is built
        for key in part:
            if key not in (*known, *_TAKEN_OUT):
                yield f'{path}.{key}: {kind} has no such argument; {nearest(key, known)}.'
    model = cfg.get('model')
    if isinstance(model, Mapping) and isinstance(model.get('distiller'), Mapping):
        yield from _check_mappings(model['distiller'], 'model.distiller.loss_forward_mappings')


def _check_mappings(cfg: Mapping[str, Any], path: str) -> Iterator[str]:
    """Find mistakes in ``loss_forward_mappings`` of a MMRazor distiller."""
    losses, mappings = cfg.get('distill_losses') or {}, cfg.get('loss_forward_mappings') or {}
    for name in losses:
        if name not in mappings:
            yield f'{path} has no {name}, so this loss is never computed; add its arguments.'
    for name, mapping in mappings.items():
        if name not in losses:
            yield f'{path}.{name}: distill_losses has no such loss; {nearest(name, losses)}.'
            continue
        if not isinstance(mapping, Mapping):
            continue  # MMRazor refuses it
        loss = find_type(losses[name].get('type'))
        if loss is not None:
            try:
                inspect.signature(loss.forward).bind(None, **mapping)
            except TypeError as error:
                known = arguments_of(loss.forward)[1:]
                yield f'{path}.{name}: {error}; {loss.__name__} takes {", ".join(known)}.'
        for key, record in mapping.items():
            place = f'{path}.{name}.{key}'
            if not isinstance(record, Mapping) or 'from_student' not in record:
                yield f'{place} is {record}, expected dict(recorder=..., from_student=...).'
                continue
            sides = ('student', 'teacher') if record['from_student'] else ('teacher', 'student')
            own, other = (cfg.get(f'{side}_recorders') or {} for side in sides)
            connectors = cfg.get('connectors') or {}
            recorder, connector = record.get('recorder'), record.get('connector')
            if recorder not in own:
                fix = f'the {sides[1]} has one' if recorder in other else nearest(recorder, own)
                yield f"{place}.recorder: {sides[0]}_recorders has no '{recorder}'; {fix}."
            if connector is not None and connector not in connectors:
                fix = nearest(connector, connectors)
                yield f"{place}.connector: connectors has no '{connector}'; {fix}."


def walk(cfg: Any, path: str = '') -> Iterator[tuple[str, Any]]:
    """Visit every dict of a config: place, such as ``model.distiller.connectors.s``, and dict."""
    if isinstance(cfg, Mapping):
        yield path, cfg
        for key, value in cfg.items():
            yield from walk(value, f'{path}.{key}' if path else str(key))
    elif isinstance(cfg, (list, tuple)):
        for number, value in enumerate(cfg):
            yield from walk(value, f'{path}[{number}]')


def find_type(kind: Any) -> Any:
    """Find what a ``type`` means in the current default scope; None if no registry knows it."""
    if not isinstance(kind, str):
        return kind
    for name, registry in itertools.product((kind, kind + _SUFFIX), _REGISTRIES):
        with suppress(RuntimeError, ImportError):  # not every registry has every scope
            with registry.switch_scope_and_registry(None) as current:
                found = current.get(name)
            if found is not None:
                return found
    return None


def arguments_of(cls: Any) -> list[str]:
    """List the arguments of a function, or of a class and its parents, which ``**kwargs`` go to."""
    names: dict[str, Any] = {}
    for base in inspect.getmro(cls) if inspect.isclass(cls) else (cls,):
        with suppress(TypeError, ValueError):  # written in C, or nothing at all
            names |= inspect.signature(base).parameters
    return list(names)


def nearest(wanted: Any, known: Iterable[str]) -> str:
    """Say which known names may have been meant."""
    names = [name for name in known if name]
    # Paths with one part too many or too few: fc for head.fc.
    ends = [n for n in names if f'{wanted}'.endswith(f'.{n}') or n.endswith(f'.{wanted}')]
    close = difflib.get_close_matches(str(wanted), names, cutoff=0.5)
    return _nearest_are(ends + close) or f'there are {", ".join(names[:8]) or "none"}'


def one_line(message: Any, most: int = 500) -> str:
    """Collapse white space and cut what is too long to read."""
    if isinstance(message, KeyError) and message.args:
        message = message.args[0]  # str() would quote it
    text = ' '.join(str(message).split()) or type(message).__name__
    return text if len(text) <= most else text[: most - 4] + ' ...'


def describe(record: Any) -> str:
    """Describe tensors by shape, and by type if not float32: ``[(4, 8, 8, 8), (4,) int64]``."""
    if isinstance(record, Tensor):
        kind = '' if record.dtype == torch.float32 else f' {record.dtype}'.replace('torch.', '')
        return f'{tuple(record.shape)}{kind}'
    if isinstance(record, (list, tuple)):
        return f'[{", ".join(map(describe, record))}]'
    if isinstance(record, Mapping):
        return ', '.join(f'{key} {describe(value)}' for key, value in record.items())
    return type(record).__name__


def _calls(error: BaseException, cfg: Mapping[str, Any]) -> Iterator[_Call]:
    """Calls that led to an error and to its causes, outermost first."""
    links = [error]
    while links[-1].__cause__ is not None:
        links.append(links[-1].__cause__)
    base = place = ''
    parts: dict[int, str] = {}
    for frame, line in (call for link in links for call in traceback.walk_tb(link.__traceback__)):
        owner = frame.f_locals.get('self')
        if frame.f_code.co_name == 'build_from_cfg':
            built = _place_of(frame.f_locals.get('cfg', {}), cfg)
            if built:
                base, place, parts = built, built, {}
        parts = parts or _parts(owner) or _parts(frame.f_locals.get('model'))
        if id(owner) in parts:
            place = base or 'model'
            for key in parts[id(owner)].split('.'):  # as far as the config goes
                place = f'{place}.{key}' if key in _at(cfg, place) else place
        yield frame, line, place


def _place_of(built: Mapping[str, Any], cfg: Mapping[str, Any]) -> str:
    """Place of the dict that something is built from; a builder may have added keys to it."""
    sizes = {
        path: len(part)
        for path, part in walk(cfg)
        if 'type' in part
        and built.get('type') in (part['type'], f'{part["type"]}{_SUFFIX}')
        and all(key == 'type' or built.get(key) == value for key, value in part.items())
    }
    return max(sizes, key=lambda path: sizes[path], default='')


def _parts(model: Any) -> dict[int, str]:
    """Names of a model's modules and recorders by identity."""
    if not isinstance(model, nn.Module) or '_modules' not in vars(model):
        return {}
    names = {id(module): name for name, module in model.named_modules()}
    for side in ('student_recorders', 'teacher_recorders'):
        manager = getattr(getattr(model, 'distiller', None), side, None)
        for name, recorder in getattr(manager, 'recorders', {}).items():
            names[id(recorder)] = f'distiller.{side}.{name}'
    return names


def _at(cfg: Mapping[str, Any], place: str) -> Mapping[str, Any]:
    """The dict at a place; empty if there is none."""
    return dict(walk(cfg)).get(place, {})


def _recorder_hint(calls: list[_Call], text: str) -> str:
    """Line about a recorder that finds no module, or lacks what a loss asks for."""
    for frame, _, place in calls:
        recorder: Any = frame.f_locals.get('self')
        side = 'teacher' if '.teacher_recorders.' in place else 'student'
        if frame.f_code.co_name == 'prepare_from_model' and recorder.source in text:
            kind = 'parameter' if 'Parameter' in type(recorder).__name__ else 'module'
            names = [name for name, _ in getattr(frame.f_locals['model'], f'named_{kind}s')()]
            fix = nearest(recorder.source, sorted(names, key=lambda name: name.count('.')))
            return f"{place}.source: the {side} has no {kind} '{recorder.source}'; {fix}."
        if frame.f_code.co_name == 'get_record_data':
            if recorder.data_buffer:
                return f'{place}: {text} It holds {describe(recorder.data_buffer)}.'
            return (
                f'{place}: nothing is recorded, because the {side} does not call '
                f"'{recorder.source}'; record a module that its forward pass goes through."
            )
    return ''


def _width_hint(calls: list[_Call], cfg: Mapping[str, Any]) -> str:
    """Line about a layer that is given a feature of another width than the config says."""
    layers = [call for call in calls if isinstance(call[0].f_locals.get('self'), nn.Module)]
    if not layers:
        return ''
    frame, _, place = layers[-1]
    name = 'in_features' if hasattr(frame.f_locals['self'], 'in_features') else 'in_channels'
    expected = getattr(frame.f_locals['self'], name, None)
    feature = next((x for x in frame.f_locals.values() if isinstance(x, Tensor)), None)
    keys = [key for key, value in _at(cfg, place).items() if value == expected]
    if expected is None or feature is None or feature.dim() < 2 or not keys:
        return ''
    width = feature.size(-1 if name == 'in_features' else 1)
    key = min(keys, key=lambda key: 'in' not in key)  # rather than the width of the output
    shape = tuple(feature.shape)
    fix = f'the feature has {width} channels, shape {shape}; set {key}={width}'
    return f'{place}.{key} is {expected}, but {fix}.' if width != expected else ''


def _inputs(calls: list[_Call]) -> str:
    """Shapes that the part of the config that failed was called with."""
    for frame, _, place in calls:
        if place and place == calls[-1][2] and frame.f_code.co_name == '_call_impl':
            given = [*map(describe, frame.f_locals['args']), describe(frame.f_locals['kwargs'])]
            return f'; given were {", ".join(filter(None, given))}'
    return ''


def _unknown_type(kind: str, place: str, registry: str = '') -> str:
    """Line about a type that nothing is registered for."""
    for scope in ('mmpretrain', 'mmrazor', 'crd_plugin'):
        import_module(f'{scope}.registry')
    current = DefaultScope.get_current_instance()
    default = current.scope_name if current else 'mmengine'
    names: dict[str, list[str]] = {}
    for root in (root for root in _REGISTRIES if registry in ('', root.name)):
        for child in (root, *root.children.values()):
            child.import_from_location()
            prefix = '' if child.scope in (default, 'mmengine') else f'{child.scope}.'
            for name in child.module_dict:
                name = name.removesuffix(_SUFFIX)
                names.setdefault(name.lower(), []).append(prefix + name)
    scope, _, bare = kind.rpartition('.')
    close = difflib.get_close_matches(bare.lower(), names)
    # The same scope first: it is rarely the scope that is misspelt.
    found = [n for key in close for n in sorted(names[key], key=lambda n: not n.startswith(scope))]
    fix = _nearest_are(found) or 'check the name and custom_imports'
    return f"{place}.type: '{kind}' is not registered{registry and f' as a {registry}'}; {fix}."


def _nearest_are(names: Iterable[str]) -> str:
    """At most three names as a clause; empty without names."""
    found = list(dict.fromkeys(names))[:3]
    return f'the nearest {"is" if len(found) == 1 else "are"} {", ".join(found)}' if found else ''
