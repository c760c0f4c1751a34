"""Turn what is wrong with a config into one line: where it is, what came, what to do.

Nothing here knows a method, a loss or a hook. The place of an exception is read from its traceback:
the dicts that were being built and the modules that were running.
"""

import linecache
import os.path as osp
import re
import traceback
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

from mmengine.model import BaseDataPreprocessor
from torch import Tensor, nn

from crd_plugin.compat import CheckpointError

from .lookup import (
    SUFFIX,
    PlacedError,
    arguments_of,
    describe,
    find_type,
    nearest,
    one_line,
    unknown_type,
    walk,
)

_UNKNOWN_TYPE = re.compile(r'^(\S+) is not in the (?:\S+::)?(.+?) registry')
_UNKNOWN_ARGUMENT = re.compile(r"got an unexpected keyword argument '(\w+)'")
# Raised with a sentence; to others the line of code and the shapes given are added.
_WITH_SENTENCE = (ValueError, TypeError, OSError, ImportError, CheckpointError)
_BUILDERS = ('build_from_cfg', 'build_scheduler_from_cfg')
# A function call on the way to an exception: frame, line, and place in the config.
_Call = tuple[FrameType, int, str]


def explain(error: BaseException, cfg: Mapping[str, Any]) -> str:
    """Say in one line where in a config an exception comes from and what to do."""
    if isinstance(error, PlacedError):
        return one_line(error)
    calls = list(_calls(error, cfg))
    frame, line, place = calls[-1]
    place = place or getattr(error, 'place', '')
    text, kind = one_line(error), _at(cfg, place).get('type')
    if isinstance(error, AssertionError) and not error.args:
        text = linecache.getline(frame.f_code.co_filename, line).strip()
    built = frame.f_locals.get('cfg')
    if frame.f_code.co_name in _BUILDERS and isinstance(built, str):
        return f'{place}: {built!r} is not a dict; write dict(type={built!r}).'
    unknown = _UNKNOWN_TYPE.match(text)
    if isinstance(error, KeyError) and unknown:
        asked = kind if unknown[1] in (kind, f'{kind}{SUFFIX}') else unknown[1]
        return unknown_type(str(asked), place, unknown[2])
    hint = _recorder_hint(calls, text) or _channel_hint(calls)
    if not hint and not isinstance(error.__cause__ or error, AttributeError):
        hint = _width_hint(calls, cfg)
    if hint:
        return hint
    argument = _UNKNOWN_ARGUMENT.search(text)
    if isinstance(error, TypeError) and argument:
        # Python 3.13 adds a guess of its own, which does not know the classes that **kwargs go to.
        text = text[: argument.end()]
        text += f'; {nearest(argument[1], arguments_of(find_type(kind)))}.'
    ours = frame.f_globals.get('__name__', '').startswith('crd_plugin.')
    if not ours and not isinstance(error, _WITH_SENTENCE):
        where = f'{frame.f_code.co_name}, {osp.basename(frame.f_code.co_filename)}:{line}'
        text = f'{text.rstrip(".")}{_inputs(calls)} ({type(error).__name__} in {where}).'
    return f'{place}: {text}' if place else text


def _calls(error: BaseException, cfg: Mapping[str, Any]) -> Iterator[_Call]:
    """Calls that led to an error and to its causes, outermost first."""
    links = [error]
    while links[-1].__cause__ is not None:
        links.append(links[-1].__cause__)
    base = place = ''
    parts: dict[int, str] = {}
    for frame, line in (call for link in links for call in traceback.walk_tb(link.__traceback__)):
        owner = frame.f_locals.get('self')
        if frame.f_code.co_name in _BUILDERS and isinstance(frame.f_locals.get('cfg'), Mapping):
            built = _place_of(frame.f_locals['cfg'], cfg)
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
        and built.get('type') in (part['type'], f'{part["type"]}{SUFFIX}')
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
        named = getattr(recorder, '_given', True)  # ours that find the module say why they do not
        if frame.f_code.co_name == 'prepare_from_model' and named and recorder.source in text:
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


def _channel_hint(calls: list[_Call]) -> str:
    """Line about images that are not of the three channels that the data preprocessor has."""
    for frame, _, place in calls:
        owner, data = (frame.f_locals.get(name) for name in ('self', 'data'))
        if not isinstance(owner, BaseDataPreprocessor) or not isinstance(data, Mapping):
            continue
        mean = getattr(owner, 'mean', None)
        for image, sample in zip(data['inputs'], data['data_samples'], strict=False):
            found = image.size(-3)
            if isinstance(mean, Tensor) and mean.numel() == 3 and found not in (1, 3):
                path = getattr(sample, 'img_path', 'an image')
                return (
                    f'{place}: {path} has {found} channels, mean and std have 3; load the images '
                    "with dict(type='LoadImageFromFile', color_type='color'), or give mean and std "
                    f'{found} numbers.'
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
    fix = f'the feature has {width} channels, shape {tuple(feature.shape)}; set {key}={width}'
    roles = {'model.architecture.backbone': 'student', 'model.teacher.backbone': 'teacher'}
    if place in roles and key == 'in_channels':  # of the images
        role = roles[place]
        fix += f', or let the {role} see {expected} channels by model.{role}_view'
    return f'{place}.{key} is {expected}, but {fix}.' if width != expected else ''


def _inputs(calls: list[_Call]) -> str:
    """Shapes that the part of the config that failed was called with."""
    for frame, _, place in calls:
        if place and place == calls[-1][2] and frame.f_code.co_name == '_call_impl':
            given = [*map(describe, frame.f_locals['args']), describe(frame.f_locals['kwargs'])]
            return f'; given were {", ".join(filter(None, given))}'
    return ''
