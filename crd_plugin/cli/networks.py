"""The config of a network by name, module, file or function."""

import copy
import difflib
import inspect
import re
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine.registry import MODELS
from mmpretrain.apis import ModelHub, list_models
from torch import nn

from crd_plugin.checkpoints.publish import parse_config_text, student_config
from crd_plugin.compat import load_checkpoint_file
from crd_plugin.models.backbones import CIFAR_ZOO, build_cifar_classifier_cfg
from crd_plugin.models.backbones.plain_network import GIVEN

from .arguments import load_config

Network = str | Path | nn.Module | Callable | Mapping[str, Any]

_CROSS_ENTROPY = dict(type='mmpretrain.CrossEntropyLoss', loss_weight=1.0)


def network_cfg(
    network: Network, num_classes: int | None = None, pretrained: bool = False
) -> dict[str, Any]:
    """Make the config of a classifier.

    Args:
        network (str | Path | nn.Module | Callable | dict): One of

            * ``'resnet18_8xb32_in1k'``: a model of MMPretrain, see ``mmpretrain.list_models``
            * ``'timm/resnet18'``: a model of timm
            * ``'cifar/resnet8x4'``: a network of the CIFAR tables, for 32x32 pixels
            * ``'my_package.networks.small'``, or the class or function itself: what it returns,
              which gives logits; it is called with ``num_classes`` if it takes that
            * a module: a copy of it, known to this process only
            * ``'FILE.py'``: the model of a config; of a distillation the student
            * ``'FILE.pth'``: the model whose config the checkpoint holds, with its weights
            * a dict: the config itself
        num_classes (int, optional): Number of classes. Defaults to None: the network's own, 100 for
            the CIFAR tables.
        pretrained (bool): Whether it has the weights that MMPretrain or timm has published, or its
            own. They fit ``num_classes=None``. Defaults to False.

    Returns:
        dict: Config of a classifier, with ``init_cfg`` if its weights are in a file, and with a
        ``data_preprocessor`` if the normalisation that it expects is known.

    Raises:
        ValueError: If there is no such network, it has no weights, or cannot classify.
        FileNotFoundError: If there is no such file.
    """
    if isinstance(network, Mapping):
        if 'type' not in network:
            raise ValueError(
                'a dict is the config of a network, with `type`; weights are given as a file '
                'beside the network, or within a module.'
            )
        return copy.deepcopy(dict(network))
    if isinstance(network, nn.Module):
        name = f'given.{type(network).__name__}-{len(GIVEN)}'
        GIVEN[name] = network
        return _plain(num_classes, source=name)
    if callable(network):
        if not hasattr(network, '__qualname__'):
            raise ValueError(
                f'a config cannot name a {type(network).__name__}; give a function or class, or '
                'the module that it returns.'
            )
        return _of_constructor(f'{network.__module__}.{network.__qualname__}', num_classes)
    name = str(network)
    kind, _, rest = name.partition('/')
    if kind == 'timm' and rest:
        return _of_timm(rest, num_classes, pretrained)
    if name.endswith(('.pth', '.pt')):
        return _of_checkpoint(name)
    if name in list_models():
        return _of_mmpretrain(name, num_classes, pretrained)
    if re.fullmatch(r'[A-Za-z_]\w*(\.\w+)+', name) and not name.endswith('.py'):
        return _of_constructor(name, num_classes)
    if pretrained:
        raise ValueError(f'nobody publishes weights of {name}; give the file of its checkpoint.')
    if name.endswith('.py'):
        return _of_config(load_config(name).to_dict(), num_classes)
    if kind == 'cifar' and rest:
        return build_cifar_classifier_cfg(rest, num_classes or 100)
    raise ValueError(_unknown(name))


def _of_mmpretrain(name: str, num_classes: int | None, pretrained: bool) -> dict[str, Any]:
    """Model of MMPretrain, with the address of its weights."""
    info = ModelHub.get(name)
    model = _of_config(info.config.to_dict(), num_classes)
    if pretrained:
        if not info.weights:
            raise ValueError(f'MMPretrain has no weights of {name}; give the file of a checkpoint.')
        model['init_cfg'] = dict(type='Pretrained', checkpoint=info.weights)
    return model


def _of_config(cfg: dict[str, Any], num_classes: int | None) -> dict[str, Any]:
    """Model of a config, the student of a distillation, with random weights."""
    plain = student_config(cfg)
    model = plain.get('model')
    if not isinstance(model, dict):
        raise ValueError('the config has no `model`.')
    model.pop('train_cfg', None)  # it mixes images, as a training's own config may
    given = model.pop('data_preprocessor', None) or plain.get('data_preprocessor') or {}
    if given.get('mean') and given.get('std'):
        _normalise(model, **{key: given[key] for key in ('mean', 'std', 'to_rgb') if key in given})
    head = model.get('head')
    if num_classes is not None and head is not None:
        if 'num_classes' not in head:
            raise ValueError(f'{head["type"]} is not the head of a classifier of single labels.')
        # Others belong to the number of classes, or to mixed images.
        head.update(num_classes=num_classes, loss=dict(_CROSS_ENTROPY))
    return model


def _of_checkpoint(name: str) -> dict[str, Any]:
    """Model whose config is in a checkpoint, with its weights."""
    meta = load_checkpoint_file(name).get('meta')
    if not isinstance(meta, dict) or not meta.get('cfg'):
        raise ValueError(
            f'{name} does not say which network it holds; name the network, and give this file as '
            'its checkpoint.'
        )
    model = _of_config(parse_config_text(meta['cfg']), None)
    return dict(model, init_cfg=dict(type='Pretrained', checkpoint=name))


def _of_timm(name: str, num_classes: int | None, pretrained: bool) -> dict[str, Any]:
    """Model of timm."""
    if not find_spec('timm'):
        raise ValueError(f'timm/{name} needs timm; install it with `pip install timm`.')
    import timm

    if not timm.is_model(name):
        raise ValueError(_unknown(f'timm/{name}'))
    known = timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()
    if pretrained and not known.has_weights:
        raise ValueError(f'timm has no weights of {name}; give the file of its checkpoint.')
    given: dict[str, Any] = dict(pretrained=True) if pretrained else {}
    if num_classes is None and known.num_classes == 0:  # features alone
        return dict(type='crd_plugin.TimmTeacher', model_name=name, **given)
    if num_classes is None:
        num_classes = known.num_classes
    else:
        given['num_classes'] = num_classes
    model = _plain(num_classes, source='timm.create_model', model_name=name, **given)
    mean, std = ([round(255 * value, 3) for value in part] for part in (known.mean, known.std))
    _normalise(model, mean=mean, std=std, to_rgb=True)
    return model


def _of_constructor(source: str, num_classes: int | None) -> dict[str, Any]:
    """Network that a class or function returns."""
    constructor = MODELS.get(source)
    parameters = inspect.signature(constructor).parameters.values() if constructor else ()
    takes = any(p.name == 'num_classes' or p.kind is p.VAR_KEYWORD for p in parameters)
    given = dict(num_classes=num_classes) if takes and num_classes is not None else {}
    return _plain(num_classes, source=source, **given)


def _plain(classes: int | None, **backbone: Any) -> dict[str, Any]:
    """Classifier around a network that returns logits, or features where there are no classes."""
    model: dict[str, Any] = dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(type='crd_plugin.plain_network', **backbone),
    )
    if classes != 0:
        model['head'] = dict(
            type='crd_plugin.LogitsHead', num_classes=classes, loss=dict(_CROSS_ENTROPY)
        )
    return model


def _normalise(model: dict[str, Any], **settings: Any) -> None:
    """Let a network have images normalised as its weights expect them."""
    model['data_preprocessor'] = dict(type='mmpretrain.ClsDataPreprocessor', **settings)


def _unknown(name: str) -> str:
    """Say which names are nearest to one that no zoo has."""
    names = [*list_models(), *(f'cifar/{key}' for key in CIFAR_ZOO)]
    if find_spec('timm'):
        import timm

        names += [f'timm/{key}' for key in timm.list_models()]
    # A part of a name counts as much as one with a wrong letter.
    close = [key for key in names if name.lower() in key.lower()][:2]
    close += difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    nearest = ', '.join(dict.fromkeys(close)) or 'timm/resnet18, cifar/resnet8x4'
    return (
        f'no network {name!r}; the nearest are {nearest}. A name is one of '
        'mmpretrain.list_models(), timm/NAME, cifar/NAME, the import path of a function, or a file '
        '.py or .pth.'
    )
