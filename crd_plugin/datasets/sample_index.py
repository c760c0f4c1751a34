"""Data set wrapper that gives every sample a unique id."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
from mmengine.structures import BaseDataElement

from crd_plugin.registry import DATASETS

from .contrast_ids import ContrastIds
from .sources import Sources, find_sources, labels_of, read_sample, samples_of

_MAX_REFETCH = 1000


@DATASETS.register_module()
class SampleIndexDataset:
    """Wrap a data set and write the position of each sample into its data sample.

    A memory bank has one row per sample, so each sample needs an id that is unique in the whole
    training set. MMEngine's own ``sample_idx`` counts within one annotation list and repeats under
    ``ConcatDataset``. Here it is replaced, after the pipeline, by the position in the wrapped set:
    ``dataset[i]['data_samples'].sample_idx == i``.

    Copies made by ``RepeatDataset`` and ``ClassBalancedDataset`` have positions of their own, hence
    bank rows of their own; with ``exclude='instance'`` they can be each other's negatives. To let
    copies share a row, put this wrapper inside:
    ``RepeatDataset(dataset=dict(type='crd_plugin.SampleIndexDataset', ...))``.

    If the pipeline returns None (a broken image, say), MMEngine silently reads another random
    sample, whose embedding would be written to the wrong row. Here that sample keeps its own
    position: it is drawn by the same NumPy call, but read directly from the data set that holds it.
    Data sets with a ``__getitem__`` of their own are indexed as usual; an item whose id shows that
    it is another sample is replaced as well.

    Args:
        dataset (Dataset or dict): The data set to wrap, or its config.
        num_negatives (int, optional): K. If given, each sample also carries ``contrast_idx``, the
            ids that the published data sets draw on the CPU; see :class:`ContrastIds`. ``CRDLoss``
            draws faster on the device. Defaults to None.
        percent (float): Fraction of each class's negatives to draw ``contrast_idx`` from. Values
            outside (0, 1) keep all. Defaults to 1.0.
        mode (str): Positive in ``contrast_idx``. 'exact': the sample itself; 'relax': any sample
            of its class. Defaults to 'exact'.

    Shape:
        sample_idx: int, [0, N). contrast_idx: ``(1 + K,)`` int64, the positive first.

    Raises:
        ValueError: If an argument is out of range, the data set is empty or contains a
            ``SampleIndexDataset``, or ``num_negatives`` is given for a set without classes.
        TypeError: If an item has no ``data_samples``.
    """

    def __init__(
        self,
        dataset: Any,
        num_negatives: int | None = None,
        percent: float = 1.0,
        mode: str = 'exact',
    ) -> None:
        if isinstance(dataset, Mapping):
            dataset = DATASETS.build(dataset)
        if num_negatives is None and (percent, mode) != (1.0, 'exact'):
            raise ValueError(
                f'percent={percent!r} and mode={mode!r} apply to contrast_idx, which is drawn only '
                'when num_negatives is given; set num_negatives, or leave both out.'
            )
        self.dataset = dataset
        self.num_negatives = num_negatives
        self.percent = percent
        self.mode = mode
        self._sources: Sources | None = None
        self._labels: np.ndarray | None = None
        self._contrast: ContrastIds | None = None
        if num_negatives is not None:
            self.full_init()
            self._contrast = ContrastIds(self.get_gt_labels(), num_negatives, percent, mode)

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
        """Compose: Pipeline of the wrapped data set, which tools may replace."""
        return self.dataset.pipeline

    @pipeline.setter
    def pipeline(self, pipeline: Any) -> None:
        self.dataset.pipeline = pipeline

    def full_init(self) -> None:
        """Load the annotations of a lazily initialised data set."""
        if hasattr(self.dataset, 'full_init'):
            self.dataset.full_init()
        if len(self.dataset) == 0:
            raise ValueError(
                f'The wrapped {type(self.dataset).__name__} has no samples; check its ann_file, '
                'data_root, filter_cfg and indices.'
            )
        self._find_sources()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, idx: int) -> Any:
        """Read one sample through its pipeline.

        Args:
            idx (int): Position; a negative one counts from the end.

        Returns:
            dict: The item, with ids in its ``data_samples``.

        Raises:
            IndexError: If ``idx`` is out of range.
            RuntimeError: If no valid sample is found.
        """
        position = self._position(idx)
        owner, index = self._locate(position)
        redraws = getattr(owner, 'max_refetch', _MAX_REFETCH)
        for _ in range(redraws + 1):
            item = read_sample(owner, index)
            if item is not None:
                return self._write_ids(item, position)
            position = np.random.randint(0, len(self))
            owner, index = self._locate(position)
        raise RuntimeError(
            f'No valid sample in {redraws} redraws from {type(owner).__name__}: its pipeline '
            'returned None, or it returned another sample than the one asked for, each time. '
            'Check the images and the pipeline.'
        )

    def get_data_info(self, idx: int) -> dict:
        """Get the annotation of a sample, before the pipeline.

        Args:
            idx (int): Position; a negative one counts from the end.

        Returns:
            dict: The annotation, with ``sample_idx`` the position.
        """
        position = self._position(idx)
        owner, index = self._locate(position)
        return {**owner.get_data_info(index), 'sample_idx': position}

    def get_cat_ids(self, idx: int) -> list[int]:
        """Get the category ids of a sample.

        Args:
            idx (int): Position; a negative one counts from the end.

        Returns:
            list[int]: Category ids.
        """
        owner, index = self._locate(self._position(idx))
        return owner.get_cat_ids(index)

    def get_gt_labels(self) -> np.ndarray:
        """Get the class of every position without running pipelines.

        Returns:
            np.ndarray: ``(N,)`` int64.

        Raises:
            ValueError: If a sample has no label or more than one.
        """
        if self._labels is None:
            owners, owner_of, index_of = self._find_sources()
            labels = [labels_of(owner) for owner in owners]
            starts = np.cumsum([0, *map(len, labels)])
            self._labels = np.concatenate(labels)[starts[owner_of] + index_of]
        return self._labels.copy()

    def get_subset_(self, indices: int | list[int]) -> None:
        """Raise an error: positions would no longer be rows of the bank."""
        raise NotImplementedError(
            'A SampleIndexDataset cannot be cut, because its ids are positions in the whole set. '
            'Cut the inner data set (its indices argument or its get_subset) and wrap the result.'
        )

    get_subset = get_subset_

    def _position(self, idx: int) -> int:
        try:
            return range(len(self))[int(idx)]
        except IndexError:
            raise IndexError(f'idx {idx} is outside the data set of {len(self)} samples.') from None

    def _find_sources(self) -> Sources:
        """Find out once where the samples come from."""
        if self._sources is None:
            sources = find_sources(self.dataset)
            if any(isinstance(owner, SampleIndexDataset) for owner in sources.owners):
                raise ValueError(
                    'dataset contains a SampleIndexDataset already, whose ids would be '
                    'overwritten; wrap the data set once only.'
                )
            self._sources = sources
        return self._sources

    def _locate(self, position: int) -> tuple[Any, int]:
        """Return the data set that holds a sample, and the sample's index in it."""
        owners, owner_of, index_of = self._find_sources()
        return owners[owner_of[position]], int(index_of[position])

    def _write_ids(self, item: Any, position: int) -> Any:
        samples = samples_of(item)
        if not all(isinstance(sample, (BaseDataElement, dict)) for sample in samples):
            found = sorted(map(str, item)) if isinstance(item, dict) else type(item).__name__
            raise TypeError(
                f'The sample at position {position} has no data_samples to hold its id (got '
                f"{found}); end the pipeline with dict(type='PackInputs')."
            )
        fields = {}
        if self._contrast is not None:
            fields['contrast_idx'] = self._contrast.draw(position)
        for sample in samples:
            if isinstance(sample, dict):
                sample.update(fields, sample_idx=position)
            else:
                sample.pop('sample_idx', None)
                sample.set_metainfo(dict(sample_idx=position))
                sample.set_data(fields)
        return item
