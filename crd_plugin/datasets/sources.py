"""Where the samples of a data set behind wrappers come from, and what their classes are."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from mmengine.dataset import BaseDataset, ClassBalancedDataset, ConcatDataset, RepeatDataset
from mmpretrain.datasets import KFoldDataset
from torch.utils.data import ConcatDataset as TorchConcatDataset
from torch.utils.data import Subset


class Sources(NamedTuple):
    """Where the sample at each of N positions comes from.

    Attributes:
        owners (list): Data sets that hold samples, without wrappers.
        owner_of (np.ndarray): Number of the owner of each position, ``(N,)`` int64.
        index_of (np.ndarray): Index of the sample in its owner, ``(N,)`` int64.
    """

    owners: list[Any]
    owner_of: np.ndarray
    index_of: np.ndarray


def find_sources(dataset: Any) -> Sources:
    """Find the data set behind wrappers that holds the sample at each position.

    Args:
        dataset (Dataset): A data set, or a Concat, Repeat, ClassBalanced, KFold or Subset wrapper
            around others, to any depth.

    Returns:
        Sources: Where each sample comes from. Other wrappers count as owners.
    """
    if hasattr(dataset, 'full_init'):
        dataset.full_init()
    if _indexes_like(dataset, ConcatDataset, TorchConcatDataset):
        owners: list[Any] = []
        numbers, indices = [], []
        for part in map(find_sources, dataset.datasets):
            numbers.append(part.owner_of + len(owners))
            indices.append(part.index_of)
            owners += part.owners
        return Sources(owners, np.concatenate(numbers), np.concatenate(indices))
    if _indexes_like(dataset, RepeatDataset):
        chosen = np.tile(np.arange(len(dataset.dataset)), dataset.times)
    elif _indexes_like(dataset, ClassBalancedDataset):
        chosen = dataset.repeat_indices
    elif _indexes_like(dataset, Subset):
        chosen = dataset.indices
    elif _indexes_like(dataset, KFoldDataset):
        return find_sources(dataset.dataset)
    else:
        return Sources([dataset], np.zeros(len(dataset), np.int64), np.arange(len(dataset)))
    inner = find_sources(dataset.dataset)
    return Sources(inner.owners, inner.owner_of[chosen], inner.index_of[chosen])


def read_sample(owner: Any, index: int) -> Any:
    """Read a sample through its pipeline, and never another one in its place.

    Args:
        owner (Dataset): A data set without wrappers.
        index (int): Index of the sample in it.

    Returns:
        Any: The item; None if it cannot be read.

    Raises:
        RuntimeError: If it cannot be read and ``test_mode`` is set.
    """
    if _indexes_like(owner, BaseDataset):
        item = owner.prepare_data(index)
        if item is None and owner.test_mode:
            raise RuntimeError(
                f'The pipeline of {type(owner).__name__} returned None for its sample {index} with '
                'test_mode=True; check the image, or set test_mode=False so that another sample is '
                'drawn.'
            )
        return item
    item = owner[index]
    if item is None or not hasattr(owner, 'get_data_info'):
        return item
    # Its own __getitem__ may have replaced the sample; the id tells.
    wanted = owner.get_data_info(index).get('sample_idx')
    found = getattr(next(iter(samples_of(item)), None), 'sample_idx', wanted)
    return item if wanted in (None, found) else None


def samples_of(item: Any) -> list[Any]:
    """Return the data samples of an item.

    Args:
        item (Any): What a data set gives for a sample.

    Returns:
        list: One per view; ``[None]`` if there are none.
    """
    samples = item.get('data_samples') if isinstance(item, dict) else None
    return list(samples) if isinstance(samples, (list, tuple)) else [samples]


def labels_of(owner: Any) -> np.ndarray:
    """Read the class of every sample without running the pipeline.

    Args:
        owner (Dataset): A data set without wrappers.

    Returns:
        np.ndarray: ``(N,)`` int64.

    Raises:
        ValueError: If a sample has no label, or not one class.
    """
    name = type(owner).__name__
    advice = "correct gt_label, or use exclude='instance' in the loss, which needs no labels."
    try:
        if hasattr(owner, 'get_gt_labels'):
            labels = owner.get_gt_labels()
        elif hasattr(owner, 'get_data_info'):
            labels = [owner.get_data_info(index)['gt_label'] for index in range(len(owner))]
        else:
            labels = owner.targets
        array = np.asarray(labels)
    except (KeyError, AttributeError) as error:
        raise ValueError(
            f'{name} has no labels (no get_gt_labels, no gt_label in its annotations, no targets); '
            f'{advice}'
        ) from error
    except ValueError as error:  # NumPy refuses lists of unequal length.
        raise ValueError(
            f'{name} is multi-label, expected one class per sample ({error}); {advice}'
        ) from error
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.shape != (len(owner),) or array.dtype.kind not in 'iu' or array.min(initial=0) < 0:
        smallest = f', the smallest {array.min()},' if array.dtype.kind in 'iuf' else ''
        raise ValueError(
            f'{name} has labels of shape {array.shape} and type {array.dtype}{smallest} for '
            f'{len(owner)} samples, expected one integer class >= 0 per sample; {advice}'
        )
    return array.astype(np.int64)


def _indexes_like(dataset: Any, *classes: Any) -> bool:
    """Whether a data set is one of the classes and does not override its indexing."""
    return any(
        isinstance(dataset, cls) and type(dataset).__getitem__ is cls.__getitem__ for cls in classes
    )
