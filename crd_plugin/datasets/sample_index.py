"""Gives every sample its position, whatever the data set is wrapped in."""

import copy
import random
from collections import Counter
from collections.abc import Mapping
from contextlib import contextmanager
from typing import Any, Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from mmengine.dataset import BaseDataset, ClassBalancedDataset, ConcatDataset, RepeatDataset
from mmengine.structures import BaseDataElement
from mmpretrain.datasets import KFoldDataset
from torch.utils.data import ConcatDataset as TorchConcatDataset
from torch.utils.data import Subset

from crd_plugin.registry import DATASETS

_UNSET_SEED = -1
_MAX_REFETCH = 1000


@DATASETS.register_module()
class SampleIndexDataset:
    """Wraps a data set and writes each sample's position into it.

    A memory bank has one row a sample, so a sample needs an id that is unique
    in the whole training set. MMEngine's own ``sample_idx`` counts inside one
    annotation list, which repeats under ``ConcatDataset``. Here it is
    overwritten, after the pipeline, with the position in the wrapped set:
    ``data_sample.sample_idx == i`` for the sample that stands at ``i``.

    Which sample stands at ``i``: the wrapped set's own answer. Copies made by
    ``RepeatDataset`` and ``ClassBalancedDataset`` are positions of their own,
    hence bank rows of their own (with ``exclude='instance'`` they can be each
    other's negatives). To let copies share one row, put this wrapper inside:
    ``RepeatDataset(dataset=dict(type='crd_plugin.SampleIndexDataset', ...))``.

    A pipeline that returns None (a broken image, say) makes MMEngine fetch
    another, random sample in silence, whose embedding would then be written
    into the wrong row. So the redraw happens here, over the whole wrapped set
    and with the same NumPy call: the wrapper walks down through Concat,
    Repeat, ClassBalanced, KFold and Subset to the data set that owns the
    sample and asks it for exactly this one. Data sets with a ``__getitem__``
    of their own are asked as they are; if the item's id tells that they
    returned another sample than asked for, it is dropped and redrawn.

    With ``num_negatives`` each sample also carries ``contrast_idx``, the ids
    that the published data sets draw on the CPU. Source: HobbitLong/
    RepDistiller, ``dataset/cifar100.py``, class CIFAR100InstanceSample; same
    calls to NumPy's global generator, hence the same draws. Differs: unequal
    class sizes work, and pools that cannot be drawn from are refused. It is
    there for parity; ``CRDLoss`` draws faster on the device.

    Args:
        dataset (Dataset or dict): The set to wrap, or its config.
        num_negatives (int, optional): K, negatives a sample in
            ``contrast_idx``. None: no ``contrast_idx``. Defaults to None.
        percent (float): Fraction of each class's negatives that is kept, cut
            once at construction to ``int(len(negatives of class 0) *
            percent)`` ids. A value outside (0, 1) keeps all of them, 0 too.
            Defaults to 1.0.
        mode (str): 'exact': the positive is the sample itself; 'relax': any
            sample of its class, itself included. Defaults to 'exact'.

    Shape:
        sample_idx: int, [0, N). contrast_idx: (1 + K,), int64, column 0 the
        positive; negatives without replacement unless K exceeds the pool.

    Raises:
        ValueError: If an argument is out of range, the set is empty, or
            ``num_negatives`` is given and labels are missing, multi-label or
            of one class only.
        TypeError: If ``dataset`` is no data set, or an item has no
            ``data_samples``.
    """

    def __init__(
        self,
        dataset: Any,
        num_negatives: Optional[int] = None,
        percent: float = 1.0,
        mode: str = 'exact',
    ) -> None:
        _check_contrast_args(num_negatives, percent, mode)
        if isinstance(dataset, Mapping):
            dataset = DATASETS.build(dataset)
        if isinstance(dataset, SampleIndexDataset):
            raise ValueError(
                'dataset is a SampleIndexDataset already; wrap the data set inside it once only.'
            )
        if not (hasattr(dataset, '__getitem__') and hasattr(dataset, '__len__')):
            raise TypeError(
                'dataset must be a data set with __getitem__ and __len__, or '
                f'its config, but got {type(dataset).__name__}.'
            )
        self.dataset = dataset
        self.num_negatives = num_negatives
        self.percent = percent
        self.mode = mode
        self._labels: Optional[np.ndarray] = None
        # Seed, epoch, and how often they were set; shared with loader workers,
        # which live on through the epochs.
        self._seed_epoch = torch.tensor([_UNSET_SEED, 0, 0]).share_memory_()
        self._reads: Counter = Counter()
        self._reads_since = 0
        if num_negatives is not None:
            self.full_init()
            self._pools = _ContrastPools(self.get_gt_labels(), percent)

    @property
    def metainfo(self) -> dict:
        """dict: A copy of the wrapped set's meta information."""
        return copy.deepcopy(getattr(self.dataset, 'metainfo', {}))

    @property
    def num_samples(self) -> int:
        """int: Positions, hence rows that a memory bank needs."""
        return len(self)

    def full_init(self) -> None:
        """Load the annotations of a lazily initialised set."""
        if hasattr(self.dataset, 'full_init'):
            self.dataset.full_init()
        if len(self.dataset) == 0:
            raise ValueError(
                f'The wrapped {type(self.dataset).__name__} has no samples; '
                'check its ann_file, data_root, filter_cfg and indices.'
            )

    def __len__(self) -> int:
        return len(self.dataset)

    def get_data_info(self, idx: int) -> dict:
        """Annotation of the sample at a position, before the pipeline.

        Args:
            idx (int): Position; a negative one counts from the end.

        Returns:
            dict: The owner's annotation with ``sample_idx`` the position.
        """
        position = self._position(idx)
        owner, index = _locate(self.dataset, position)
        info = _require(owner, 'get_data_info')(index)
        info['sample_idx'] = position
        return info

    def get_cat_ids(self, idx: int) -> List[int]:
        """Category ids of the sample at a position, from its owner.

        Args:
            idx (int): Position; a negative one counts from the end.

        Returns:
            list[int]: Category ids.
        """
        owner, index = _locate(self.dataset, self._position(idx))
        return _require(owner, 'get_cat_ids')(index)

    def get_gt_labels(self) -> np.ndarray:
        """Class of every position, read once without running pipelines.

        Returns:
            np.ndarray: (N,), int64.

        Raises:
            ValueError: If a sample has no label or more than one.
        """
        if self._labels is None:
            self._labels = _gt_labels(self.dataset)
        return self._labels.copy()

    def get_subset(self, indices: Union[int, Sequence[int]]) -> None:
        """Refused: positions would no longer be those of the bank."""
        raise NotImplementedError(
            'A SampleIndexDataset cannot be cut: its ids are positions in the '
            'whole set. Cut the inner data set (its `indices` argument or '
            'its get_subset) and wrap the result.'
        )

    def get_subset_(self, indices: Union[int, Sequence[int]]) -> None:
        """Refused: positions would no longer be those of the bank."""
        self.get_subset(indices)

    def set_seed(self, seed: int) -> None:
        """Make augmentation a function of this seed.

        Every batch is then read with the Python, NumPy and torch generators
        seeded from (seed, epoch, positions in the batch), so a resumed run
        sees the same images as an uninterrupted one, with any number of
        workers or none. Afterwards the generators are as before, so reading
        a batch leaves no trace in the randomness of the training process.

        In a loop without epochs one and the same batch may come again; how
        often its first sample was read counts too, in each worker by itself.

        Args:
            seed (int): Seed, not negative. Running workers see it too.
        """
        self._seed_epoch[0] = _natural('seed', seed)
        self._seed_epoch[2] += 1

    def set_epoch(self, epoch: int) -> None:
        """Tell the epoch, before the loader is iterated.

        Args:
            epoch (int): Epoch, counted from 0. Running workers see it too.
        """
        self._seed_epoch[1] = _natural('epoch', epoch)
        self._seed_epoch[2] += 1

    def __getitem__(self, idx: int) -> Any:
        """Fetch one sample through its pipeline.

        Args:
            idx (int): Position; a negative one counts from the end.

        Returns:
            The item with ids in its ``data_samples``.
        """
        position = self._position(idx)
        with self._seeded([position]):
            return self._prepare(position)

    def __getitems__(self, indices: Sequence[int]) -> List[Any]:
        """Fetch a batch; torch's data loader calls this when it is there.

        Args:
            indices (Sequence[int]): Positions.

        Returns:
            list: Items as from indexing.
        """
        positions = [self._position(idx) for idx in indices]
        with self._seeded(positions):
            return [self._prepare(position) for position in positions]

    def _position(self, idx: int) -> int:
        position = int(idx)
        if position < 0:
            position += len(self)
        if not 0 <= position < len(self):
            raise IndexError(f'idx {idx} is outside the data set of {len(self)} samples.')
        return position

    @contextmanager
    def _seeded(self, positions: List[int]) -> Iterator[None]:
        seed, epoch, since = self._seed_epoch.tolist()
        if seed == _UNSET_SEED or not positions:
            yield
            return
        if since != self._reads_since:
            self._reads.clear()
            self._reads_since = since
        reads = self._reads[positions[0]]
        self._reads[positions[0]] += 1
        state = np.random.SeedSequence([seed, epoch, reads, *positions])
        words = state.generate_state(4)
        # torch.manual_seed would seed the GPUs as well.
        generator = torch.default_generator
        before = (random.getstate(), np.random.get_state(), generator.get_state())
        random.seed(words.tobytes())
        np.random.seed(words)
        generator.manual_seed(int(words[0]) << 32 | int(words[1]))
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])
            generator.set_state(before[2])

    def _prepare(self, position: int) -> Any:
        owner, index = _locate(self.dataset, position)
        redraws = getattr(owner, 'max_refetch', _MAX_REFETCH)
        for _ in range(redraws + 1):
            item = _read(owner, index)
            if item is not None:
                return self._write_ids(item, position)
            position = np.random.randint(0, len(self))
            owner, index = _locate(self.dataset, position)
        raise RuntimeError(
            f'No valid sample in {redraws} redraws from '
            f'{type(owner).__name__}: its pipeline returned None, or it '
            'returned other samples than asked for, each time. '
            'Check the images and the pipeline.'
        )

    def _write_ids(self, item: Any, position: int) -> Any:
        samples = item.get('data_samples') if isinstance(item, dict) else None
        views = samples if isinstance(samples, (list, tuple)) else [samples]
        contrast_idx = None
        if self.num_negatives is not None:
            contrast_idx = self._pools.draw(position, self.num_negatives, self.mode)
        for sample in views:
            if isinstance(sample, BaseDataElement):
                if 'sample_idx' in sample:
                    sample.pop('sample_idx')
                sample.set_metainfo(dict(sample_idx=position))
                if contrast_idx is not None:
                    sample.set_field(contrast_idx, 'contrast_idx')
            elif isinstance(sample, dict):
                sample['sample_idx'] = position
                if contrast_idx is not None:
                    sample['contrast_idx'] = contrast_idx
            else:
                found = sorted(map(str, item)) if isinstance(item, dict) else type(item).__name__
                raise TypeError(
                    'The sample at position '
                    f'{position} has no data_samples to hold its id (got '
                    f'{found}); end the pipeline with '
                    "dict(type='PackInputs')."
                )
        return item


class _ContrastPools:
    """Positives and negatives of each class, drawn as the originals do.

    Keeps one array of ids sorted by class. The negatives of a class are all
    of it but the class's own stretch, so no (C, N) table is stored unless
    ``percent`` cuts one out.
    """

    def __init__(self, labels: np.ndarray, percent: float) -> None:
        self.labels = labels
        self.counts = np.bincount(labels)
        self.starts = np.cumsum(self.counts) - self.counts
        self.order = np.argsort(labels, kind='stable')
        if (self.counts == len(labels)).any():
            raise ValueError(
                'num_negatives needs two classes at least, but all '
                f'{len(labels)} samples are of class {labels[0]}; leave '
                "num_negatives out and use exclude='instance' in the loss."
            )
        self.cut: Optional[List[np.ndarray]] = None
        if 0 < percent < 1:
            kept = int((len(labels) - self.counts[0]) * percent)
            if kept == 0:
                raise ValueError(
                    f'percent={percent} keeps none of the '
                    f'{len(labels) - self.counts[0]} negatives of class 0; '
                    'raise it, or use 1.0 for all.'
                )
            self.cut = [
                np.random.permutation(self.negatives(label))[:kept]
                for label in range(len(self.counts))
            ]

    def positives(self, label: int) -> np.ndarray:
        """Ids of a class, ascending."""
        start = self.starts[label]
        return self.order[start : start + self.counts[label]]

    def negatives(self, label: int) -> np.ndarray:
        """Ids of the other classes by class, then id; or what is kept."""
        if self.cut is not None:
            return self.cut[label]
        start = self.starts[label]
        return np.concatenate([self.order[:start], self.order[start + self.counts[label] :]])

    def draw(self, position: int, num_negatives: int, mode: str) -> torch.Tensor:
        """Positive and negatives of one sample, (1 + K,) int64."""
        label = self.labels[position]
        positive = position
        if mode == 'relax':
            positive = np.random.choice(self.positives(label), 1)[0]
        if self.cut is not None:
            pool, skip_from, skipped = self.cut[label], None, 0
        else:
            pool, skip_from = self.order, self.starts[label]
            skipped = self.counts[label]
        size = len(pool) - skipped
        # Drawing places rather than ids takes the same random numbers.
        chosen = np.random.choice(size, num_negatives, replace=num_negatives > size)
        if skip_from is not None:
            chosen = chosen + skipped * (chosen >= skip_from)
        return torch.from_numpy(np.concatenate([[positive], pool[chosen]]).astype(np.int64))


def _check_contrast_args(num_negatives: Optional[int], percent: float, mode: str) -> None:
    if mode not in ('exact', 'relax'):
        raise ValueError(f"mode must be 'exact' or 'relax', but got {mode!r}.")
    if isinstance(percent, bool) or not isinstance(percent, (int, float)):
        raise ValueError(
            f'percent must be a number (a fraction, not in 0 to 100), but got {percent!r}.'
        )
    if num_negatives is None:
        if mode != 'exact' or percent != 1.0:
            raise ValueError(
                f'percent={percent!r} and mode={mode!r} shape contrast_idx, '
                'which is drawn only when num_negatives is given; set '
                'num_negatives, or leave both out.'
            )
    elif (
        isinstance(num_negatives, bool)
        or not isinstance(num_negatives, (int, np.integer))
        or num_negatives < 1
    ):
        raise ValueError(
            f'num_negatives must be a positive int or None, but got {num_negatives!r}.'
        )


def _natural(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
        raise ValueError(f'{name} must be an int >= 0, but got {value!r}.')
    return int(value)


def _require(owner: Any, method: str) -> Any:
    if not hasattr(owner, method):
        raise TypeError(
            f'{type(owner).__name__} has no {method}; give it one, or use a '
            'data set derived from mmengine.dataset.BaseDataset.'
        )
    return getattr(owner, method)


def _stock(dataset: Any, *classes: type) -> bool:
    """Whether indexing it is one of these classes' own indexing."""
    return any(
        isinstance(dataset, cls) and type(dataset).__getitem__ is cls.__getitem__ for cls in classes
    )


def _locate(dataset: Any, index: int) -> Tuple[Any, int]:
    """Walk down through known wrappers to the owner of a sample."""
    while True:
        if _stock(dataset, ConcatDataset, TorchConcatDataset):
            ends = dataset.cumulative_sizes
            part = int(np.searchsorted(ends, index, side='right'))
            index -= ends[part - 1] if part else 0
            dataset = dataset.datasets[part]
        elif _stock(dataset, RepeatDataset):
            dataset = dataset.dataset
            index %= len(dataset)
        elif _stock(dataset, ClassBalancedDataset):
            index = dataset.repeat_indices[index]
            dataset = dataset.dataset
        elif _stock(dataset, Subset):
            index = int(dataset.indices[index])
            dataset = dataset.dataset
        elif _stock(dataset, KFoldDataset, SampleIndexDataset):
            dataset = dataset.dataset
        else:
            return dataset, index


def _read(owner: Any, index: int) -> Any:
    """Exactly the sample asked for, or None."""
    if _stock(owner, BaseDataset):
        item = owner.prepare_data(index)
        if item is None and owner.test_mode:
            raise RuntimeError(
                f'The pipeline of {type(owner).__name__} returned None for '
                f'its sample {index} with test_mode=True; check the image, '
                'or set test_mode=False so that another one is drawn.'
            )
        return item
    item = owner[index]
    if hasattr(owner, 'get_data_info'):
        wanted = owner.get_data_info(index).get('sample_idx')
        found = _own_id(item)
        if None not in (wanted, found) and wanted != found:
            return None
    return item


def _own_id(item: Any) -> Optional[int]:
    sample = item.get('data_samples') if isinstance(item, dict) else None
    if isinstance(sample, (list, tuple)) and sample:
        sample = sample[0]
    if isinstance(sample, (BaseDataElement, dict)):
        return sample.get('sample_idx')
    return None


def _gt_labels(dataset: Any) -> np.ndarray:
    """Labels of a set or wrapper by index arithmetic, (N,) int64."""
    if _stock(dataset, ConcatDataset, TorchConcatDataset):
        return np.concatenate([_gt_labels(part) for part in dataset.datasets])
    if _stock(dataset, RepeatDataset):
        return np.tile(_gt_labels(dataset.dataset), dataset.times)
    if _stock(dataset, ClassBalancedDataset):
        return _gt_labels(dataset.dataset)[dataset.repeat_indices]
    if _stock(dataset, Subset):
        return _gt_labels(dataset.dataset)[np.asarray(dataset.indices)]
    if _stock(dataset, KFoldDataset, SampleIndexDataset):
        return _gt_labels(dataset.dataset)
    return _owner_labels(dataset)


def _owner_labels(owner: Any) -> np.ndarray:
    name = type(owner).__name__
    try:
        if hasattr(owner, 'full_init'):
            owner.full_init()
        if (
            isinstance(owner, BaseDataset)
            and not owner.serialize_data
            and type(owner).get_data_info is BaseDataset.get_data_info
        ):
            # get_data_info would copy every image.
            labels = [info['gt_label'] for info in owner.data_list]
        elif hasattr(owner, 'get_gt_labels'):
            labels = owner.get_gt_labels()
        elif hasattr(owner, 'get_data_info'):
            labels = [owner.get_data_info(i)['gt_label'] for i in range(len(owner))]
        else:
            labels = owner.targets
    except (KeyError, AttributeError) as error:
        raise ValueError(
            f'{name} has no labels (no get_gt_labels, no gt_label in its '
            "annotations, no targets); add them, or use exclude='instance' "
            'in the loss, which needs none.'
        ) from error
    except ValueError as error:  # NumPy refuses ragged lists.
        raise ValueError(_multi_label_message(name, error)) from error
    return _as_classes(labels, name, len(owner))


def _as_classes(labels: Any, name: str, length: int) -> np.ndarray:
    try:
        array = np.asarray(labels)
    except ValueError as error:
        raise ValueError(_multi_label_message(name, error)) from error
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or array.dtype == object:
        raise ValueError(_multi_label_message(name, f'shape {array.shape}, dtype {array.dtype}'))
    if array.shape[0] != length:
        raise ValueError(
            f'{name} gives {array.shape[0]} labels for {length} '
            'samples; its get_gt_labels must return one each.'
        )
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f'{name} has labels of type {array.dtype}, expected integers; '
            "mend gt_label, or use exclude='instance' in the loss."
        )
    if length and array.min() < 0:
        raise ValueError(
            f'{name} has the label {array.min()} at sample '
            f'{array.argmin()}, expected classes >= 0; drop unlabelled '
            "samples, or use exclude='instance' in the loss."
        )
    return array.astype(np.int64)


def _multi_label_message(name: str, found: Any) -> str:
    return (
        f'{name} is multi-label or multi-task: one class a sample is '
        f"expected, found {found}. Use exclude='instance' in the loss, "
        'which needs no labels.'
    )
