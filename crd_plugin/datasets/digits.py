"""Handwritten digits that come with scikit-learn: no files, no download."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from crd_plugin.registry import DATASETS

from ._published import PublishedDataset, check_per_class, take_per_class

_NUM_TEST_PER_CLASS = 100
_MOST_TRAIN_PER_CLASS = 74


@DATASETS.register_module()
class Digits(PublishedDataset):
    """1,797 real handwritten digits, 8x8 pixels, ten classes.

    The split is fixed: each class is put in one order (``numpy.random.RandomState(0)``, classes 0
    to 9 in turn); its first 100 images are in the test set (1,000 images), the others in the
    training set (797, 74 to 83 per class). ``num_train_per_class`` takes the first that many of
    these, so smaller sets lie inside larger ones and the test set never changes.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine
    Learning Repository, 1998 (its test part), by ``sklearn.datasets.load_digits``.

    Each item is ``dict(img=(8, 8, 3) uint8, gt_label=int)``: grey levels 0..16, scaled by 255/16.

    Args:
        split (str): 'train' or 'test'. Defaults to 'train'.
        num_train_per_class (int, optional): Training images kept of each class, 1 to 74; only for
            ``split='train'``. Defaults to None: all 797.
        digits (Sequence[int]): Digits kept, each labelled by itself. Defaults to all ten.
        **kwargs: Other arguments of ``mmpretrain.BaseDataset``.

    Raises:
        ValueError: If ``split``, ``num_train_per_class`` or ``digits`` is out of range.
        ImportError: If scikit-learn is not installed.
    """

    METAINFO = dict(classes=tuple('0123456789'))
    SPLITS = ('train', 'test')

    def __init__(
        self,
        split: str = 'train',
        num_train_per_class: int | None = None,
        digits: Sequence[int] = range(10),
        **kwargs: Any,
    ) -> None:
        check_per_class(num_train_per_class, _MOST_TRAIN_PER_CLASS, split)
        if not isinstance(digits, Sequence) or not digits or not set(digits) <= {*range(10)}:
            raise ValueError(f'digits must be some of 0 to 9, such as [0, 1], but got {digits!r}.')
        self.digits = frozenset(digits)
        self.num_train_per_class = num_train_per_class
        super().__init__(**{'data_root': '', **kwargs}, split=split)

    def list_samples(self) -> list[dict]:
        """Read ``img`` and ``gt_label`` of the split, in scikit-learn's order."""
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ImportError(
                'crd_plugin.Digits reads the images that come with scikit-learn, which cannot be '
                'imported; install it with `pip install scikit-learn`.'
            ) from error
        bundle = load_digits()
        part = slice(_NUM_TEST_PER_CLASS)
        if self.split == 'train':
            count = self.num_train_per_class
            part = slice(_NUM_TEST_PER_CLASS, count and _NUM_TEST_PER_CLASS + count)
        images = np.rint(bundle.images * (255 / 16)).astype(np.uint8)[..., None].repeat(3, 3)
        return [
            dict(img=images[index], gt_label=int(bundle.target[index]))
            for index in take_per_class(bundle.target, part)
            if bundle.target[index] in self.digits
        ]
