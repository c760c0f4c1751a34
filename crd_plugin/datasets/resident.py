"""A data set that is kept on the training device as one tensor, and batches made of it there."""

import copy
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from mmcv.transforms import CenterCrop, LoadImageFromFile, Pad, RandomFlip, Resize
from mmengine.dataset import BaseDataset, Compose
from mmengine.device import get_device
from mmengine.dist import get_world_size
from mmengine.logging import MMLogger
from mmpretrain.datasets.transforms import PackInputs, RandomCrop, RandomResizedCrop, ResizeEdge
from mmpretrain.structures import DataSample
from torch import Tensor
from torch.utils.data import get_worker_info

from crd_plugin.ops import augment
from crd_plugin.registry import DATASETS, FUNCTIONS

from ._checks import named_sample, sample_name
from .sample_index import SampleIndexDataset

_LOADER = "num_workers=0, persistent_workers=False, collate_fn=dict(type='crd_plugin.whole_batch')"
_ONCE = (LoadImageFromFile, Resize, ResizeEdge, CenterCrop, Pad)
_ORDER = (
    f'any of {", ".join(kind.__name__ for kind in _ONCE)}; then RandomCrop or RandomResizedCrop; '
    'then RandomFlip; then PackInputs'
)
_DIMS = dict(horizontal=(3,), vertical=(2,), diagonal=(2, 3))


@DATASETS.register_module()
class ResidentDataset(SampleIndexDataset):
    """Keep a data set on the training device and make whole batches there.

    The images are read once, at the first batch. A batch, ``inputs`` ``(B, C, H, W)`` uint8 and
    ``data_samples``, is then one gather that crops and one flip: training images of the same
    distribution as with the plain data loader, images for evaluation identical to the bit.

    Use it in place of ``SampleIndexDataset``, as ``crd_plugin.fragments.keep_on_device`` does.

    What a sample looks like is a function of (seed, epoch, position): the same for any batch size,
    number of ranks and device. In a loop without epochs each pass through the set counts as one.
    Without ``RandomStateHook`` the seed is drawn from torch's generator.

    Args:
        dataset (Dataset or dict): The data set to keep, or its config. An image that wrappers
            repeat is kept once.
        device (str, optional): Where to keep it, such as ``'cuda:1'``. Defaults to None: where
            MMEngine puts the model of this rank.
        complete (bool): As for ``SampleIndexDataset``. Defaults to False.

    Raises:
        ValueError: If a transform is not supported, joined data sets crop or flip differently,
            images differ in size, only some have a label, or as for ``SampleIndexDataset``.
        TypeError: If a data set is not derived from MMEngine's ``BaseDataset``.
        RuntimeError: If a worker of a data loader reads it.
    """

    def __init__(
        self, dataset: Any, device: str | torch.device | None = None, complete: bool = False
    ) -> None:
        super().__init__(dataset, complete=complete)
        self.device = device if device is None else torch.device(device)
        self._pipelines = [ResidentPipeline(owner) for owner in self._sources.owners]
        if any(pipeline.random != self._pipelines[0].random for pipeline in self._pipelines):
            raise ValueError(
                'The joined data sets crop or flip differently, but ResidentDataset does the same '
                'to a whole batch; give them the same RandomCrop, RandomResizedCrop and RandomFlip.'
            )
        self._seed: int | None = None
        self._epoch = 0
        self._fetched = 0
        self._held: _Held | None = None
        self._draws: dict[str, Tensor] = {}
        self._drawn_for: tuple[int, int, int] | None = None

    def set_seed(self, seed: int) -> None:
        """Set the seed of augmentation, not negative; ``RandomStateHook`` calls this."""
        self._seed, self._fetched = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, from 0, before the data loader is iterated; as :meth:`set_seed`."""
        self._epoch, self._fetched = epoch, 0

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """Make the batch of some positions; torch's data loader calls this if it exists."""
        if get_worker_info() is not None:
            raise RuntimeError(
                'ResidentDataset was read by a worker of the data loader, which would keep all '
                f'images once more; set dataloader=dict({_LOADER}).'
            )
        if self._held is None:
            self._held = self._read_all()
        held, ids = self._held, list(indices)
        device = held.images.device
        sample_idx = torch.tensor(ids, dtype=torch.int64).to(device, non_blocking=True)
        draws = {name: table[sample_idx] for name, table in self._epoch_draws(held.images).items()}
        self._fetched += len(ids)
        samples = []
        for index in ids:  # Several times as fast as DataSample(metainfo=...), which copies deeply.
            samples.append(DataSample())
            for name, value in held.metainfo[index].items():
                samples[-1].set_field(value, name, field_type='metainfo')
        if held.labels is not None:
            for sample, label in zip(samples, held.labels[sample_idx].split(1)):
                sample.set_field(label, 'gt_label')
        return _Batch(
            inputs=self._pipelines[0].make(held.images, held.rows[sample_idx], draws),
            data_samples=samples,
        )

    def __getstate__(self) -> dict:
        """Leave the images out of a copy or pickle, which reads them again."""
        return {**self.__dict__, '_held': None, '_draws': {}, '_drawn_for': None}

    def _read_all(self) -> '_Held':
        """Read every image once and put them on the device."""
        start = time.perf_counter()
        owners, owner_of, index_of = self._sources
        # Each sample once, whatever wrappers repeat it, and its row for every position.
        places, rows = np.unique(np.stack([owner_of, index_of], 1), axis=0, return_inverse=True)
        labels, metainfo = [], []
        for row, (number, index) in enumerate(places):
            pipeline, owner, index = self._pipelines[number], owners[number], int(index)
            with named_sample(owner, index):
                image, label, meta = pipeline.read(owner.get_data_info(index))
            if row == 0:
                images = torch.empty((len(places), *image.shape), dtype=torch.uint8)
            if image.shape != images.shape[1:]:
                raise ValueError(
                    f'{sample_name(owner, index)} has shape {tuple(image.shape)}, the first one '
                    f'{tuple(images.shape[1:])}; make the sizes equal with Resize or CenterCrop at '
                    'the start of the pipeline.'
                )
            images[row] = image
            labels.append(label)
            metainfo.append(meta)
        unlabeled = labels.count(None)
        if 0 < unlabeled < len(labels):
            raise ValueError(
                f'{unlabeled} of {len(labels)} images have no gt_label; give all of them one, or '
                'none.'
            )
        device = torch.device(self.device or get_device())
        rows = rows.reshape(-1)  # NumPy 2.0 returns two axes.
        MMLogger.get_current_instance().info(
            f'{len(images):,} images of shape {tuple(images.shape[1:])} read in '
            f'{time.perf_counter() - start:.1f} s, now {images.nbytes / 1e6:,.2f} MB on {device}.'
        )
        return _Held(
            images=images.to(device),
            rows=torch.from_numpy(rows).to(device),
            labels=None if unlabeled else torch.tensor(labels)[rows].to(device),
            metainfo=[{**metainfo[row], 'sample_idx': idx} for idx, row in enumerate(rows)],
        )

    def _epoch_draws(self, images: Tensor) -> dict[str, Tensor]:
        """Return what is cropped and flipped in this epoch, for every position."""
        if not self._pipelines[0].random:
            return {}
        if self._seed is None:
            self._seed = int(torch.randint(2**31, ()))
        # Ranks share the set, so this many samples are a pass through it.
        share = -(-len(self) // get_world_size())
        key = (self._seed, self._epoch, self._fetched // share)
        if key != self._drawn_for:
            words = np.random.SeedSequence(key).generate_state(2)
            seed = int(words[0]) << 32 | int(words[1])
            draws = self._pipelines[0].draw(len(self), (images.size(2), images.size(3)), seed)
            self._draws = {
                name: table.to(images.device, non_blocking=True) for name, table in draws.items()
            }
            self._drawn_for = key
        return self._draws


@FUNCTIONS.register_module()
def whole_batch(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch of :class:`ResidentDataset` as it is; a collate function for no other."""
    if not isinstance(batch, _Batch):
        raise TypeError(
            f'whole_batch expects the batch of a ResidentDataset, but got a '
            f'{type(batch).__name__}; ResidentDataset has to be the outermost data set of the '
            'loader. Use default_collate for others.'
        )
    return batch


class _Batch(dict):
    """A batch on the device, which other collate functions refuse."""

    def __missing__(self, key: Any) -> Any:
        if key == 0:
            raise TypeError(
                'ResidentDataset gives whole batches, which collate_fn must leave alone; set '
                f'dataloader=dict({_LOADER}).'
            )
        raise KeyError(key)

    def pin_memory(self) -> '_Batch':
        """Stay on the device; torch calls this if the loader pins memory."""
        return self


class _Held(NamedTuple):
    """What is kept on the device: each image once, and the rest for each of N positions."""

    images: Tensor  # (R, C, H, W) uint8
    rows: Tensor  # (N,) int64, in [0, R)
    labels: Tensor | None  # (N,) int64
    metainfo: list[dict]


class ResidentPipeline:
    """Apply the pipeline of a data set to whole batches.

    Its transforms load, resize, pad and pack each image once. The random ones, at most one crop and
    one flip, are replaced by functions of batches that draw from the same distributions.
    """

    def __init__(self, dataset: Any) -> None:
        self.owner = type(dataset).__name__
        for method in ('__getitem__', 'prepare_data'):
            if getattr(type(dataset), method, None) is not getattr(BaseDataset, method):
                raise TypeError(
                    f'{self.owner} does not use {method} of mmengine.dataset.BaseDataset, so it is '
                    'not known what it does to a sample; use it without ResidentDataset.'
                )
        rest = list(dataset.pipeline.transforms)
        pack = self._take(rest, PackInputs)
        if pack is None:
            raise ValueError(f"The pipeline of {self.owner} must end with dict(type='PackInputs').")
        self.flip = self._take(rest, RandomFlip)
        self.crop = self._take(rest, RandomCrop, RandomResizedCrop)
        # In words, to be compared; empty if images never change.
        self.random = [repr(kind) for kind in (self.crop, self.flip) if kind is not None]
        for transform in rest:
            if type(transform) not in _ONCE:
                self._refuse(transform, f'is unknown or out of place; the order is: {_ORDER}')
        if self.flip is not None and not isinstance(self.flip.direction, str):
            self._refuse(self.flip, 'has several directions, expected one')
        if isinstance(self.crop, RandomResizedCrop):
            given = self.crop.backend, self.crop.interpolation
            if given != ('pillow', 'bilinear'):
                self._refuse(self.crop, f"has {given}, expected ('pillow', 'bilinear')")
        if isinstance(self.crop, RandomCrop):
            # The transform itself pads, and then takes the whole padded image as its crop. In
            # mmpretrain 1.2.0 it ignores padding_mode unless pad_if_needed.
            pad = copy.copy(self.crop)
            pad.rand_crop_params = _whole_image
            rest.append(pad)
        self._once = Compose([*rest, pack])

    def read(self, info: dict) -> tuple[Tensor, int | None, dict]:
        """Do what is done once; return image, class or None, and meta information that stays."""
        item = self._once(info) or {}
        image = item.get('inputs')
        if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.dim() != 3:
            found = getattr(image, 'dtype', type(image).__name__)
            raise ValueError(f'its image is of type {found}, expected a uint8 array')
        sample = item['data_samples']
        label = sample.get('gt_label')
        if set(sample.keys()) - {'gt_label'} or (label is not None and label.numel() != 1):
            fields = {key: value.tolist() for key, value in sample.items()}
            raise ValueError(f'it has {fields}, but ResidentDataset keeps one class per sample')
        metainfo = {} if self.random else sample.metainfo
        return image, None if label is None else int(label), metainfo

    def draw(self, count: int, size: tuple[int, int], seed: int) -> dict[str, Tensor]:
        """Draw ``box`` ``(count, 2 or 4)`` of the crop and ``flip`` ``(count,)`` of each image."""
        columns = 0 if self.crop is None else 2 * getattr(self.crop, 'max_attempts', 0) + 2
        columns += self.flip is not None
        generator = torch.Generator().manual_seed(seed)
        uniform = torch.rand(count, columns, dtype=torch.float64, generator=generator)
        draws = {}
        if self.flip is not None:
            draws['flip'] = uniform[:, -1] < self.flip.prob
            uniform = uniform[:, :-1]
        if isinstance(self.crop, RandomCrop):
            places = torch.tensor(size) - torch.tensor(self._target(size)) + 1
            draws['box'] = (uniform * places).long()
        elif self.crop is not None:
            central = copy.copy(self.crop)
            central.max_attempts = 0  # It then takes the box that is used when no attempt fits.
            draws['box'] = augment.random_boxes(
                uniform,
                size,
                self.crop.crop_ratio_range,
                self.crop.aspect_ratio_range,
                central.rand_crop_params(np.empty((*size, 1), np.uint8)),
            )
        return draws

    def make(self, images: Tensor, rows: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """Make a batch of some rows of the images from :meth:`read`, with draws of their own."""
        if isinstance(self.crop, RandomCrop):
            batch = augment.crop(images, rows, draws['box'], self._target(images.shape[2:]))
        elif self.crop is not None:
            batch = augment.resized_crop(images, rows, draws['box'], self.crop.scale)
        else:
            batch = images[rows]
        if self.flip is not None:
            flipped = batch.flip(_DIMS[self.flip.direction])
            batch = torch.where(draws['flip'][:, None, None, None], flipped, batch)
        return batch

    def _target(self, size: Sequence[int]) -> tuple[int, int]:
        """Height and width after ``RandomCrop``, which enlarges nothing."""
        return min(size[0], self.crop.crop_size[0]), min(size[1], self.crop.crop_size[1])

    def _refuse(self, transform: Any, problem: str) -> None:
        raise ValueError(
            f'{type(transform).__name__} in the pipeline of {self.owner} {problem}. Change the '
            'pipeline, or use the data set without ResidentDataset.'
        )

    @staticmethod
    def _take(rest: list[Any], *kinds: type) -> Any:
        """Remove and return the last transform if it is of one of these classes, else None."""
        return rest.pop() if rest and type(rest[-1]) in kinds else None


def _whole_image(image: np.ndarray) -> tuple[int, int, int, int]:
    return 0, 0, image.shape[0], image.shape[1]
