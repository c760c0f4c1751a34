"""Fashion-MNIST, read packed or unpacked, with nested subsets and images held out of training."""

import gzip
import os.path as osp
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmpretrain.datasets.base_dataset import expanduser
from mmpretrain.datasets.categories import FASHIONMNIST_CATEGORITES

from crd_plugin.registry import DATASETS

from ._published import PublishedDataset, check_per_class, take_per_class

_SOURCE = 'https://github.com/zalandoresearch/fashion-mnist'


@DATASETS.register_module()
class FashionMNIST(PublishedDataset):
    """70,000 grey images of clothes, 28x28 pixels, ten classes: 60,000 to train, 10,000 to test.

    Each class is put in one fixed order (``numpy.random.RandomState(0)``, classes 0 to 9 in turn).
    ``num_train_per_class`` takes the first that many of it, so smaller sets lie inside larger ones,
    and ``split='holdout'`` takes the last 500 of 6,000: 5,000 images for choosing hyperparameters,
    which no set of at most 5,500 per class contains. The test images stay for the final figures.

    Each item is ``dict(img=(28, 28, 3) uint8, gt_label=int)``, the grey level in three channels.

    Source: H. Xiao, K. Rasul and R. Vollgraf, Fashion-MNIST, arXiv:1708.07747 (MIT licence).

    Args:
        data_root (str or Sequence[str]): Folder with the files, packed or not; of several, the
            first that has those of the split. Defaults to ``data/fashion-mnist``, then the folder
            of Debian's package ``dataset-fashion-mnist``.
        split (str): 'train', 'holdout' or 'test'. Defaults to 'train'.
        num_train_per_class (int, optional): Training images kept of each class, 1 to 6,000; only
            for ``split='train'``. Defaults to None: all 60,000.
        **kwargs: Other arguments of ``mmpretrain.BaseDataset``.

    Raises:
        ValueError: If ``split`` or ``num_train_per_class`` is out of range, or a file is damaged.
        FileNotFoundError: If no folder has the files; the message says where to get them.
    """

    METAINFO = dict(classes=FASHIONMNIST_CATEGORITES)
    SPLITS = ('train', 'holdout', 'test')

    def __init__(
        self,
        data_root: str | Sequence[str] = (
            'data/fashion-mnist',
            '/usr/share/datasets/fashion-mnist',
        ),
        split: str = 'train',
        num_train_per_class: int | None = None,
        **kwargs: Any,
    ) -> None:
        check_per_class(num_train_per_class, 6000, split)
        self.num_train_per_class = num_train_per_class
        self.roots = [data_root] if isinstance(data_root, str) else list(data_root)
        super().__init__('', split, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Read ``img``, ``(28, 28)`` grey, and ``gt_label`` of the split, in the files' order."""
        stem = 't10k' if self.split == 'test' else 'train'
        for root in map(expanduser, self.roots):
            files = _find(root, stem)
            if files:
                break
        else:
            # Within the 200 characters that the dry run shows.
            raise FileNotFoundError(
                f'No {stem}-*-ubyte[.gz] in {" or ".join(self.roots)}; `apt-get install '
                f'dataset-fashion-mnist`, or download data/fashion of {_SOURCE}.'
            )
        self.data_root = root
        images, labels = _read(files[0], (28, 28)), _read(files[1], ())
        if len(images) != len(labels) or labels.max(initial=0) > 9:
            raise ValueError(
                f'{self.data_root} has {len(images)} images and {len(labels)} labels up to '
                f'{labels.max(initial=0)} of the split {self.split!r}, expected one label from 0 '
                f'to 9 per image; get the files again from {_SOURCE}.'
            )
        parts = dict(
            train=slice(self.num_train_per_class), holdout=slice(-500, None), test=slice(None)
        )
        return [
            dict(img=images[index], gt_label=int(labels[index]))
            for index in take_per_class(labels, parts[self.split])
        ]

    def get_data_info(self, idx: int) -> dict:
        """As for ``BaseDataset``; the grey image is repeated, ``(28, 28, 3)`` uint8."""
        info = super().get_data_info(idx)
        info['img'] = info['img'][..., None].repeat(3, 2)
        return info


def _find(root: str, stem: str) -> list[str]:
    """Paths of images and labels, packed or not; empty if one of them is missing."""
    files = []
    for kind in ('images-idx3', 'labels-idx1'):
        path = osp.join(root, f'{stem}-{kind}-ubyte')
        files += [name for name in (path, f'{path}.gz') if osp.isfile(name)][:1]
    return files if len(files) == 2 else []


def _read(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """Read a file in the IDX format: a magic number, the sizes, then bytes."""
    try:
        with gzip.open(path) if path.endswith('.gz') else open(path, 'rb') as file:
            content = file.read()
        header = np.frombuffer(content, '>i4', 2 + len(shape))
        values = np.frombuffer(content, np.uint8, offset=header.nbytes)
        if header[0] != 0x801 + len(shape) or tuple(header[2:]) != shape:
            raise ValueError('another format')
        return values.reshape(header[1], *shape)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(
            f'{path} is damaged or no file of Fashion-MNIST ({error}); get it again from {_SOURCE}.'
        ) from error
