"""STL-10 with its unlabeled part, read from the binary files in place."""

import os
import os.path as osp

import numpy as np

from crd_plugin.registry import DATASETS

from ._published import PublishedDataset

_IMAGE_BYTES = 3 * 96 * 96


@DATASETS.register_module()
class STL10(PublishedDataset):
    """Ten classes at 96x96 pixels: 5,000 images to train, 8,000 to test, 100,000 unlabeled.

    The unlabeled images also show other animals and vehicles. An image is read from its binary file
    when it is asked for. Each item is ``dict(img=(96, 96, 3) uint8 RGB, gt_label=int)``; those of
    'unlabeled' and 'train+unlabeled' have no ``gt_label``, since a batch in which only some have
    one cannot be collated.

    Source: A. Coates, H. Lee and A. Y. Ng, An Analysis of Single Layer Networks in Unsupervised
    Feature Learning, AISTATS 2011, ``http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz``
    (2.6 GB): images in ``*_X.bin`` as three planes, red, green and blue, each stored column by
    column; labels from 1 to 10 in ``*_y.bin``. For one of the ten folds of ``fold_indices.txt``
    give its line as ``indices``.

    Args:
        data_root (str): The folder ``stl10_binary``, on a local disk.
        split (str): 'train', 'test', 'unlabeled' or 'train+unlabeled'. Defaults to 'train'.
        **kwargs: Other arguments of :class:`mmpretrain.datasets.BaseDataset`.

    Raises:
        ValueError: If ``split`` is not one of these, or a file is damaged.
        FileNotFoundError: If a file is missing; the message says where to get the data.
    """

    METAINFO = dict(classes=tuple('airplane bird car cat deer dog horse monkey ship truck'.split()))
    SPLITS = ('train', 'test', 'unlabeled', 'train+unlabeled')
    SOURCE = 'http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz (2.6 GB) and unpack it'

    def list_samples(self) -> list[dict]:
        """List ``part`` and ``row``, the place of each image, and ``gt_label`` if there is one."""
        data_list = []
        for part in self.split.split('+'):
            path = self._path(part, 'X')
            size = os.path.getsize(path)
            if size == 0 or size % _IMAGE_BYTES:
                raise ValueError(
                    f'{path} has {size} bytes, expected a multiple of {_IMAGE_BYTES} (96x96x3), so '
                    f'it is truncated; get it again from {self.SOURCE}.'
                )
            data_list += [dict(part=part, row=row) for row in range(size // _IMAGE_BYTES)]
        if self.split in ('train', 'test'):
            path = self._path(self.split, 'y')
            labels = np.fromfile(path, dtype=np.uint8).tolist()
            if len(labels) != len(data_list) or not set(labels) <= set(range(1, 11)):
                raise ValueError(
                    f'{path} has {len(labels)} labels, {sorted(set(labels))} among them, but '
                    f'{self.split}_X.bin has {len(data_list)} images, expected one label from 1 to '
                    f'10 per image; get both again from {self.SOURCE}.'
                )
            for info, label in zip(data_list, labels):
                info['gt_label'] = label - 1
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

    def _path(self, part: str, kind: str) -> str:
        return osp.join(self.data_root, f'{part}_{kind}.bin')
