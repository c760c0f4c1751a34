"""NYU-Depth V2: colour, depth and labels of indoor scenes, read from the MATLAB file in place."""

from __future__ import annotations

import os
import os.path as osp
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmpretrain.datasets import BaseDataset
from mmpretrain.datasets.base_dataset import expanduser

from crd_plugin.registry import DATASETS

_DATA, _SPLITS = 'nyu_depth_v2_labeled.mat', 'splits.mat'
_META = 'https://github.com/ankurhanda/nyuv2-meta-data'
_URLS = {
    _DATA: 'http://horatio.cs.nyu.edu/mit/silberman/nyu_depth_v2/nyu_depth_v2_labeled.mat (2.8 GB)',
    _SPLITS: 'http://horatio.cs.nyu.edu/mit/silberman/indoor_seg_sup/splits.mat',
}
_UNLABELLED = 255
_INPUTS = ('rgb', 'depth')


@DATASETS.register_module()
class NYUDepthV2(BaseDataset):
    """1,449 indoor scenes of 480x640 pixels with depth and labels: 795 to train, 654 to test.

    A sample is read from the file when it is asked for. Each item has ``img``, ``(480, 640, C)``
    float32 with what ``inputs`` names stacked by channel, RGB from 0 to 255, depth in metres, and
    ``gt_seg_map``, ``(480, 640)`` uint8 with classes from 0, 255 where there is no label.

    Source: N. Silberman, D. Hoiem, P. Kohli and R. Fergus, Indoor Segmentation and Support
    Inference from RGBD Images, ECCV 2012. ``data_root`` holds::

        nyu_depth_v2_labeled.mat   HDF5: images (N, 3, 640, 480), depths and labels (N, 640, 480)
        splits.mat                 trainNdxs and testNdxs, image numbers from 1
        classMapping40.mat         mapClass: the 894 classes to 40 (Gupta et al., CVPR 2013)
        class13Mapping.mat         classMapping13: the 40 to 13 (Couprie et al., arXiv:1301.3572)

    MATLAB's axes are reversed in HDF5, so a map is stored column by column.

    Args:
        data_root (str): Folder of these files, on a local disk.
        split (str): 'train' or 'test'. Defaults to 'train'.
        inputs (Sequence[str]): What is stacked, of 'rgb' and 'depth', in this order. Defaults to
            both.
        mappings (Sequence[str]): Files that map classes, one after the other. Defaults to those to
            13 classes; ``['classMapping40.mat']`` gives 40.
        metainfo (dict, optional): Extra meta information. Defaults to None: the names of the
            classes in the last mapping.
        **kwargs: Other arguments of :class:`mmpretrain.datasets.BaseDataset`, ``pipeline``,
            ``indices`` and ``test_mode`` among them.

    Raises:
        ValueError: If an argument is not as described, or a file is truncated or does not fit: a
            label that the mapping does not have is told when the data set is built.
        FileNotFoundError: If a file is missing; the message says where to get it.
        ImportError: If h5py is not installed.
    """

    def __init__(
        self,
        data_root: str,
        split: str = 'train',
        inputs: Sequence[str] = ('rgb', 'depth'),
        mappings: Sequence[str] = ('classMapping40.mat', 'class13Mapping.mat'),
        metainfo: dict | None = None,
        **kwargs: Any,
    ) -> None:
        if split not in ('train', 'test'):
            raise ValueError(f"split must be 'train' or 'test', but got {split!r}.")
        if not inputs or isinstance(inputs, str) or not set(inputs) <= set(_INPUTS):
            raise ValueError(f"inputs must be a list of 'rgb' and 'depth', but got {inputs!r}.")
        if not mappings or isinstance(mappings, str):
            raise ValueError(
                'mappings must be a list of files, such as classMapping40.mat, but got '
                f'{mappings!r}.'
            )
        self.split, self.inputs, self.mappings = split, tuple(inputs), tuple(mappings)
        self.data_root = expanduser(data_root)
        self._handle: tuple[int, Any] | None = None  # of the process with this number
        classes = self._read_mappings()
        super().__init__(
            ann_file='',
            metainfo=dict(classes=classes, **(metainfo or {})),
            data_root=self.data_root,
            **kwargs,
        )

    def load_data_list(self) -> list[dict]:
        """List ``row``, the place of each sample in the file, and check their labels."""
        file, names = self._open(), ('images', 'depths', 'labels')
        shapes = {name: file[name].shape for name in names if name in file}
        images, sizes = shapes.get('images', ()), {shapes.get('depths'), shapes.get('labels')}
        if len(images) != 4 or sizes != {(images[0], *images[2:])}:
            raise ValueError(
                f'{self._path(_DATA)} has {shapes}, expected images (N, 3, W, H), depths and '
                f'labels (N, W, H); {_get(_DATA)}.'
            )
        rows = self._read_split(images[0])
        for row in rows:
            labels = file['labels'][row]
            wrong = labels[(labels < 0) | (labels >= len(self._classes))]
            if len(wrong):
                raise ValueError(
                    f'{self._path(_DATA)}: image {row + 1} has the label {wrong[0]}, but '
                    f'{self.mappings[0]} maps classes from 1 to {len(self._classes) - 1}; get '
                    'the mapping that belongs to the file, or that file again.'
                )
        return [dict(row=row) for row in rows]

    def get_data_info(self, idx: int) -> dict:
        """As for ``BaseDataset``; image and label map are read from disk."""
        info = super().get_data_info(idx)
        row = info.pop('row')
        # From (channel,) column, row.
        file, stacked = self._open(), []
        for name in self.inputs:
            if name == 'rgb':
                stacked.append(file['images'][row].transpose(2, 1, 0))
            else:
                stacked.append(file['depths'][row].T[..., None])
        labels = file['labels'][row].T
        info['img'] = np.concatenate(stacked, axis=-1, dtype=np.float32)
        info['gt_seg_map'] = np.ascontiguousarray(self._classes[labels])
        info['img_shape'] = labels.shape
        return info

    def extra_repr(self) -> list[str]:
        """Return the lines that ``repr`` adds."""
        return [f'Split: \t{self.split}', f'Inputs: \t{", ".join(self.inputs)}']

    def _path(self, name: str) -> str:
        return osp.join(self.data_root, name)

    def _open(self) -> Any:
        """Open the data, once per process: workers must not share a handle."""
        if self._handle is None or self._handle[0] != os.getpid():
            try:
                import h5py
            except ImportError as error:
                raise ImportError(
                    'crd_plugin.NYUDepthV2 reads a file of MATLAB 7.3, for which h5py is missing; '
                    'install it with `pip install h5py`.'
                ) from error
            self._check_exists(_DATA)
            try:
                file = h5py.File(self._path(_DATA), 'r')
            except OSError as error:  # HDF5 compares the length of the file.
                raise ValueError(
                    f'{self._path(_DATA)} is truncated or another file: {error}; {_get(_DATA)}.'
                ) from error
            self._handle = os.getpid(), file
        return self._handle[1]

    def __getstate__(self) -> dict:
        """Leave the handle out of copies and of what workers are sent."""
        return {**vars(self), '_handle': None}

    def _check_exists(self, name: str) -> None:
        if not osp.isfile(self._path(name)):
            raise FileNotFoundError(f'{self._path(name)} is missing; {_get(name)}.')

    def _load_mat(self, name: str) -> dict[str, Any]:
        """Load a small file of MATLAB."""
        from scipy.io import loadmat

        self._check_exists(name)
        try:
            return loadmat(self._path(name))
        except Exception as error:  # SciPy raises what it likes.
            raise ValueError(
                f'{self._path(name)} is truncated or not a file of MATLAB 5: {error}; {_get(name)}.'
            ) from error

    def _read_split(self, number: int) -> list[int]:
        """Rows of the split's images, of so many in the file."""
        key, content = f'{self.split}Ndxs', self._load_mat(_SPLITS)
        rows = np.asarray(content.get(key, [])).ravel().astype(int) - 1
        if not len(rows) or rows.min() < 0 or rows.max() >= number or len({*rows}) < len(rows):
            raise ValueError(
                f'{self._path(_SPLITS)}: {key} has {len(rows)} image numbers, expected different '
                f'ones from 1 to {number}, the images of {_DATA}; {_get(_SPLITS)}.'
            )
        return rows.tolist()

    def _read_mappings(self) -> tuple[str, ...]:
        """Join the mappings into one table, ``self._classes``; return the names of the classes."""
        table, classes = self._read_mapping(self.mappings[0])
        for name in self.mappings[1:]:
            step, classes = self._read_mapping(name)
            if table.max() >= len(step):
                raise ValueError(
                    f'{self._path(name)} maps {len(step) - 1} classes, the one before it goes up '
                    f'to {table.max()}; give mappings that follow each other.'
                )
            table = step[table]
        self._classes = np.where(table == 0, _UNLABELLED, table - 1).astype(np.uint8)
        return classes

    def _read_mapping(self, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
        """Read the new number of each class, 0 for pixels without a label, and the new names."""
        content = self._load_mat(name)
        if 'classMapping13' in content:  # a struct of numbers and names
            numbers, names = list(content['classMapping13'][0, 0])[:2]
        else:
            numbers, names = content.get('mapClass', []), content.get('className', [])
        table = np.concatenate([[0], np.ravel(numbers)]).astype(int)
        classes = tuple(str(np.ravel(one)[0]) for one in np.ravel(names))
        if len(table) == 1 or table.min() < 0 or table.max() > len(classes):
            raise ValueError(
                f'{self._path(name)} maps {len(table) - 1} classes to {table.min()} to '
                f'{table.max()} and names {len(classes)}, expected a number of a name for each, '
                f'under mapClass and className or in classMapping13; {_get(name)}.'
            )
        return table, classes


def _get(name: str) -> str:
    """Say where to get a file."""
    return f'get {name} from {_URLS.get(name, _META)}'
