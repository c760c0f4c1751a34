"""Data set wrapper that gives every sample a unique id."""

import copy
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from mmengine.dataset import BaseDataset, ClassBalancedDataset, ConcatDataset, RepeatDataset
from mmengine.logging import MMLogger
from mmengine.structures import BaseDataElement
from mmpretrain.datasets import KFoldDataset
from torch.utils.data import ConcatDataset as TorchConcatDataset
from torch.utils.data import Subset

from crd_plugin.registry import DATASETS

from ._checks import (
    NO_SAMPLES,
    check_complete,
    check_image,
    named_sample,
    not_empty,
    sample_name,
)
from .contrast_ids import ContrastIds


@DATASETS.register_module()
class SampleIndexDataset:
    """Wrap a data set and write the position of each sample into its data sample.

    A memory bank has one row per sample, so each sample needs an id that is unique in the whole
    training set: ``dataset[i]['data_samples'].sample_idx == i``. MMEngine's own ``sample_idx``,
    which is replaced, repeats under ``ConcatDataset``.

    Copies made by ``RepeatDataset`` and ``ClassBalancedDataset`` have bank rows of their own; put
    this wrapper inside of those to let copies share a row.

    An image that cannot be read is an error that names its file. Only if the pipeline returns None,
    another random sample is read in its place, with its own position, which is warned of once.

    Args:
        dataset (Dataset or dict): The data set to wrap, or its config.
        num_negatives (int, optional): K. If given, each sample also carries ``contrast_idx``, the
            ids that the published data sets draw on the CPU; see :class:`ContrastIds`. ``CRDLoss``
            draws faster on the device. Defaults to None.
        percent (float): Fraction of each class's negatives to draw ``contrast_idx`` from. Values
            outside (0, 1) keep all. Defaults to 1.0.
        mode (str): Positive in ``contrast_idx``. 'exact': the sample itself; 'relax': any sample
            of its class. Defaults to 'exact'.
        complete (bool): Refuse CIFAR-10, CIFAR-100, ImageNet, NYU-Depth, STL-10 or Tiny-ImageNet
            with another number of images than published, unless ``indices`` shortens it; the tools
            then also check the sets for validation and testing. Defaults to False; the configs of
            these data sets set it.

    Shape:
        sample_idx: int, [0, N). contrast_idx: ``(1 + K,)`` int64, the positive first.

    Raises:
        ValueError: If an argument is out of range, the data set is empty, incomplete or contains a
            ``SampleIndexDataset``, ``num_negatives`` is given for a set without classes, or a
            sample cannot be read or stand in a batch with the others.
        TypeError: If an item has no ``data_samples``.
    """

    def __init__(
        self,
        dataset: Any,
        num_negatives: int | None = None,
        percent: float = 1.0,
        mode: str = 'exact',
        complete: bool = False,
    ) -> None:
        if isinstance(dataset, Mapping):
            with not_empty(dataset.get('type')):
                dataset = DATASETS.build(dataset)
        self.dataset, self.complete = dataset, complete
        # Of images read so far by this process, and whether another one was read in place of one.
        self._channels: int | None = None
        self._warned = False
        self._contrast: ContrastIds | None = None
        if num_negatives is not None:
            self.full_init()
            self._contrast = ContrastIds(self._labels, num_negatives, percent, mode)
        elif (percent, mode) != (1.0, 'exact'):
            raise ValueError(
                f'percent={percent!r} and mode={mode!r} apply to contrast_idx, which is drawn only '
                'when num_negatives is given; set num_negatives, or leave both out.'
            )

    @property
    def metainfo(self) -> dict:
        """dict: A copy of the wrapped data set's meta information."""
        return copy.deepcopy(getattr(self.dataset, 'metainfo', {}))

    @property
    def num_samples(self) -> int:
        """int: Number of positions, hence of rows that a memory bank needs."""
        return len(self)

    @property
    def pipeline(self) -> Any:
        """Compose: Pipeline of the wrapped data set, or of the first of several; tools replace it.

        Raises:
            AttributeError: If it has none.
        """
        return self._sources.owners[0].pipeline

    @pipeline.setter
    def pipeline(self, pipeline: Any) -> None:
        for owner in self._sources.owners:
            owner.pipeline = pipeline

    def full_init(self) -> None:
        """Load the annotations of a lazily initialised data set, and check them."""
        for owner in self._sources.owners:
            if self.complete:
                check_complete(owner)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, idx: int) -> Any:
        """Read the sample at a position, counted from the end if negative, with its id."""
        position, owner, index = self._locate(idx)
        redraws = getattr(owner, 'max_refetch', 1000)
        for _ in range(redraws + 1):
            with named_sample(owner, index):
                item = _read_sample(owner, index)
            if item is not None:
                self._channels = check_image(item, self._channels, owner, index)
                return self._write_ids(item, position)
            if not self._warned:
                self._warned = True
                MMLogger.get_current_instance().warning(
                    f'{sample_name(owner, index)} is replaced by a random other sample, because '
                    'its pipeline returned None; so will others be, without a further word. If its '
                    'image is broken, replace it or take it out of the data set.'
                )
            position, owner, index = self._locate(np.random.randint(0, len(self)))
        raise RuntimeError(
            f'No valid sample in {redraws} redraws from {type(owner).__name__}: it returned None, '
            'or samples that were not asked for; check the images and the pipeline.'
        )

    def get_data_info(self, idx: int) -> dict:
        """Get the annotation of a sample as ``BaseDataset`` does, ``sample_idx`` its position."""
        position, owner, index = self._locate(idx)
        return {**owner.get_data_info(index), 'sample_idx': position}

    def get_cat_ids(self, idx: int) -> list[int]:
        """Get the category ids of a sample as ``BaseDataset`` does."""
        _, owner, index = self._locate(idx)
        return owner.get_cat_ids(index)

    def get_gt_labels(self) -> np.ndarray:
        """Get the class of every position, ``(N,)`` int64, without running pipelines."""
        return self._labels.copy()

    def get_subset(self, indices: Any) -> Any:
        """Raise a ValueError: ``KFoldDataset`` belongs inside.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            'KFoldDataset takes a part of its dataset, but the ids of a SampleIndexDataset count '
            "all of its samples; swap the two: dict(type='crd_plugin.SampleIndexDataset', "
            "dataset=dict(type='KFoldDataset', dataset=...))."
        )

    @cached_property
    def _sources(self) -> 'Sources':
        name = type(self.dataset).__name__
        with not_empty(name):
            sources = find_sources(self.dataset)
        if not len(sources.owner_of):
            raise ValueError(NO_SAMPLES.format(name))
        if any(isinstance(owner, SampleIndexDataset) for owner in sources.owners):
            raise ValueError('dataset contains a SampleIndexDataset already; wrap it only once.')
        return sources

    @cached_property
    def _labels(self) -> np.ndarray:
        owners, owner_of, index_of = self._sources
        labels = [_labels_of(owner) for owner in owners]
        starts = np.cumsum([0, *map(len, labels)])
        return np.concatenate(labels)[starts[owner_of] + index_of]

    def _locate(self, idx: int) -> tuple[int, Any, int]:
        """Return the position, the data set that holds its sample, and the index in that set."""
        position = range(len(self))[int(idx)]
        owners, owner_of, index_of = self._sources
        return position, owners[owner_of[position]], int(index_of[position])

    def _write_ids(self, item: Any, position: int) -> Any:
        fields = {} if self._contrast is None else dict(contrast_idx=self._contrast.draw(position))
        sample = _sample_of(item)
        if not isinstance(sample, BaseDataElement):
            found = sorted(map(str, item)) if isinstance(item, dict) else type(item).__name__
            raise TypeError(
                f'The sample at position {position} has no data_samples to hold its id (got '
                f"{found}); end the pipeline with dict(type='PackInputs')."
            )
        sample.pop('sample_idx', None)
        sample.set_metainfo(dict(sample_idx=position))
        sample.set_data(fields)
        return item


class Sources(NamedTuple):
    """Where the sample at each of N positions comes from."""

    owners: list[Any]  # data sets that hold samples, without wrappers
    owner_of: np.ndarray  # (N,) int64, number of the owner
    index_of: np.ndarray  # (N,) int64, index in the owner


def find_sources(dataset: Any) -> Sources:
    """Look behind wrappers, to any depth; those that are not known count as owners."""
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


def check_sources(dataset: Any) -> None:
    """Refuse a data set if images are missing of a published one in it, to any depth."""
    for owner in find_sources(dataset).owners:
        if isinstance(owner, SampleIndexDataset):
            check_sources(owner.dataset)
        else:
            check_complete(owner)


class NamedRead:
    """``prepare_data`` of a data set, which names the sample that it cannot read."""

    def __init__(self, owner: BaseDataset) -> None:
        self.owner = owner

    def __call__(self, idx: int) -> Any:
        """Read a sample."""
        with named_sample(self.owner, idx):
            return type(self.owner).prepare_data(self.owner, idx)


def _indexes_like(dataset: Any, *classes: Any) -> bool:
    """Return whether a data set is one of the classes and does not override its indexing."""
    return any(
        isinstance(dataset, cls) and type(dataset).__getitem__ is cls.__getitem__ for cls in classes
    )


def _read_sample(owner: Any, index: int) -> Any:
    """Read a sample, and never another one in its place; None if it cannot be read."""
    if _indexes_like(owner, BaseDataset) and not owner.test_mode:
        return owner.prepare_data(index)
    item = owner[index]  # with test_mode MMEngine raises an error instead of reading another one
    if item is None or not hasattr(owner, 'get_data_info'):
        return item
    # Its own __getitem__ may have replaced the sample; the id tells.
    wanted = owner.get_data_info(index).get('sample_idx')
    found = getattr(_sample_of(item), 'sample_idx', wanted)
    return item if wanted in (None, found) else None


def _sample_of(item: Any) -> Any:
    """Return the data sample of an item, None if there is none."""
    return item.get('data_samples') if isinstance(item, dict) else None


def _labels_of(owner: Any) -> np.ndarray:
    """Read the class of every sample without running the pipeline, ``(N,)`` int64."""
    try:
        if hasattr(owner, 'get_gt_labels'):
            found = owner.get_gt_labels()
        else:
            found = [owner.get_data_info(index)['gt_label'] for index in range(len(owner))]
        labels = np.asarray(found)  # refuses lists of unequal length
        if labels.shape[1:] == (1,):
            labels = labels[:, 0]
        if labels.shape != (len(owner),) or labels.dtype.kind not in 'iu' or (labels < 0).any():
            raise ValueError(f'got {labels.dtype} of shape {labels.shape}: {labels.tolist()[:9]}')
    except (KeyError, AttributeError, ValueError) as error:
        problem = f'no {error.args[0]}' if isinstance(error, KeyError) else error
        raise ValueError(
            f'{type(owner).__name__} has no labels that give each of {len(owner)} samples one '
            f"class, an integer >= 0 ({problem}); correct gt_label, or use exclude='instance' in "
            'the loss, which needs no labels.'
        ) from error
    return labels.astype(np.int64)
