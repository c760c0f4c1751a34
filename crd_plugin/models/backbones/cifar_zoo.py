"""The networks of the CIFAR tables by name, as configs."""

import copy
import difflib
from typing import Any

from crd_plugin.models._numbers import count

# mmpretrain gives `fc` a normal distribution of std 0.01. That is what the
# original does for VGG and MobileNetV2; the others keep torch's default.
_TORCH_FC = dict(init_cfg=None)


def _net(backbone: str, width: int, head: dict, **kwargs: Any) -> dict:
    return dict(
        backbone=dict(type=f'crd_plugin.{backbone}', **kwargs), in_channels=width, head=head
    )


def _resnet(depth: int, **kwargs: int) -> dict:
    width = 4 * kwargs.get('base_channels', 16)
    return _net('CIFARResNet', width, _TORCH_FC, depth=depth, **kwargs)


def _wrn(depth: int, factor: int) -> dict:
    return _net('CIFARWideResNet', 64 * factor, _TORCH_FC, depth=depth, widen_factor=factor)


# Names are HobbitLong/RepDistiller's (`models/__init__.py`, `model_dict`);
# those of two wide ResNets, which it lacks, follow the same pattern.
CIFAR_ZOO: dict[str, dict] = {
    **{f'resnet{depth}': _resnet(depth) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f'resnet{depth}x4': _resnet(depth, stem_channels=32, base_channels=64) for depth in (8, 32)},
    'ResNet50': _net('CIFARFourStageResNet', 2048, _TORCH_FC, depth=50, zero_init_residual=False),
    **{
        f'wrn_{depth}_{factor}': _wrn(depth, factor)
        for depth, factor in ((16, 1), (16, 2), (22, 4), (28, 4), (40, 1), (40, 2))
    },
    **{f'vgg{depth}': _net('CIFARVGG', 512, {}, depth=depth) for depth in (8, 11, 13, 16, 19)},
    'MobileNetV2': _net('CIFARMobileNetV2', 1280, {}, widen_factor=0.5),
    'ShuffleV1': _net('CIFARShuffleNetV1', 960, _TORCH_FC, groups=3),
    'ShuffleV2': _net('CIFARShuffleNetV2', 1024, _TORCH_FC, widen_factor=1.0),
}


def find_cifar_name(name: str) -> str:
    """Find the key in ``CIFAR_ZOO`` of a name in any case, with ``-`` or ``_``: ``WRN-40-2``."""
    known = {key.lower(): key for key in CIFAR_ZOO}
    key = str(name).lower().replace('-', '_')
    if key not in known:
        nearest = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
        which = 'the nearest are' if nearest else 'there are'
        names = ', '.join(known[near] for near in nearest or known)
        raise ValueError(f'architecture {name!r} is not in the zoo; {which} {names}.')
    return known[key]


def build_cifar_classifier_cfg(
    name: str, num_classes: int, **backbone_kwargs: Any
) -> dict[str, Any]:
    """Make the config of a network of the CIFAR tables as a classifier.

    Args:
        name (str): Name in ``CIFAR_ZOO``, in upper or lower case.
        num_classes (int): Classes of the data set.
        **backbone_kwargs (Any): Arguments of the backbone: ``out_indices``, ``pre_activation`` ...

    Returns:
        dict: Config of an ``ImageClassifier``; a copy that the caller may change.

    Raises:
        ValueError: If the name is unknown or ``num_classes`` not positive.
    """
    net = copy.deepcopy(CIFAR_ZOO[find_cifar_name(name)])
    return dict(
        type='mmpretrain.ImageClassifier',
        backbone={**net['backbone'], **backbone_kwargs},
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
        head=dict(
            type='mmpretrain.LinearClsHead',
            num_classes=count('num_classes', num_classes),
            in_channels=net['in_channels'],
            loss=dict(type='mmpretrain.CrossEntropyLoss', loss_weight=1.0),
            **net['head'],
        ),
    )
