"""A data set that is kept on the training device as one tensor."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.device import get_device
from mmengine.dist import get_world_size
from mmengine.logging import MMLogger
from mmpretrain.structures import DataSample
from torch import Tensor
from torch.utils.data import get_worker_info

from crd_plugin.registry import DATASETS, FUNCTIONS

from ._checks import named_sample, sample_name
from .resident_pipeline import ResidentPipeline
from .sample_index import SampleIndexDataset, build

_LOADER = "num_workers=0, persistent_workers=False, collate_fn=dict(type='crd_plugin.whole_batch')"


@DATASETS.register_module()
class ResidentDataset(SampleIndexDataset):
    """Keep a data set on the training device and make whole batches there.

    The images are read once, at the first batch. A batch, ``inputs`` ``(B, C, H, W)`` uint8 and
    ``data_samples``, is then one gather that crops and one flip: training images of the same
    distribution as with the plain data loader, images for evaluation identical to the bit. See
    :class:`ResidentPipeline` for the transforms that it knows.

    Use it in place of ``SampleIndexDataset``, with ``num_workers=0, persistent_workers=False,
    collate_fn=dict(type='crd_plugin.whole_batch')`` for the data loader.

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
            images differ in size, only some have a label, ``contrast_idx`` is asked for, or as for
            ``SampleIndexDataset``.
        TypeError: If a data set is not derived from MMEngine's ``BaseDataset``.
        RuntimeError: If a worker of a data loader reads it.
    """

    def __init__(
        self, dataset: Any, device: str | torch.device | None = None, complete: bool = False
    ) -> None:
        dataset = build(dataset)
        if isinstance(dataset, SampleIndexDataset):
            complete = complete or dataset.complete
            if dataset.num_negatives is not None:
                raise ValueError(
                    f'num_negatives is {dataset.num_negatives}, but ResidentDataset gives no '
                    'contrast_idx; leave it out, CRDLoss then draws on the device.'
                )
            dataset = dataset.dataset
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
