"""A data set that lives on the training device as one tensor."""

import time
from collections.abc import Mapping
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.device import get_device
from mmengine.dist import get_world_size
from mmengine.logging import MMLogger
from torch import Tensor
from torch.utils.data import get_worker_info

from crd_plugin.ops import augment
from crd_plugin.registry import DATASETS, FUNCTIONS
from crd_plugin.structures import BatchSamples

from .resident_pipeline import ResidentPipeline
from .sample_index import SampleIndexDataset, _locate

_LOADER = "num_workers=0, persistent_workers=False, collate_fn=dict(type='crd_plugin.whole_batch')"


@DATASETS.register_module()
class ResidentDataset:
    """Holds a data set on the training device and makes whole batches there.

    For sets that fit: CIFAR-100 takes 0.24 GB. The images are read once, at
    the first batch, into one uint8 tensor. A batch is then one gather that
    crops, and one flip; there are no workers, no copies to the device and no
    object a sample. The distribution is that of the wrapped set's mmpretrain
    pipeline, images for evaluation are bit-identical, and normalisation stays
    with the data preprocessor. See :class:`ResidentPipeline` for the
    transforms that it knows. A single item, ``dataset[0]``, comes through the
    wrapped set's own pipeline and reads nothing else.

    It stands in the place of ``SampleIndexDataset``: each sample has its
    position in the wrapped set as ``sample_idx``. The data loader remains
    torch's, with MMEngine's sampler, so shards of ranks and the order after
    resuming are what they were. Of the loader it needs ``num_workers=0,
    persistent_workers=False, collate_fn=dict(type='crd_plugin.whole_batch')``
    and, to be fast, the model's data preprocessor has to be
    ``crd_plugin.ResidentDataPreprocessor``. ``configs/_base_/datasets/
    *_resident.py`` say all this.

    What a sample looks like is a function of (seed, epoch, position): the
    same for any batch size, number of ranks and device. A whole epoch is
    drawn at once. In a loop without epochs each pass through the set counts.
    Without ``RandomStateHook`` the seed is drawn from torch's generator. A
    sampler that repeats a sample within a pass, as ``RepeatAugSampler`` does,
    gets the same image again.

    Args:
        dataset (Dataset or dict): The set to hold, or its config; wrappers
            (Concat, Repeat, ClassBalanced, KFold, Subset) may be around it.
            An image that stands in several places is held once.
        device (str, optional): Where to hold it, such as ``'cuda:1'``.
            Defaults to None: where MMEngine puts the model of this rank.

    Raises:
        ValueError: If a transform is not supported, the parts of the set are
            transformed differently, images differ in size, only some have a
            label, or ``contrast_idx`` is asked for.
        TypeError: If the set is not derived from MMEngine's ``BaseDataset``.
        RuntimeError: If a worker of a data loader reads it.
    """

    def __init__(self, dataset: Any, device: Optional[Union[str, torch.device]] = None) -> None:
        if isinstance(dataset, Mapping):
            dataset = DATASETS.build(dataset)
        if not isinstance(dataset, SampleIndexDataset):
            dataset = SampleIndexDataset(dataset)
        if dataset.num_negatives is not None:
            raise ValueError(
                f'num_negatives is {dataset.num_negatives}, but '
                'ResidentDataset gives no contrast_idx; leave it out, '
                'CRDLoss then draws on the device.'
            )
        self.dataset = dataset
        self.device = _parse_device(device)
        _pipelines(dataset)  # complain at once, not at the first batch
        self._seed: Optional[int] = None
        self._epoch = 0
        self._fetched = 0
        self._held: Optional[_Held] = None
        self._draws: Dict[str, Tensor] = {}
        self._drawn_for: Optional[Tuple[int, int, int]] = None

    @property
    def metainfo(self) -> dict:
        """dict: A copy of the wrapped set's meta information."""
        return self.dataset.metainfo

    @property
    def num_samples(self) -> int:
        """int: Positions, hence rows that a memory bank needs."""
        return len(self)

    def full_init(self) -> None:
        """Load the annotations, but not yet the images."""
        self.dataset.full_init()

    def get_gt_labels(self) -> np.ndarray:
        """Class of every position, without reading images.

        Returns:
            np.ndarray: (N,), int64.

        Raises:
            ValueError: If a sample has no label or more than one.
        """
        return self.dataset.get_gt_labels()

    def set_seed(self, seed: int) -> None:
        """Make augmentation a function of this seed.

        Args:
            seed (int): Seed, not negative.
        """
        self.dataset.set_seed(seed)
        self._seed, self._fetched = int(seed), 0

    def set_epoch(self, epoch: int) -> None:
        """Tell the epoch, before the loader is iterated.

        Args:
            epoch (int): Epoch, counted from 0.
        """
        self.dataset.set_epoch(epoch)
        self._epoch, self._fetched = int(epoch), 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, idx: int) -> Any:
        """One sample through the wrapped set's own pipeline, on the CPU.

        Args:
            idx (int): Position; a negative one counts from the end.

        Returns:
            dict: ``inputs`` and ``data_samples`` of one sample.
        """
        return self.dataset[idx]

    def __getitems__(self, indices: Sequence[int]) -> Dict[str, Any]:
        """Make a batch; torch's data loader calls this when it is there.

        Args:
            indices (Sequence[int]): Positions.

        Returns:
            dict: ``inputs`` ``(B, C, H, W)`` uint8 on the device, and
            ``data_samples``, a :class:`BatchSamples`.
        """
        if get_worker_info() is not None:
            raise RuntimeError(
                'ResidentDataset was read by a worker of the data loader, '
                'which would hold all images once more; set '
                f'dataloader=dict({_LOADER}).'
            )
        if self._held is None:
            self._held = self._read()
        held = self._held
        ids = list(indices)
        if ids and not 0 <= min(ids) <= max(ids) < len(self):
            raise IndexError(
                f'Positions {min(ids)} to {max(ids)} are not all '
                f'in the data set of {len(self)} samples.'
            )
        sample_idx = _upload(torch.tensor(ids, dtype=torch.int64), held.images.device)
        draws = {name: table[sample_idx] for name, table in self._epoch_draws(held).items()}
        self._fetched += len(ids)
        rows = sample_idx if held.rows is None else held.rows[sample_idx]
        labels = None if held.labels is None else held.labels[rows]
        metainfo = None
        if held.metainfo is not None:
            metainfo = [held.metainfo[index] for index in ids]
        return _Batch(
            inputs=held.pipeline.make(held.images, rows, draws),
            data_samples=BatchSamples(ids, sample_idx, labels, metainfo),
        )

    def __getstate__(self) -> dict:
        """A copy or pickle reads the images anew."""
        return {**self.__dict__, '_held': None, '_draws': {}, '_drawn_for': None}

    def _read(self) -> '_Held':
        """Read every image once and put them on the device."""
        start = time.perf_counter()
        self.full_init()
        pipelines = _pipelines(self.dataset)
        places = [_locate(self.dataset.dataset, position) for position in range(len(self))]
        row_of: Dict[Tuple[int, int], int] = {}
        rows = [row_of.setdefault((id(owner), index), len(row_of)) for owner, index in places]
        images, labels, metainfo = None, [], []
        for (owner, index), row in zip(places, rows):
            if row < len(labels):
                continue  # the same sample at another position
            sample = _pipeline_for(pipelines, owner).read(owner.get_data_info(index))
            image = sample.image.transpose(2, 0, 1)
            if images is None:
                images = np.empty((len(row_of), *image.shape), np.uint8)
            if image.shape != images.shape[1:]:
                raise ValueError(
                    f'Sample {index} of {type(owner).__name__} is '
                    f'{image.shape[1]}x{image.shape[2]}, the first one '
                    f'{images.shape[2]}x{images.shape[3]} pixels; make them '
                    'equal with Resize or CenterCrop at the start of the '
                    'pipeline.'
                )
            images[row] = image
            labels.append(sample.label)
            metainfo.append(sample.metainfo)
        device = self.device or _device_of_rank()
        pipeline = next(iter(pipelines.values()))
        pipeline.prepare(images.shape[2:], device)
        held = _Held(
            pipeline=pipeline,
            images=torch.from_numpy(images).to(device),
            labels=_labels(labels, device),
            rows=None,
            metainfo=None,
            share=-(-len(self) // get_world_size()),
        )
        if len(row_of) < len(self):
            held = held._replace(rows=torch.tensor(rows, device=device))
        if not pipeline.is_random:
            held = held._replace(metainfo=[metainfo[row] for row in rows])
        MMLogger.get_current_instance().info(
            f'{len(row_of):,} images of {"x".join(map(str, images.shape[1:]))}'
            f' read in {time.perf_counter() - start:.1f} s, now '
            f'{images.nbytes / 1e6:,.2f} MB on {device}.'
        )
        return held

    def _epoch_draws(self, held: '_Held') -> Dict[str, Tensor]:
        """What is cropped and flipped, for all positions."""
        if not held.pipeline.is_random:
            return {}
        if self._seed is None:
            self._seed = int(torch.randint(2**31, ()))
        # Ranks share the set, so that many samples are a pass through it.
        key = (self._seed, self._epoch, self._fetched // held.share)
        if key != self._drawn_for:
            words = np.random.SeedSequence(key).generate_state(2)
            uniform = augment.uniform_table(
                len(self), held.pipeline.num_draws, int(words[0]) << 32 | int(words[1])
            )
            self._draws = held.pipeline.draw(_upload(uniform, held.images.device))
            self._drawn_for = key
        return self._draws


@FUNCTIONS.register_module()
def whole_batch(batch: Dict[str, Any]) -> Dict[str, Any]:
    """Collate function for a data set that makes whole batches.

    Args:
        batch (dict): What :class:`ResidentDataset` gives.

    Returns:
        dict: The same.

    Raises:
        TypeError: If it comes from another data set.
    """
    if not isinstance(batch, _Batch):
        raise TypeError(
            'whole_batch takes what a ResidentDataset makes, but got a '
            f'{type(batch).__name__}; it has to be the outermost data set of '
            'the loader. Use default_collate for others.'
        )
    return batch


class _Batch(dict):
    """A batch on the device, which other collate functions cannot take."""

    def __missing__(self, key: Any) -> Any:
        if key == 0:
            raise TypeError(
                'ResidentDataset gives whole batches, which collate_fn must '
                f'leave alone; set dataloader=dict({_LOADER}).'
            )
        raise KeyError(key)

    def pin_memory(self) -> '_Batch':
        """It is where it is needed; torch asks when the loader pins."""
        return self


class _Held(NamedTuple):
    """What is kept.

    Attributes:
        pipeline (ResidentPipeline): Makes the batches.
        images (Tensor): ``(R, C, H, W)`` uint8, each image once.
        labels (Tensor, optional): Their classes, ``(R,)`` int64.
        rows (Tensor, optional): Image of each position, ``(N,)`` int64; None
            where they are the same.
        metainfo (list, optional): Of each position, where nothing is random.
        share (int): Samples of a rank in one pass through the set.
    """

    pipeline: ResidentPipeline
    images: Tensor
    labels: Optional[Tensor]
    rows: Optional[Tensor]
    metainfo: Optional[List[dict]]
    share: int


def _parse_device(device: Optional[Union[str, torch.device]]) -> Optional[torch.device]:
    if device is None:
        return None
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device must be None or a device such as 'cuda:0' or 'cpu', but got {device!r}."
        ) from error


def _device_of_rank() -> torch.device:
    """Where MMEngine puts the model."""
    device = torch.device(get_device())
    if device.type == 'cuda':
        return torch.device('cuda', torch.cuda.current_device())
    return device


def _upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on the device, without waiting for it."""
    if device.type == 'cuda':
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _labels(labels: List[Optional[int]], device: torch.device) -> Optional[Tensor]:
    missing = sum(label is None for label in labels)
    if missing == len(labels):
        return None
    if missing:
        raise ValueError(
            f'{missing} of {len(labels)} images have no gt_label; give all of them one, or none.'
        )
    return torch.tensor(labels, dtype=torch.int64, device=device)


def _owners(dataset: Any) -> Iterator[Any]:
    """The data sets inside wrappers."""
    if isinstance(dataset, SampleIndexDataset):
        raise ValueError(
            'A SampleIndexDataset lies inside a wrapper inside '
            'ResidentDataset, which numbers the samples itself; leave it out.'
        )
    inner = getattr(dataset, 'datasets', None)
    if inner is None and hasattr(dataset, 'dataset'):
        inner = [dataset.dataset]
    if inner is None:
        yield dataset
    else:
        for part in inner:
            yield from _owners(part)


def _pipelines(dataset: SampleIndexDataset) -> Dict[int, ResidentPipeline]:
    """Pipelines of the data sets inside, by the ``id`` of each."""
    pipelines: Dict[int, ResidentPipeline] = {}
    for owner in _owners(dataset.dataset):
        name = type(owner).__name__
        for method in ('__getitem__', 'prepare_data'):
            if getattr(type(owner), method, None) is not getattr(BaseDataset, method):
                raise TypeError(
                    f'{name} has no {method} of mmengine.dataset.BaseDataset, '
                    'so what it does to a sample is not known; use it without '
                    'ResidentDataset.'
                )
        pipelines[id(owner)] = ResidentPipeline(owner.pipeline.transforms, name)
    first = next(iter(pipelines.values()))
    if any(pipeline != first for pipeline in pipelines.values()):
        raise ValueError(
            'The joined data sets crop or flip differently, but '
            'ResidentDataset does the same to a whole batch; give them the '
            'same RandomCrop, RandomResizedCrop and RandomFlip.'
        )
    return pipelines


def _pipeline_for(pipelines: Dict[int, ResidentPipeline], owner: Any) -> ResidentPipeline:
    if id(owner) not in pipelines:
        raise TypeError(
            f'{type(owner).__name__} is a wrapper that ResidentDataset does '
            'not know; use it without ResidentDataset.'
        )
    return pipelines[id(owner)]
