"""Strict loading of weights, the same for every role."""

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from mmengine.logging import MMLogger
from mmengine.model import BaseModule, weight_init
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from crd_plugin.compat import load_checkpoint

PUBLISH = 'take the student out with tools/model_converters/publish_student.py'
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm)
_PACKAGE = Path(__file__).resolve().parents[2]
_SHAPES = re.compile(
    r'size mismatch for (\S+): copying a param with shape torch\.Size\(\[(.*?)\]\) from '
    r'checkpoint, the shape in current model is torch\.Size\(\[(.*?)\]\)'
)


def load_pretrained(model: BaseModule, checkpoint: str, role: str) -> None:
    """Load a teacher or student strictly, and keep ``init_weights`` from replacing the weights."""
    source = f'{role}_ckpt={checkpoint}'
    try:
        loaded = load_checkpoint(checkpoint)
    except FileNotFoundError as error:
        if Path(checkpoint).expanduser().exists():
            raise  # a folder
        raise FileNotFoundError(f'{source} does not exist; {how_to_train(checkpoint)}.') from error
    part = 'teacher' if role == 'teacher' else 'architecture'
    weights = find_weights(loaded, source)
    if hasattr(model, 'rename_weights'):
        weights = model.rename_weights(weights, source)
    load_strictly(
        model,
        fit_weights(weights, model, source),
        source,
        f'the {role}',
        f'Give the config of the network that it was saved from as model.{part} (depth, widths, '
        'number of classes).',
    )
    model._is_init = True


def find_weights(loaded: dict[str, Any], source: str) -> dict[str, Tensor]:
    """Find the content itself, its ``state_dict``, or the only dict of tensors in it."""
    if _are_weights(loaded):
        return loaded
    keys = ['state_dict'] if 'state_dict' in loaded else list(loaded)
    found = {key: loaded[key] for key in keys if _are_weights(loaded[key])}
    if len(found) == 1:
        ((key, weights),) = found.items()
        if key != 'state_dict':
            logger = MMLogger.get_current_instance()
            logger.info(f'{source}: the weights are those under {key!r}.')
        return weights
    which = f'several sets of weights: {shorten(found)}'
    if not found:
        which = f'no weights but a dict of {shorten(loaded)}'
    raise ValueError(
        f'{source} holds {which}; expected names with their tensors, as model.state_dict() gives '
        'them: save them with torch.save(dict(state_dict=...), FILE).'
    )


def fit_weights(weights: dict[str, Tensor], model: nn.Module, source: str) -> dict[str, Tensor]:
    """Give weights the names of a model where only wrappers around it differ."""
    own = set(model.state_dict())
    parts = {name.partition('.')[0] for name in own}
    # Of torch.compile.
    names = {name: name.replace('_orig_mod.', '') for name in weights}
    # First parts that all names share but no module has, such as `module.` of DataParallel.
    while all('.' in name for name in names.values()):
        first = {name.partition('.')[0] for name in names.values()}
        if len(first) != 1 or first <= parts:
            break
        names = {name: short.partition('.')[2] for name, short in names.items()}
    # First parts that are missing, such as `backbone.`, if that gives exactly the model's names.
    completed = {name: _complete(short, own, parts) for name, short in names.items()}
    if set(completed.values()) == own:
        names = completed
    changed = [name for name in names if name != names[name]]
    if not changed:
        return weights
    MMLogger.get_current_instance().info(
        f'{source}: {len(changed)} of {len(names)} weights are renamed, such as {changed[0]} to '
        f'{names[changed[0]]}.'
    )
    return {names[name]: value for name, value in weights.items()}


def load_strictly(
    model: nn.Module, weights: dict[str, Tensor], source: str, target: str, advice: str
) -> None:
    """Load weights that must fit exactly; the error ends with the advice, or with a better one."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        text = str(error)
        missing, unexpected = (_listed(kind, text) for kind in ('Missing', 'Unexpected'))
        shapes = _SHAPES.findall(text)
        if not (missing or unexpected or shapes):
            raise
        others = [f'{name} {_tuple(a)} instead of {_tuple(b)}' for name, a, b in shapes]
        distilled = any(name.startswith('architecture.') for name in unexpected)
        if distilled and not hasattr(model, 'architecture'):
            advice = (
                f'It is the checkpoint of a distillation: {PUBLISH} first, or use the config of '
                'that distillation.'
            )
        elif shapes and not (missing or unexpected) and all(map(_is_of_classes, shapes)):
            classes = [sizes.split(',')[0] for sizes in shapes[0][1:]]
            advice = f'The number of classes differs, {" instead of ".join(classes)}. {advice}'
        raise ValueError(
            f'{source} does not fit {target}: missing {shorten(missing, 1)}; unexpected '
            f'{shorten(unexpected, 1)}; other shapes {shorten(others, 1)}. {advice}'
        ) from error


class PretrainedInit(weight_init.PretrainedInit):
    """Refuse an ``init_cfg.checkpoint`` that fits in part, of which MMEngine only warns.

    Parts that the network does not have, such as a classifier or ``norm3`` of a backbone that
    returns other stages, are left out; norm layers that the checkpoint does not have stay as they
    are. The log names both.
    """

    def __call__(self, module: nn.Module) -> None:
        """Load the weights into a module."""
        source = f'init_cfg.checkpoint={self.checkpoint}'
        weights = find_weights(load_checkpoint(self.checkpoint, self.map_location), source)
        if self.prefix is not None:
            start = f'{self.prefix.rstrip(".")}.'
            parts = dict.fromkeys(name.partition('.')[0] for name in weights)
            weights = {n.removeprefix(start): v for n, v in weights.items() if n.startswith(start)}
            if not weights:
                raise ValueError(
                    f'{source} has nothing under prefix={self.prefix!r}; its names begin with '
                    f'{shorten(parts)}.'
                )
        weights, own = fit_weights(weights, module, source), module.state_dict()
        parts = dict.fromkeys(name.partition('.')[0] for name in own)
        left_out = [name for name in weights if name.partition('.')[0] not in parts]
        kept = [name for name in own if name not in weights and _is_norm(module, name)]
        if left_out or kept:
            weights = {name: weights[name] for name in weights if name not in left_out}
            weights.update({name: own[name] for name in kept})
            MMLogger.get_current_instance().info(
                f'{source}: left out {shorten(left_out)}; not in the file, so as they were: '
                f'{shorten(kept)}.'
            )
        load_strictly(
            module,
            weights,
            source,
            f'this {type(module).__name__}',
            "Give the config that it was saved from (depth, widths), or init_cfg.prefix='backbone' "
            'for the backbone of another network.',
        )
        if hasattr(module, '_params_init_info'):
            weight_init.update_init_info(module, init_info=self._get_init_info())


def use_pretrained_init() -> None:
    """Let MMEngine initialise with :class:`PretrainedInit` in this process; for tools."""
    WEIGHT_INITIALIZERS.register_module(name='Pretrained', module=PretrainedInit, force=True)


def how_to_train(checkpoint: str) -> str:
    """Say how to make a missing ``work_dirs/NAME/epoch_N.pth``: by the config of that name."""
    name = Path(checkpoint).parent.name
    for folder in (_PACKAGE.parent / 'configs', _PACKAGE / '.mim' / 'configs'):
        for config in folder.glob(f'*/{name}.py') if name else ():
            at = config.relative_to(Path.cwd()) if config.is_relative_to(Path.cwd()) else config
            return f'make it with `python tools/train.py {at}`, or give the path of another one'
    return 'give the path of a trained checkpoint'


def shorten(names: Collection[Any], most: int = 5) -> str:
    """List the first few names and how many more there are."""
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return (', '.join(list(map(str, names))[:most]) or 'none') + more


def _are_weights(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(key, str) and isinstance(v, Tensor) for key, v in value.items())
    )


def _complete(name: str, own: Collection[str], parts: Iterable[str]) -> str:
    """Put a first part in front of a name if exactly one makes it a name of the model."""
    found = [f'{part}.{name}' for part in parts if f'{part}.{name}' in own]
    return found[0] if name not in own and len(found) == 1 else name


def _listed(kind: str, text: str) -> list[str]:
    """Names that torch lists as missing or unexpected."""
    line = re.search(rf'{kind} key\(s\) in state_dict: (.*)', text)
    return re.findall('"([^"]+)"', line[1]) if line else []


def _tuple(sizes: str) -> str:
    return f'({sizes}{"," if sizes and "," not in sizes else ""})'


def _is_of_classes(shape: tuple[str, str, str]) -> bool:
    """Tell whether a weight of a head differs in its number of classes alone."""
    name, given, own = shape
    first, second = given.split(','), own.split(',')
    return 'head' in name.split('.') and first[0] != second[0] and first[1:] == second[1:]


def _is_norm(module: nn.Module, name: str) -> bool:
    return isinstance(module.get_submodule(name.rpartition('.')[0]), _NORMS)
