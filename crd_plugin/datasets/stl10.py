"""STL-10 with its unlabeled part, read from the binaries in place."""

import os
import os.path as osp
from typing import Dict, List, Optional

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
_LABELED = ('train', 'test')
_NUM_CLASSES = 10
_SIZE = 96  # pixels
_IMAGE_BYTES = 3 * _SIZE * _SIZE


@DATASETS.register_module()
class STL10(BaseDataset):
    """Ten classes at 96x96 pixels: 5,000 images, 8,000 to test, 100,000 more.

    The 100,000 unlabeled images also show other animals and vehicles. Of each
    binary only what is asked for is read: the files (2.7 GB the unlabeled
    one) are mapped into memory, once in each process, never copied as a
    whole. Each item is ``dict(img=(96, 96, 3) uint8 RGB, gt_label=int)``.

    Without ``gt_label`` are the items of 'unlabeled' and all of
    'train+unlabeled': a batch of which some have a label cannot be collated.
    Distil on them with a loss that needs no labels (``CRDLoss`` with
    ``exclude='instance'``).

    Source: A. Coates, H. Lee and A. Y. Ng, An Analysis of Single Layer
    Networks in Unsupervised Feature Learning, AISTATS 2011,
    ``http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz`` (2.6 GB),
    which holds::

        stl10_binary
        ├── train_X.bin, test_X.bin, unlabeled_X.bin   images
        ├── train_y.bin, test_y.bin                    labels, 1 to 10
        ├── class_names.txt                            not read
        └── fold_indices.txt                           not read

    An image is three planes, red, green and blue, each stored column by
    column. For one of the ten folds of ``fold_indices.txt`` give its line
    as ``indices``.

    Args:
        data_root (str): The folder ``stl10_binary``, on a local disk.
        split (str): 'train', 'test', 'unlabeled' or 'train+unlabeled'.
            Defaults to 'train'.
        metainfo (dict, optional): Extra meta information. Defaults to None.
        **kwargs: Other arguments of :class:`mmpretrain.datasets.BaseDataset`,
            ``pipeline``, ``indices`` and ``test_mode`` among them.

    Raises:
        ValueError: If an argument is out of range or a file is damaged.
        FileNotFoundError: If a file is missing; it tells where to get the
            data.
    """

    METAINFO = dict(
        classes=(
            'airplane',
            'bird',
            'car',
            'cat',
            'deer',
            'dog',
            'horse',
            'monkey',
            'ship',
            'truck',
        )
    )

    def __init__(
        self, data_root: str, split: str = 'train', metainfo: Optional[dict] = None, **kwargs
    ) -> None:
        if split not in _PARTS:
            raise ValueError(f'split must be one of {list(_PARTS)}, but got {split!r}.')
        if not data_root:
            raise ValueError(
                f'data_root must be the folder stl10_binary, but got '
                f'{data_root!r}; unpack {_URL} and name its folder.'
            )
        self.split = split
        self._files: Dict[str, _ImageFile] = {}
        super().__init__(ann_file='', metainfo=metainfo, data_root=expanduser(data_root), **kwargs)

    def load_data_list(self) -> List[dict]:
        """Read the labels and look at the size of the images' files.

        Returns:
            list[dict]: ``part`` and ``row``, the place of the image, and
            ``gt_label`` int in [0, 10) where there is one.
        """
        data_list = []
        for part in _PARTS[self.split]:
            self._files[part] = _ImageFile(self._path(f'{part}_X.bin'))
            count = len(self._files[part])
            infos = [dict(part=part, row=row) for row in range(count)]
            if self.split in _LABELED:
                for info, label in zip(infos, self._read_labels(count)):
                    info['gt_label'] = label
            data_list += infos
        return data_list

    def get_data_info(self, idx: int) -> dict:
        """One sample before the pipeline, its image read from disk.

        Args:
            idx (int): Position; a negative one counts from the end.

        Returns:
            dict: ``img`` (96, 96, 3) uint8, ``sample_idx`` int, and
            ``gt_label`` int where there is one.
        """
        info = super().get_data_info(idx)
        info['img'] = self._files[info.pop('part')][info.pop('row')]
        return info

    def get_gt_labels(self) -> np.ndarray:
        """Class of every sample, without reading images.

        Returns:
            np.ndarray: (N,), int64.

        Raises:
            KeyError: If the split has no labels.
        """
        self.full_init()
        if self.split not in _LABELED:
            raise KeyError(
                f'split={self.split!r} of STL10 has no gt_label; '
                f'those with labels are {list(_LABELED)}.'
            )
        return np.array(
            [super(STL10, self).get_data_info(idx)['gt_label'] for idx in range(len(self))],
            dtype=np.int64,
        )

    def extra_repr(self) -> List[str]:
        """Lines that ``repr`` adds: the split and its folder."""
        return [f'Split: \t{self.split}', f'Root: \t{self.data_root}']

    def _path(self, name: str) -> str:
        path = osp.join(self.data_root, name)
        if not osp.isfile(path):
            raise FileNotFoundError(
                f'{path} is missing, so data_root={self.data_root!r} does '
                f'not hold split={self.split!r} of STL-10. Download {_URL} '
                '(2.6 GB), unpack it, and let data_root name its folder '
                'stl10_binary, which holds train_X.bin, train_y.bin, '
                'test_X.bin, test_y.bin and unlabeled_X.bin.'
            )
        return path

    def _read_labels(self, count: int) -> List[int]:
        path = self._path(f'{self.split}_y.bin')
        labels = np.fromfile(path, dtype=np.uint8).astype(np.int64) - 1
        if len(labels) != count:
            raise ValueError(
                f'{path} has {len(labels)} labels, but {self.split}_X.bin has '
                f'{count} images; get them anew from {_URL}.'
            )
        outside = labels[(labels < 0) | (labels >= _NUM_CLASSES)]
        if outside.size:
            raise ValueError(
                f'{path} has the label {outside[0] + 1}, expected 1 to '
                f'{_NUM_CLASSES}; get it anew from {_URL}.'
            )
        return labels.tolist()


class _ImageFile:
    """Images of one binary, mapped when first read in a process.

    A copy or a pickle of it holds the path only: NumPy would otherwise write
    out the whole file for each worker of a data loader.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        size = os.path.getsize(path)
        if size == 0 or size % _IMAGE_BYTES:
            raise ValueError(
                f'{path} has {size} bytes, expected a multiple of '
                f'{_IMAGE_BYTES} (96x96x3), so it is cut off; get it anew '
                f'from {_URL}.'
            )
        self._count = size // _IMAGE_BYTES
        self._planes: Optional[np.ndarray] = None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> np.ndarray:
        if self._planes is None:
            self._planes = np.memmap(
                self.path, dtype=np.uint8, mode='r', shape=(self._count, 3, _SIZE, _SIZE)
            )
        # (channel, column, row) -> (row, column, channel)
        return np.array(self._planes[row].transpose(2, 1, 0), order='C')

    def __getstate__(self) -> dict:
        return {**self.__dict__, '_planes': None}
