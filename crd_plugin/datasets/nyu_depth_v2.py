"""NYU-Depth V2: colour, depth and labels of indoor scenes, read from the MATLAB file in place."""

import errno
import os
import os.path as osp
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from crd_plugin.registry import DATASETS

from ._published import PublishedDataset

_DATA, _SPLITS = 'nyu_depth_v2_labeled.mat', 'splits.mat'
_UNLABELLED = 255


@DATASETS.register_module()
class NYUDepthV2(PublishedDataset):
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
        **kwargs: Other arguments of ``mmpretrain.BaseDataset``.

    Raises:
        ValueError: If an argument is not as described, or a file is truncated or does not fit.
        FileNotFoundError: If a file is missing; the message says where to get it.
        ImportError: If h5py is not installed.
    """

    SPLITS = ('train', 'test')
    SOURCE = (
        'http://horatio.cs.nyu.edu/mit/silberman/nyu_depth_v2/nyu_depth_v2_labeled.mat (2.8 GB), '
        'http://horatio.cs.nyu.edu/mit/silberman/indoor_seg_sup/splits.mat, mappings of classes '
        'from https://github.com/ankurhanda/nyuv2-meta-data'
    )

    def __init__(
        self,
        data_root: str,
        split: str = 'train',
        inputs: Sequence[str] = ('rgb', 'depth'),
        mappings: Sequence[str] = ('classMapping40.mat', 'class13Mapping.mat'),
        **kwargs: Any,
    ) -> None:
        if not inputs or isinstance(inputs, str) or not set(inputs) <= {'rgb', 'depth'}:
            raise ValueError(f"inputs must be a list of 'rgb' and 'depth', but got {inputs!r}.")
        if not mappings or isinstance(mappings, str):
            raise ValueError(
                'mappings must be a list of files, such as classMapping40.mat, but got '
                f'{mappings!r}.'
            )
        self.inputs, self.mappings = tuple(inputs), tuple(mappings)
        self._handle: tuple[int, Any] | None = None  # of the process with this number
        super().__init__(data_root, split, **kwargs)

    def list_samples(self) -> list[dict]:
        """List ``row``, the place of each sample in the file, and check their labels."""
        table, names = self._read_mappings()
        self._metainfo.setdefault('classes', names)
        self._classes = np.where(table == 0, _UNLABELLED, table - 1).astype(np.uint8)
        arrays = self._open()
        rows = self._read_split(len(arrays['images']))
        for row in rows:
            labels = arrays['labels'][row]
            wrong = labels[(labels < 0) | (labels >= len(table))]
            if len(wrong):
                raise ValueError(
                    f'{osp.join(self.data_root, _DATA)}: image {row + 1} has the label {wrong[0]}, '
                    f'but {self.mappings[0]} maps classes from 1 to {len(table) - 1}; correct '
                    f'mappings={[*self.mappings]}, or get the file again from {self.SOURCE}.'
                )
        return [dict(row=row) for row in rows]

    def get_data_info(self, idx: int) -> dict:
        """As for ``BaseDataset``; image and label map are read from disk."""
        info = super().get_data_info(idx)
        row, file = info.pop('row'), self._open()
        read = dict(  # from (channel,) column, row
            rgb=lambda: file['images'][row].transpose(2, 1, 0),
            depth=lambda: file['depths'][row].T[..., None],
        )
        labels = file['labels'][row].T
        stacked = [read[name]() for name in self.inputs]
        info['img'] = np.concatenate(stacked, axis=-1, dtype=np.float32)
        info['gt_seg_map'] = np.ascontiguousarray(self._classes[labels])
        info['img_shape'] = labels.shape
        if not np.isfinite(info['img']).all():
            raise self._misfit(_DATA, f'image {row + 1} has depths that are not finite')
        return info

    def __getstate__(self) -> dict:
        """Leave the handle out of copies and of what workers are sent."""
        return {**vars(self), '_handle': None}

    def _open(self) -> dict[str, Any]:
        """Open the data, once per process: workers must not share a handle."""
        if self._handle is None or self._handle[0] != os.getpid():
            self._handle = os.getpid(), self._load(_DATA, _open_arrays)
        return self._handle[1]

    def _load(self, name: str, load: Callable[[str], Any]) -> Any:
        """Load a file of the data set."""
        path = osp.join(self.data_root, name)
        if not osp.isfile(path):
            raise FileNotFoundError(errno.ENOENT, 'missing', path)
        try:
            return load(path)
        except ImportError:
            raise
        except Exception as error:  # SciPy raises what it likes; HDF5 compares the length.
            raise self._misfit(name, f'truncated or another file: {error}') from error

    def _misfit(self, name: str, problem: str) -> ValueError:
        path = osp.join(self.data_root, name)
        return ValueError(f'{path}: {problem}; get it again from {self.SOURCE}.')

    def _read_split(self, number: int) -> list[int]:
        """Rows of the split's images, of so many in the file."""
        from scipy.io import loadmat

        key = f'{self.split}Ndxs'
        found = self._load(_SPLITS, loadmat).get(key, [])
        rows = np.asarray(found).ravel().astype(int) - 1
        if not len(rows) or rows.min() < 0 or rows.max() >= number or len({*rows}) < len(rows):
            raise self._misfit(
                _SPLITS,
                f'{key} has {len(rows)} image numbers, expected different ones from 1 to {number}, '
                f'the images of {_DATA}',
            )
        return rows.tolist()

    def _read_mappings(self) -> tuple[np.ndarray, tuple[str, ...]]:
        """Read the new number of each class, 0 for pixels without a label, and the new names."""
        from scipy.io import loadmat

        joined = np.empty(0, int)
        names: tuple[str, ...] = ()
        for file in self.mappings:
            content = self._load(file, loadmat)
            if 'classMapping13' in content:  # a struct of numbers and names
                numbers, labels = list(content['classMapping13'][0, 0])[:2]
            else:
                numbers, labels = content.get('mapClass', []), content.get('className', [])
            table = np.concatenate([[0], np.ravel(numbers)]).astype(int)
            if names and len(names) != len(table) - 1:
                raise ValueError(
                    f'mappings={[*self.mappings]}: {file} maps {len(table) - 1} classes, but the '
                    f'file before it names {len(names)}; list each file once, in the order of use, '
                    "such as ['classMapping40.mat', 'class13Mapping.mat']."
                )
            names = tuple(str(np.ravel(one)[0]) for one in np.ravel(labels))
            if len(table) < 2 or table.min() < 0 or table.max() > len(names):
                raise self._misfit(
                    file,
                    f'maps {len(table) - 1} classes to {table.min()} to {table.max()} and names '
                    f'{len(names)}, expected a number of a name for each class, under mapClass and '
                    'className or in classMapping13',
                )
            joined = table[joined] if joined.size else table
        return joined, names


def _open_arrays(path: str) -> dict[str, Any]:
    """Open images, depths and labels, whose first axis counts images; refuse what does not fit."""
    import h5py

    file = h5py.File(path)
    arrays = {name: file[name] for name in ('images', 'depths', 'labels')}
    images, depths, labels = arrays.values()
    number, *size = images.shape
    kinds = images.dtype == np.uint8, depths.dtype.kind == 'f', labels.dtype.kind in 'iu'
    if size[:1] != [3] or {depths.shape, labels.shape} != {(number, *size[1:])} or not all(kinds):
        found = ', '.join(f'{name} {a.shape} {a.dtype}' for name, a in arrays.items())
        raise ValueError(
            f'{found}; expected images (N, 3, W, H) uint8, depths (N, W, H) in metres as floats, '
            'labels (N, W, H) as integers'
        )
    return arrays
