"""Registered types of a config: which are unknown, what was meant."""

import difflib
import inspect
import re
from importlib import import_module
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from mmengine.registry import (
    DATA_SAMPLERS,
    DATASETS,
    EVALUATOR,
    FUNCTIONS,
    HOOKS,
    LOOPS,
    METRICS,
    MODELS,
    OPTIM_WRAPPER_CONSTRUCTORS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    TASK_UTILS,
    TRANSFORMS,
    VISBACKENDS,
    VISUALIZERS,
    DefaultScope,
    Registry,
)

from .report import DryRunReport, one_line

_REGISTRIES = {
    registry.name: registry
    for registry in (
        DATA_SAMPLERS,
        DATASETS,
        EVALUATOR,
        FUNCTIONS,
        HOOKS,
        LOOPS,
        METRICS,
        MODELS,
        OPTIM_WRAPPER_CONSTRUCTORS,
        OPTIM_WRAPPERS,
        OPTIMIZERS,
        PARAM_SCHEDULERS,
        TASK_UTILS,
        TRANSFORMS,
        VISBACKENDS,
        VISUALIZERS,
    )
}
# Where the runner builds what. '*' is any key or position.
_PLACES: Sequence[Tuple[str, Registry]] = (
    ('custom_hooks.*', HOOKS),
    ('default_hooks.*', HOOKS),
    ('optim_wrapper', OPTIM_WRAPPERS),
    ('optim_wrapper.optimizer', OPTIMIZERS),
    ('param_scheduler', PARAM_SCHEDULERS),
    ('param_scheduler.*', PARAM_SCHEDULERS),
    ('train_cfg', LOOPS),
    ('val_cfg', LOOPS),
    ('test_cfg', LOOPS),
    ('val_evaluator', METRICS),
    ('val_evaluator.*', METRICS),
    ('test_evaluator', METRICS),
    ('test_evaluator.*', METRICS),
    ('visualizer', VISUALIZERS),
    ('vis_backends.*', VISBACKENDS),
)
_UNKNOWN = re.compile(r'^(\S+) is not in the (?:\S+::)?(.+?) registry')
_UNEXPECTED = re.compile(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'")


def find_type(registry: Registry, name: str) -> Optional[Any]:
    """Class or function of a name in the current default scope.

    Args:
        registry (Registry): One of MMEngine's roots.
        name (str): As in a config, with or without a scope.

    Returns:
        The class, or None.
    """
    try:
        with registry.switch_scope_and_registry(None) as current:
            return current.get(name)
    except (RuntimeError, ImportError):
        return None


def check_types(cfg: Dict[str, Any], report: DryRunReport) -> None:
    """Report unknown types outside the model.

    Args:
        cfg (dict): The config.
        report (DryRunReport): Takes the problems.
    """
    for place, registry in _PLACES:
        for path, found in _at(cfg, place.split('.')):
            check_type(found, path, registry, report)
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(name) or {}
        if not isinstance(loader, dict):
            continue
        for key, registry in (
            ('sampler', DATA_SAMPLERS),
            ('batch_sampler', DATA_SAMPLERS),
            ('collate_fn', FUNCTIONS),
        ):
            check_type(loader.get(key), f'{name}.{key}', registry, report)
        _check_dataset(loader.get('dataset'), f'{name}.dataset', report)


def check_type(
    cfg: Any, path: str, registry: Registry, report: DryRunReport, suffix: str = ''
) -> bool:
    """Report the type of one place if nothing of that name is registered.

    Args:
        cfg: What stands there; anything but a dict with a ``type`` is fine.
        path (str): Place in the config.
        registry (Registry): Where its type has to be.
        report (DryRunReport): Takes the problem.
        suffix (str): Appended by the owner of the registry, as MMRazor does
            with ``Recorder``.

    Returns:
        bool: Nothing is wrong.
    """
    kind = cfg.get('type') if isinstance(cfg, dict) else None
    if not isinstance(kind, str):
        return True
    if find_type(registry, kind + suffix) is not None:
        return True
    if registry is METRICS and find_type(EVALUATOR, kind) is not None:
        return True
    report.problem(_unknown(kind, f'{path}.type', registry, suffix))
    return False


def _check_dataset(cfg: Any, path: str, report: DryRunReport) -> None:
    """A data set, those that it wraps, and their pipelines."""
    check_type(cfg, path, DATASETS, report)
    if not isinstance(cfg, dict):
        return
    _check_dataset(cfg.get('dataset'), f'{path}.dataset', report)
    several = cfg.get('datasets')
    for number, inner in enumerate(several or ()):
        _check_dataset(inner, f'{path}.datasets[{number}]', report)
    _check_pipeline(cfg.get('pipeline'), f'{path}.pipeline', report)


def _check_pipeline(steps: Any, path: str, report: DryRunReport) -> None:
    """Transforms, also those inside other transforms."""
    if not isinstance(steps, (list, tuple)):
        return
    for number, step in enumerate(steps):
        place = f'{path}[{number}]'
        check_type(step, place, TRANSFORMS, report)
        if isinstance(step, dict):
            _check_pipeline(step.get('transforms'), f'{place}.transforms', report)
        else:
            _check_pipeline(step, place, report)


def explain(error: Exception, path: str, cfg: Any) -> str:
    """One line about a build that failed, with the nearest names.

    Args:
        error (Exception): What building raised.
        path (str): Place of what was built.
        cfg: Its config.

    Returns:
        str: The line.
    """
    text = one_line(error)
    unknown = _UNKNOWN.match(text)
    if isinstance(error, KeyError) and unknown:
        kind, name = unknown.groups()
        place = next((place for place, found in walk(cfg, path) if found.get('type') == kind), path)
        return _unknown(kind, f'{place}.type', _REGISTRIES.get(name, MODELS))
    unexpected = _UNEXPECTED.search(text)
    if isinstance(error, TypeError) and unexpected:
        return f'{path}: {text}{_arguments(cfg, *unexpected.groups())}'
    return f'{path}: {text}'


def _arguments(cfg: Any, class_name: str, argument: str) -> str:
    """The arguments that a class knows instead."""
    for _, found in walk(cfg, ''):
        kind = found.get('type')
        if not isinstance(kind, str) or argument not in found:
            continue
        cls = find_type(MODELS, kind)
        if inspect.isclass(cls) and cls.__name__ == class_name:
            known = list(inspect.signature(cls).parameters)
            return f'; {nearest(argument, known)}'
    return ''


def walk(cfg: Any, path: str) -> Iterator[Tuple[str, dict]]:
    """All dicts of a config with their places.

    Args:
        cfg: The config or a part of it.
        path (str): Place of the part.

    Yields:
        tuple[str, dict]: Place and dict.
    """
    if isinstance(cfg, dict):
        yield path, cfg
        for key, value in cfg.items():
            yield from walk(value, f'{path}.{key}' if path else str(key))
    elif isinstance(cfg, (list, tuple)):
        for number, value in enumerate(cfg):
            yield from walk(value, f'{path}[{number}]')


def nearest(wanted: str, known: Sequence[str], most: int = 3) -> str:
    """What may have been meant.

    Args:
        wanted (str): The name given.
        known (Sequence[str]): All that exist.
        most (int): Names to give. Defaults to 3.

    Returns:
        str: ``the nearest are ...``, or all of a few.
    """
    # A name with one part too many or too few: head.fc for fc.
    ends = [
        name
        for name in known
        if name and (wanted.endswith(f'.{name}') or name.endswith(f'.{wanted}'))
    ]
    close = difflib.get_close_matches(wanted, known, n=most, cutoff=0.5)
    found = list(dict.fromkeys(ends[:most] + close))[:most]
    if found:
        verb = 'the nearest is' if len(found) == 1 else 'the nearest are'
        return f'{verb} {", ".join(found)}'
    if not known:
        return 'there is none'
    more = ' ...' if len(known) > 8 else ''
    return f'there are {", ".join(known[:8])}{more}'


def _unknown(kind: str, path: str, registry: Registry, suffix: str = '') -> str:
    """The line about a type that nothing is registered for."""
    names = _registered(registry)
    wanted = (kind + suffix).rpartition('.')[2].lower()
    bare = {name: name.rpartition('.')[2].lower() for name in names}
    close = difflib.get_close_matches(wanted, sorted(set(bare.values())), n=3, cutoff=0.6)
    found = [name for hit in close for name in names if bare[name] == hit]
    # The same scope first: it is rarely the scope that is mistyped.
    scope = kind.rpartition('.')[0]
    found.sort(key=lambda name: (close.index(bare[name]), name.rpartition('.')[0] != scope))
    if suffix:
        found = [name[: -len(suffix)] for name in found if name.endswith(suffix)]
    what = registry.name
    mend = (
        f'the nearest are {", ".join(found[:3])}' if found else 'check the name and custom_imports'
    )
    return f"{path}: '{kind}' is no registered {what}; {mend}."


def _registered(registry: Registry) -> List[str]:
    """Names in a registry, written as the current scope has to."""
    for scope in ('mmpretrain', 'mmrazor', 'crd_plugin'):
        import_module(f'{scope}.registry')
    current = DefaultScope.get_current_instance()
    default = current.scope_name if current is not None else 'mmengine'
    names = []
    for child in (registry, *registry.children.values()):
        child.import_from_location()
        prefix = '' if child.scope in (default, 'mmengine') else (f'{child.scope}.')
        names += [prefix + name for name in child.module_dict]
    return names


def _at(cfg: Any, keys: Sequence[str], path: str = '') -> Iterator:
    """Values at a place, where ``*`` stands for any key or position."""
    if not keys:
        yield path, cfg
        return
    key, rest = keys[0], keys[1:]
    if isinstance(cfg, dict):
        for name in cfg if key == '*' else (key,):
            if name in cfg:
                yield from _at(cfg[name], rest, f'{path}.{name}' if path else name)
    elif isinstance(cfg, (list, tuple)) and key == '*':
        for number, value in enumerate(cfg):
            yield from _at(value, rest, f'{path}[{number}]')
