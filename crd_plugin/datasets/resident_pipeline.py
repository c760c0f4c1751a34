"""A pipeline taken apart: what is done once, and what is done per batch."""

import copy
from typing import Any, Dict, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from mmcv.transforms import CenterCrop, LoadImageFromFile, Pad, RandomFlip, Resize
from mmpretrain.datasets.transforms import PackInputs, RandomCrop, RandomResizedCrop, ResizeEdge
from torch import Tensor

from crd_plugin.ops import augment

_ONCE = (LoadImageFromFile, Resize, ResizeEdge, CenterCrop, Pad)
_KNOWN = _ONCE + (RandomCrop, RandomResizedCrop, RandomFlip, PackInputs)
_DIMS = dict(horizontal=(3,), vertical=(2,), diagonal=(2, 3))


class Sample(NamedTuple):
    """What is kept of a sample.

    Attributes:
        image (np.ndarray): ``(H, W, C)`` uint8, random padding included.
        label (int, optional): Its class.
        metainfo (dict, optional): For the data sample, where nothing is
            random.
    """

    image: np.ndarray
    label: Optional[int]
    metainfo: Optional[Dict[str, Any]]


class ResidentPipeline:
    """Does to whole batches what an mmpretrain pipeline does to samples.

    The pipeline's own transforms read and resize the images, once. Its
    random ones follow, in this order, each at most once: ``RandomCrop`` or
    ``RandomResizedCrop``, ``RandomFlip``. They are drawn from the same
    distributions as the originals draw from.

    ``RandomCrop`` pads the image first, which is done once too, by the
    original. In mmpretrain 1.2.0 that pads with ``pad_val`` whatever its
    ``padding_mode`` says, unless ``pad_if_needed``.

    Args:
        transforms (Sequence): Transforms of the pipeline.
        owner (str): Name of the data set, for messages.

    Raises:
        ValueError: If a transform is none of those above, or has an argument
            that is not supported.
    """

    def __init__(self, transforms: Sequence[Any], owner: str) -> None:
        self._owner = owner
        rest = list(transforms)
        for transform in rest:
            if type(transform) not in _KNOWN:
                self._refuse(
                    transform,
                    'is none of the transforms that can be done to '
                    f'whole batches ({_names(_KNOWN)})',
                )
        self._pack = self._take(rest, PackInputs)
        if self._pack is None:
            raise ValueError(f"The pipeline of {owner} must end with dict(type='PackInputs').")
        self._flip = self._take(rest, RandomFlip)
        self._crop = self._take(rest, RandomCrop, RandomResizedCrop)
        for transform in rest:
            if type(transform) not in _ONCE:
                self._refuse(
                    transform,
                    'is out of place: the order is '
                    f'{_names(_ONCE)}, then one of RandomCrop and '
                    'RandomResizedCrop, then RandomFlip, then PackInputs',
                )
        self._once = rest
        self._check_arguments()
        if isinstance(self._crop, RandomCrop):
            # The original's own padding, and the whole of its result.
            pad = copy.copy(self._crop)
            pad.rand_crop_params = lambda img: (0, 0, *img.shape[:2])
            self._once = rest + [pad]
        self._size: Tuple[int, int] = (0, 0)
        self._weights: Optional[Tuple[Tensor, Tensor]] = None

    @property
    def is_random(self) -> bool:
        """bool: Whether the images of two epochs differ."""
        return not (self._crop is None and self._flip is None)

    def __eq__(self, other: Any) -> bool:
        """Whether the same is done to a batch."""
        return isinstance(other, ResidentPipeline) and all(
            type(mine) is type(its) and (mine is None or vars(mine) == vars(its))
            for mine, its in ((self._crop, other._crop), (self._flip, other._flip))
        )

    def read(self, info: dict) -> Sample:
        """Do to one sample what is done once.

        Args:
            info (dict): The data set's annotation of it.

        Returns:
            Sample: What to keep.

        Raises:
            ValueError: If it has no uint8 image or more than one label.
        """
        results = info
        for transform in self._once:
            results = transform(results)
            if results is None:
                raise ValueError(
                    f'{type(transform).__name__} gives None for sample '
                    f'{info.get("sample_idx")} of {self._owner}; take the '
                    'broken image out of the data set.'
                )
        image = results.get('img')
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
            kind = getattr(image, 'dtype', type(image).__name__)
            raise ValueError(
                f'The pipeline of {self._owner} gives an image '
                f'of type {kind}, expected a uint8 array.'
            )
        for key in ('gt_score', 'mask'):
            if key in results:
                raise ValueError(
                    f'The samples of {self._owner} have a {key}, which '
                    'ResidentDataset would lose; use the plain data set.'
                )
        metainfo = None
        if not self.is_random:
            keys = self._pack.meta_keys
            metainfo = {key: results[key] for key in keys if key in results}
        return Sample(
            image if image.ndim == 3 else image[..., None],
            self._label(results.get('gt_label')),
            metainfo,
        )

    def prepare(self, size: Tuple[int, int], device: torch.device) -> None:
        """Get ready for images of one size.

        Args:
            size (tuple): Height and width of what :meth:`read` gives.
            device (torch.device): Where the batches are made.
        """
        self._size = size
        if isinstance(self._crop, RandomResizedCrop):
            down, across = (
                augment.resize_weights(full, target).to(device)
                for full, target in zip(size, self._crop.scale)
            )
            self._weights = down, across

    @property
    def num_draws(self) -> int:
        """int: Random numbers that a sample needs."""
        count = int(self._flip is not None)
        if isinstance(self._crop, RandomCrop):
            count += 2
        elif self._crop is not None:
            count += 2 * self._crop.max_attempts + 2
        return count

    def draw(self, uniform: Tensor) -> Dict[str, Tensor]:
        """Decide what is cropped and flipped.

        Args:
            uniform (Tensor): ``(N, num_draws)`` float64 in [0, 1).

        Returns:
            dict: ``box`` ``(N, 2)`` or ``(N, 4)`` int64 and ``flip`` ``(N,)``
            bool, as far as there are such transforms.
        """
        draws = {}
        if self._flip is not None:
            draws['flip'] = uniform[:, -1] < self._flip.prob
            uniform = uniform[:, :-1]
        if isinstance(self._crop, RandomCrop):
            rooms = [full - target + 1 for full, target in zip(self._size, self._target())]
            draws['box'] = torch.stack(
                [augment.random_offsets(uniform[:, side], room) for side, room in enumerate(rooms)],
                1,
            )
        elif self._crop is not None:
            draws['box'] = augment.random_boxes(
                uniform,
                self._size,
                self._crop.crop_ratio_range,
                self._crop.aspect_ratio_range,
                self._fallback(),
            )
        return draws

    def make(self, images: Tensor, rows: Tensor, draws: Dict[str, Tensor]) -> Tensor:
        """Make a batch.

        Args:
            images (Tensor): All that is kept, ``(N, C, H, W)`` uint8.
            rows (Tensor): Of the batch, ``(B,)`` int64.
            draws (dict): Of :meth:`draw`, of these rows.

        Returns:
            Tensor: ``(B, C, height, width)`` uint8.
        """
        if self._weights is not None:
            batch = augment.resized_crop(images, rows, draws['box'], self._weights)
        elif self._crop is not None:
            top, left = draws['box'].unbind(1)
            batch = augment.crop(images, rows, top, left, self._target())
        else:
            batch = images[rows]
        if self._flip is not None:
            batch = augment.flip(batch, draws['flip'], _DIMS[self._flip.direction])
        return batch

    def _target(self) -> Tuple[int, int]:
        """Height and width after ``RandomCrop``, which enlarges nothing."""
        height, width = map(min, self._size, self._crop.crop_size)
        return height, width

    def _fallback(self) -> Tuple[int, int, int, int]:
        """The box that the original takes when no attempt fits."""
        central = copy.copy(self._crop)
        central.max_attempts = 0
        return central.rand_crop_params(np.empty((*self._size, 1), np.uint8))

    def _label(self, label: Any) -> Optional[int]:
        if label is None:
            return None
        array = np.asarray(label)
        if array.size != 1 or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(
                f'{self._owner} has the label {label!r}, expected one class '
                'a sample; use the plain data set.'
            )
        return int(array.item())

    def _check_arguments(self) -> None:
        """Refuse what the pixel functions cannot do."""
        flip, crop, pack = self._flip, self._crop, self._pack
        if flip is not None and not (
            isinstance(flip.prob, float) and isinstance(flip.direction, str)
        ):
            self._refuse(
                flip, f'has prob={flip.prob} and direction={flip.direction}, expected one of each'
            )
        if isinstance(crop, RandomResizedCrop) and (crop.backend, crop.interpolation) != (
            'pillow',
            'bilinear',
        ):
            self._refuse(
                crop,
                f'has backend={crop.backend!r} and interpolation='
                f"{crop.interpolation!r}, expected 'pillow' and 'bilinear'",
            )
        if pack.input_key != 'img' or pack.algorithm_keys:
            self._refuse(
                pack,
                f'has input_key={pack.input_key!r} and algorithm_keys='
                f"{tuple(pack.algorithm_keys)}, expected 'img' and none",
            )

    def _refuse(self, transform: Any, problem: str) -> None:
        raise ValueError(
            f'{type(transform).__name__} in the pipeline of {self._owner} '
            f'{problem}. Mend the pipeline, or use the data set without '
            'ResidentDataset.'
        )

    @staticmethod
    def _take(rest: list, *kinds: type) -> Any:
        """Take the last transform off if it is of one of these classes."""
        return rest.pop() if rest and type(rest[-1]) in kinds else None


def _names(kinds: Sequence[type]) -> str:
    return ', '.join(kind.__name__ for kind in kinds)
