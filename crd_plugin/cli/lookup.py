"""Look up what a config names: places in it, types in the registries, arguments of a class."""

import difflib
import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

import mmengine.registry.root as root_registries
import torch
from mmengine.registry import DefaultScope, Registry
from mmpretrain.registry import BATCH_AUGMENTS
from torch import Tensor

_REGISTRIES = [value for value in vars(root_registries).values() if isinstance(value, Registry)]
_REGISTRIES.append(BATCH_AUGMENTS)  # Mixup and the like; it has no root
SUFFIX = 'Recorder'  # MMRazor appends it to the type of a recorder


class PlacedError(ValueError):
    """A mistake in a config whose message begins with its place."""


@contextmanager
def within(place: str) -> Iterator[None]:
    """Tell :func:`.explain.explain` which part of a config an exception is about."""
    try:
        yield
    except Exception as error:
        error.place = place  # type: ignore[attr-defined]
        raise


def walk(cfg: Any, path: str = '') -> Iterator[tuple[str, Any]]:
    """Visit every dict of a config: place, such as ``model.distiller.connectors.s``, and dict."""
    if isinstance(cfg, Mapping):
        yield path, cfg
        for key, value in cfg.items():
            yield from walk(value, f'{path}.{key}' if path else str(key))
    elif isinstance(cfg, (list, tuple)):
        for number, value in enumerate(cfg):
            yield from walk(value, f'{path}[{number}]')


def wants_complete(cfg: Mapping[str, Any]) -> bool:
    """Say whether ``complete`` of the training set asks for whole data sets."""
    return any(part.get('complete') for _, part in walk(cfg.get('train_dataloader')))


def find_type(kind: Any) -> Any:
    """Find what a ``type`` means in the current default scope; None if no registry knows it."""
    if not isinstance(kind, str):
        return kind
    for name, registry in itertools.product((kind, kind + SUFFIX), _REGISTRIES):
        with suppress(RuntimeError, ImportError):  # not every registry has every scope
            with registry.switch_scope_and_registry(None) as current:
                found = current.get(name)
            if found is not None:
                return found
    return None


def arguments_of(cls: Any) -> list[str]:
    """List the arguments of a function, or of a class and the parents that ``**kwargs`` go to."""
    names: dict[str, Any] = {}
    for base in inspect.getmro(cls) if inspect.isclass(cls) else (cls,):
        with suppress(TypeError, ValueError):  # written in C, or nothing at all
            own = inspect.signature(base).parameters
            names |= own
            if not any(each.kind == each.VAR_KEYWORD for each in own.values()):
                break
    return list(names)


def nearest(wanted: Any, known: Iterable[str], cutoff: float = 0.5) -> str:
    """Say which known names may have been meant, at least as similar as the cutoff."""
    names = [name for name in known if name]
    # Paths with one part too many or too few: fc for head.fc.
    ends = [n for n in names if f'{wanted}'.endswith(f'.{n}') or n.endswith(f'.{wanted}')]
    close = difflib.get_close_matches(str(wanted), names, cutoff=cutoff)
    return _nearest_are(ends + close) or f'there are {", ".join(names[:8]) or "none"}'


def one_line(message: Any, most: int = 500) -> str:
    """Collapse white space and cut what is too long to read."""
    if isinstance(message, KeyError) and message.args:
        message = message.args[0]  # str() would quote it
    text = ' '.join(str(message).split()) or type(message).__name__
    if text.startswith('Caught ') and ' in DataLoader worker ' in text:
        text = str(message).rstrip().rpartition('\n')[2].partition(': ')[2]  # behind its traceback
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


def unknown_type(kind: str, place: str, registry: str = '') -> str:
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
                name = name.removesuffix(SUFFIX)
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
