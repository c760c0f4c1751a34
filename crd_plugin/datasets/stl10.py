"""STL-10 with its unlabeled part, read from the binary files in place."""

from __future__ import annotations

import os
import os.path as osp

import numpy as np
from mmpretrain.datasets import BaseDataset
from mmpretrain.datasets.base_dataset import expanduser

from crd_plugin.registry import DATASETS

_URL = 'http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz'
_PARTS = {
    'train': ('train',),
    'test': ('test',),
    'unlabeled': ('unlabeled',),
    'train+unlabeled': ('train', 'unlabeled'),
}
_IMAGE_BYTES = 3 * 96 * 96


@DATASETS.register_module()
class STL10(BaseDataset):
    """Ten classes at 96x96 pixels: 5,000 images to train, 8,000 to test, 100,000 unlabeled.

    The unlabeled images also show other animals and vehicles. An image is read from its binary file
    when it is asked for. Each item is ``dict(img=(96, 96, 3) uint8 RGB, gt_label=int)``.

    Items of 'unlabeled' and all of 'train+unlabeled' have no ``gt_label``, since a batch in which
    only some have a label cannot be collated. Distil on them with a loss that needs no labels
    (``CRDLoss`` with ``exclude='instance'``).

    Source: A. Coates, H. Lee and A. Y. Ng, An Analysis of Single Layer Networks in Unsupervised
    Feature Learning, AISTATS 2011, ``http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz``
    (2.6 GB), which holds::

        stl10_binary
        ├── train_X.bin, test_X.bin, unlabeled_X.bin   images
        ├── train_y.bin, test_y.bin                    labels, 1 to 10
        ├── class_names.txt                            not read
        └── fold_indices.txt                           not read

    An image is three planes, red, green and blue, each stored column by column. For one of the ten
    folds of ``fold_indices.txt`` give its line as ``indices``.

    Args:
        data_root (str): The folder ``stl10_binary``, on a local disk.
        split (str): 'train', 'test', 'unlabeled' or 'train+unlabeled'. Defaults to 'train'.
        metainfo (dict, optional): Extra meta information. Defaults to None.
        **kwargs: Other arguments of :class:`mmpretrain.datasets.BaseDataset`, ``pipeline``,
            ``indices`` and ``test_mode`` among them.

    Raises:
        ValueError: If ``split`` is not one of these, or a file is damaged.
        FileNotFoundError: If a file is missing; the message says where to get the data.
    """

    METAINFO = dict(classes=tuple('airplane bird car cat deer dog horse monkey ship truck'.split()))

    def __init__(
        self, data_root: str, split: str = 'train', metainfo: dict | None = None, **kwargs
    ) -> None:
        if split not in _PARTS:
            raise ValueError(f'split must be one of {list(_PARTS)}, but got {split!r}.')
        self.split = split
        super().__init__(ann_file='', metainfo=metainfo, data_root=expanduser(data_root), **kwargs)

    def load_data_list(self) -> list[dict]:
        """List ``part`` and ``row``, the place of each image, and ``gt_label`` if there is one."""
        try:
            data_list = []
            for part in _PARTS[self.split]:
                data_list += [dict(part=part, row=row) for row in range(self._count_images(part))]
            if self.split in ('train', 'test'):
                for info, label in zip(data_list, self._read_labels(len(data_list))):
                    info['gt_label'] = label
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f'{error.filename} is missing, so data_root={self.data_root!r} does not hold '
                f'split={self.split!r} of STL-10. Download {_URL} (2.6 GB), unpack it, and let '
                'data_root name its folder stl10_binary.'
            ) from error
        return data_list

    def get_data_info(self, idx: int) -> dict:
        """As for ``BaseDataset``; the image is read from disk, ``(96, 96, 3)`` uint8."""
        info = super().get_data_info(idx)
        path, offset = self._path(info.pop('part'), 'X'), info.pop('row') * _IMAGE_BYTES
        planes = np.fromfile(path, np.uint8, _IMAGE_BYTES, offset=offset).reshape(3, 96, 96)
        info['img'] = np.ascontiguousarray(planes.transpose(2, 1, 0))  # from channel, column, row
        return info

    def get_gt_labels(self) -> np.ndarray:
        """As for ``BaseDataset``, without reading images; KeyError if the split has no labels."""
        infos = (super(STL10, self).get_data_info(idx) for idx in range(len(self)))
        return np.array([info['gt_label'] for info in infos], dtype=np.int64)

    def extra_repr(self) -> list[str]:
        """Return the lines that ``repr`` adds: the split and its folder."""
        return [f'Split: \t{self.split}', f'Root: \t{self.data_root}']

    def _path(self, part: str, kind: str) -> str:
        return osp.join(self.data_root, f'{part}_{kind}.bin')

    def _count_images(self, part: str) -> int:
        path = self._path(part, 'X')
        size = os.path.getsize(path)
        if size == 0 or size % _IMAGE_BYTES:
            raise ValueError(
                f'{path} has {size} bytes, expected a multiple of {_IMAGE_BYTES} (96x96x3), so it '
                f'is truncated; download it again from {_URL}.'
            )
        return size // _IMAGE_BYTES

    def _read_labels(self, count: int) -> list[int]:
        path = self._path(self.split, 'y')
        labels = np.fromfile(path, dtype=np.uint8).tolist()
        if len(labels) != count or not set(labels) <= set(range(1, 11)):
            raise ValueError(
                f'{path} has {len(labels)} labels, {sorted(set(labels))} among them, but '
                f'{self.split}_X.bin has {count} images, expected one label from 1 to 10 per '
                f'image; download both again from {_URL}.'
            )
        return [label - 1 for label in labels]
