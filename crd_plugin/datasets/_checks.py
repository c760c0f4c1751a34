"""Checks of data sets and their samples, which name the file and what to do."""

import os
import os.path as osp
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

_PIXELS = 'OPENCV_IO_MAX_IMAGE_PIXELS'  # Set by crd_plugin.cli; else OpenCV takes 2**30.
# Images of each split of a published data set, by the name of its class.
_IMAGES = dict(
    CIFAR10=dict(train=50_000, test=10_000),
    CIFAR100=dict(train=50_000, test=10_000),
    ImageNet=dict(train=1_281_167, val=50_000),
    NYUDepthV2=dict(train=795, test=654),
    STL10={'train': 5_000, 'test': 8_000, 'unlabeled': 100_000, 'train+unlabeled': 105_000},
    TinyImageNet200=dict(train=100_000, val=10_000),
)

NO_SAMPLES = 'The wrapped {} has no samples; check its ann_file, data_root, filter_cfg and indices.'


def sample_name(owner: Any, index: int) -> str:
    """Name a sample for a message: its file, if it has one, its index and its data set."""
    name = f'sample {index} of {type(owner).__name__}'
    info: dict = {}
    with suppress(Exception):  # It may be what failed, or not be there.
        info = owner.get_data_info(index)
    return f'{info["img_path"]} ({name})' if 'img_path' in info else name


@contextmanager
def named_sample(owner: Any, index: int) -> Iterator[None]:
    """Name the sample in what a pipeline raises; that of a missing file names it already."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:  # Decoders and transforms raise what they like.
        text = ' '.join(str(error).split()) or type(error).__name__
        if 'CV_IO_MAX_IMAGE_PIXELS' in text:
            text = f'it has more pixels than OpenCV takes, {os.environ.get(_PIXELS, 1 << 30)}'
        raise ValueError(
            f'{sample_name(owner, index)} cannot be read: {text.rstrip(".")}; replace the file, '
            'take it out of the data set, or correct the pipeline.'
        ) from error


def check_same_classes(
    place: str, classes: Sequence[str], trained: str, known: Sequence[str]
) -> None:
    """Raise a ValueError if a label means another class in a set than where a model was trained."""
    # Without names nothing is known; names that are not there may be meant.
    for number, name in enumerate(classes if known else ()):
        if number >= len(known):
            found = f'{trained} has {len(known)} classes'
        elif name in known and name != known[number]:
            found = f'in {trained} class {known.index(name)}'
        else:
            continue
        raise ValueError(
            f'{place}: {name!r} is class {number}, {found}, so a label means something else than '
            'in training; give both the same folders of classes (one without images counts too), '
            'or annotation files with the same numbers.'
        )


@contextmanager
def not_empty(name: Any) -> Iterator[None]:
    """Say that a data set has no samples, of which MMEngine says "need at least one array"."""
    try:
        yield
    except ValueError as error:
        if 'need at least one array' not in str(error):
            raise
        raise ValueError(NO_SAMPLES.format(name)) from error


def check_image(item: Any, channels: int | None, owner: Any, index: int) -> int | None:
    """Refuse an image that cannot stand in a batch with the others; return its channels."""
    image = item.get('inputs') if isinstance(item, dict) else None
    image = image[0] if isinstance(image, (list, tuple)) and image else image  # of views
    if not isinstance(image, Tensor) or image.dim() != 3:
        return channels
    found, problem = image.size(0), ''
    if image.dtype != torch.uint8 and not image.is_floating_point():
        kind = str(image.dtype).removeprefix('torch.')
        problem = f'is an image of type {kind}, expected uint8 (8 bits per channel)'
    elif found != (channels or found):
        problem = f'has {found} channels, the images before it {channels}'
    if problem:
        raise ValueError(
            f'{sample_name(owner, index)} {problem}; load the images with '
            "dict(type='LoadImageFromFile', color_type='color'), or convert the file."
        )
    return found


def check_complete(owner: Any) -> None:
    """Refuse a published data set of which images are missing, in all or of a class."""
    name, prefixes = type(owner).__name__, getattr(owner, 'data_prefix', None) or {}
    split = getattr(owner, 'split', None) or osp.basename(prefixes.get('img_path', ''))
    expected = _IMAGES.get(name, {}).get(split)
    if expected is None or owner._indices is not None:
        return
    classes, short = owner.metainfo.get('classes') or (), ''
    if classes and expected % len(classes) == 0:
        share = expected // len(classes)
        with suppress(KeyError):  # no labels
            counts = np.bincount(owner.get_gt_labels(), minlength=len(classes))[: len(classes)]
            least = counts.argmin()
            if counts[least] < share:
                short = f' (class {classes[least]!r} has {counts[least]} of {share})'
    if short or len(owner) != expected:
        raise ValueError(
            f'The {split} set of {name} in {owner.data_root} has {len(owner):,} images{short}, '
            f'expected {expected:,}; unpack or download it again. For a part of it on purpose, set '
            'complete=False in crd_plugin.SampleIndexDataset (train_dataloader.dataset), which '
            'holds for every split.'
        )
