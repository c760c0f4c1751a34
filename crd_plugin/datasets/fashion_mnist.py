"""Fashion-MNIST, read packed or unpacked, with nested subsets and images held out of training."""

from __future__ import annotations

import gzip
import os.path as osp
from collections.abc import Sequence

import numpy as np
from mmpretrain.datasets import BaseDataset
from mmpretrain.datasets.base_dataset import expanduser
from mmpretrain.datasets.categories import FASHIONMNIST_CATEGORITES

from crd_plugin.registry import DATASETS

_SOURCE = 'https://github.com/zalandoresearch/fashion-mnist'
_FILES = dict(train='train', holdout='train', test='t10k')
_HELD_OUT_PER_CLASS = 500
_SIDE = 28


@DATASETS.register_module()
class FashionMNIST(BaseDataset):
    """70,000 grey images of clothes, 28x28 pixels, ten classes: 60,000 to train, 10,000 to test.

    Each class is put in one fixed order (``numpy.random.RandomState(0)``, classes 0 to 9 in turn).
    ``num_train_per_class`` takes the first that many of it, so smaller sets lie inside larger ones,
    and ``split='holdout'`` takes the last 500 of 6,000: 5,000 images for choosing hyperparameters,
    which no set of at most 5,500 per class contains. The test images stay for the final figures.

    Files are read as they are distributed, ``*-ubyte.gz``, or unpacked. Get them by ``apt-get
    install dataset-fashion-mnist`` on Debian and Ubuntu (MIT licence), or from the folder
    ``data/fashion`` of the source.

    Source: H. Xiao, K. Rasul and R. Vollgraf, Fashion-MNIST, arXiv:1708.07747,
    https://github.com/zalandoresearch/fashion-mnist.

    Each item is ``dict(img=(28, 28, 3) uint8, gt_label=int)``; the grey level is repeated over the
    three channels, so that networks for CIFAR take the images as they are.

    Args:
        data_root (str or Sequence[str]): Folder with the files; of several, the first that has
            those of the split. Defaults to ``data/fashion-mnist``, then the folder of Debian's
            package.
        split (str): 'train', 'holdout' or 'test'. Defaults to 'train'.
        num_train_per_class (int, optional): Training images kept of each class, 1 to 6,000. None
            keeps all 60,000. Only for ``split='train'``. Defaults to None.
        metainfo (dict, optional): Extra meta information. Defaults to None.
        **kwargs: Other arguments of :class:`mmpretrain.datasets.BaseDataset`, ``pipeline``,
            ``indices`` and ``test_mode`` among them.

    Raises:
        ValueError: If ``split`` or ``num_train_per_class`` is out of range, or a file is damaged.
        FileNotFoundError: If no folder has the files; the message says where to get them.
    """

    METAINFO = dict(classes=FASHIONMNIST_CATEGORITES)

    def __init__(
        self,
        data_root: str | Sequence[str] = (
            'data/fashion-mnist',
            '/usr/share/datasets/fashion-mnist',
        ),
        split: str = 'train',
        num_train_per_class: int | None = None,
        metainfo: dict | None = None,
        **kwargs,
    ) -> None:
        if split not in _FILES:
            raise ValueError(f'split must be one of {list(_FILES)}, but got {split!r}.')
        if split != 'train' and num_train_per_class is not None:
            raise ValueError(
                f'num_train_per_class={num_train_per_class!r} was given with split={split!r}, '
                "which is fixed; leave it out or use split='train'."
            )
        if num_train_per_class is not None and (
            not isinstance(num_train_per_class, int) or not 1 <= num_train_per_class <= 6000
        ):
            raise ValueError(
                'num_train_per_class must be an int from 1 to 6000, or None for all images, but '
                f'got {num_train_per_class!r}.'
            )
        self.split = split
        self.num_train_per_class = num_train_per_class
        roots = [data_root] if isinstance(data_root, str) else list(data_root)
        super().__init__(
            ann_file='', metainfo=metainfo, data_root=_find_root(roots, split), **kwargs
        )

    def load_data_list(self) -> list[dict]:
        """Read ``img``, ``(28, 28)`` grey, and ``gt_label`` of the split, in the files' order."""
        images = self._read('images-idx3', (_SIDE, _SIDE))
        labels = self._read('labels-idx1', ())
        if len(images) != len(labels) or labels.max(initial=0) > 9:
            raise ValueError(
                f'{self.data_root} has {len(images)} images and {len(labels)} labels up to '
                f'{labels.max(initial=0)} of the split {self.split!r}, expected one label from 0 '
                f'to 9 per image; get the files again from {_SOURCE}.'
            )
        generator = np.random.RandomState(0)
        chosen: list[int] = []
        for label in range(10):
            order = np.flatnonzero(labels == label)
            if self.split != 'test':
                order = generator.permutation(order)
                first = -_HELD_OUT_PER_CLASS if self.split == 'holdout' else 0
                order = order[first:][: self.num_train_per_class]
            chosen += [*order]
        return [dict(img=images[index], gt_label=int(labels[index])) for index in sorted(chosen)]

    def get_data_info(self, idx: int) -> dict:
        """As for ``BaseDataset``; the grey image is repeated, ``(28, 28, 3)`` uint8."""
        info = super().get_data_info(idx)
        info['img'] = info['img'][..., None].repeat(3, 2)
        return info

    def extra_repr(self) -> list[str]:
        """Return the lines that ``repr`` adds: the split and its folder."""
        return [f'Split: \t{self.split}', f'Root: \t{self.data_root}']

    def _read(self, kind: str, shape: tuple[int, ...]) -> np.ndarray:
        """Read a file in the IDX format: a magic number, the sizes, then bytes."""
        path = _find_file(self.data_root, self.split, kind)
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
                f'{path} is damaged or no file of Fashion-MNIST ({error}); get it again from '
                f'{_SOURCE}.'
            ) from error


def _find_file(root: str, split: str, kind: str) -> str:
    """Path of a file, packed or not; empty if there is neither."""
    path = osp.join(root, f'{_FILES[split]}-{kind}-ubyte')
    return next((name for name in (path, f'{path}.gz') if osp.isfile(name)), '')


def _find_root(roots: Sequence[str], split: str) -> str:
    """First folder that has images and labels of a split."""
    for root in map(expanduser, roots):
        if all(_find_file(root, split, kind) for kind in ('images-idx3', 'labels-idx1')):
            return root
    # Within the 200 characters that the dry run shows.
    raise FileNotFoundError(
        f'No {_FILES[split]}-*-ubyte[.gz] in {" or ".join(roots)}; `apt-get install '
        f'dataset-fashion-mnist`, or download data/fashion of {_SOURCE}.'
    )
