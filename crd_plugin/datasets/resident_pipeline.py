"""The parts of a pipeline: what is done to each image once, and what to whole batches."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmcv.transforms import CenterCrop, LoadImageFromFile, Pad, RandomFlip, Resize
from mmengine.dataset import BaseDataset, Compose
from mmpretrain.datasets.transforms import PackInputs, RandomCrop, RandomResizedCrop, ResizeEdge
from torch import Tensor

from crd_plugin.ops import augment

_ONCE = (LoadImageFromFile, Resize, ResizeEdge, CenterCrop, Pad)
_ORDER = (
    f'any of {", ".join(kind.__name__ for kind in _ONCE)}; then RandomCrop or RandomResizedCrop; '
    'then RandomFlip; then PackInputs'
)
_DIMS = dict(horizontal=(3,), vertical=(2,), diagonal=(2, 3))


class ResidentPipeline:
    """Apply an mmpretrain pipeline to whole batches.

    Its transforms load, resize, pad and pack each image once. The random ones, at most one crop and
    one flip, are replaced by functions of batches that draw from the same distributions.

    Args:
        dataset (BaseDataset): Data set with the pipeline.

    Raises:
        TypeError: If the data set does not read samples as MMEngine does.
        ValueError: If a transform, its place or an argument is not supported.
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
