"""Checks of data sets and their samples, which name the file and what to do."""

from __future__ import annotations

import os
import os.path as osp
from collections.abc import Iterator
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


@contextmanager
def not_empty(name: Any) -> Iterator[None]:
    """Say that a data set has no samples, of which MMEngine says "need at least one array"."""
    try:
        yield
    except ValueError as error:
        if 'need at least one array' not in str(error):
            raise
        raise no_samples(name) from error


def no_samples(name: Any) -> ValueError:
    """Make the error for a data set without samples."""
    return ValueError(
        f'The wrapped {name} has no samples; check its ann_file, data_root, filter_cfg and indices.'
    )


def check_image(item: Any, channels: int | None, owner: Any, index: int) -> int | None:
    """Raise a ValueError for an image that cannot stand in a batch with the others.

    Args:
        item (dict): What the pipeline made of the sample; a list of views counts as its first.
        channels (int, optional): Channels of the images before; None for the first one.
        owner (Dataset): The data set that holds the sample, for the message.
        index (int): Index of the sample in it, for the message.

    Returns:
        int, optional: Channels of the images; None if the item has no image.

    Raises:
        ValueError: If the image has another number of channels, or is not of 8 bits or floats.
    """
    image = item.get('inputs') if isinstance(item, dict) else None
    image = image[0] if isinstance(image, (list, tuple)) and image else image
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
    """Raise a ValueError for a published data set of which images are missing.

    Args:
        owner (Dataset): The data set. Others than the published ones, and those that ``indices``
            shortens, are left alone.

    Raises:
        ValueError: If the number of images, in all or of a class, is not the published one.
    """
    name, indices = type(owner).__name__, getattr(owner, '_indices', None)
    prefixes = getattr(owner, 'data_prefix', None) or {}
    split = getattr(owner, 'split', None) or osp.basename(prefixes.get('img_path', ''))
    expected = _IMAGES.get(name, {}).get(split)
    if expected is None or indices is not None:
        return
    short = _short_classes(owner, expected)
    if short or len(owner) != expected:
        raise ValueError(
            f'The {split} set of {name} in {owner.data_root} has {len(owner):,} images{short}, '
            f'expected {expected:,}; unpack or download it again. For a part of it on purpose, set '
            'complete=False in crd_plugin.SampleIndexDataset (train_dataloader.dataset).'
        )


def _short_classes(owner: Any, expected: int) -> str:
    """Say which classes lack images; empty if none does, or classes have unequal numbers."""
    classes = owner.metainfo.get('classes') or ()
    if not classes or expected % len(classes):
        return ''
    with suppress(KeyError):  # no labels
        counts = np.bincount(owner.get_gt_labels(), minlength=len(classes))
        share = expected // len(classes)
        short = np.flatnonzero(counts[: len(classes)] < share)
        if len(short):
            more = f', and {len(short) - 1} more classes lack some' if len(short) > 1 else ''
            return f' (class {classes[short[0]]!r} has {counts[short[0]]} of {share}{more})'
    return ''
