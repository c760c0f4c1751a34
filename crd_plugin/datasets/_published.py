"""What data sets that are read as they are published have in common."""

from typing import Any

import numpy as np
from mmpretrain.datasets import BaseDataset
from mmpretrain.datasets.base_dataset import expanduser


class PublishedDataset(BaseDataset):
    """A split of a data set. Subclasses list its samples and say where to get the files."""

    SPLITS: tuple[str, ...]
    SOURCE: str  # where to get the files

    def __init__(self, data_root: str, split: str = 'train', **kwargs: Any) -> None:
        if split not in self.SPLITS:
            raise ValueError(f'split must be one of {self.SPLITS}, but got {split!r}.')
        self.split = split
        super().__init__(ann_file='', data_root=expanduser(data_root), **kwargs)

    def load_data_list(self) -> list[dict]:
        """List the samples of the split; say where to get files that are missing."""
        try:
            return self.list_samples()
        except FileNotFoundError as error:
            missing = f'{error.filename} is missing' if error.filename else str(error)
            raise FileNotFoundError(
                f'{missing}, so data_root={self.data_root!r} does not hold split={self.split!r} of '
                f'{type(self).__name__}; get it from {self.SOURCE}.'
            ) from error

    def list_samples(self) -> list[dict]:
        """List the samples of the split as they lie in the files."""
        raise NotImplementedError

    def filter_data(self) -> list[dict]:
        """As for ``BaseDataset``; refuse ``indices`` of samples that the split does not have."""
        samples, given = super().filter_data(), self._indices
        number = len(samples)
        if isinstance(given, int):  # the first so many, or the last if it is negative
            wrong = [given] if abs(given) > number else []
        else:
            wrong = [index for index in given or () if not -number <= index < number]
        if wrong:
            raise ValueError(
                f'indices: {wrong[0]} does not fit split={self.split!r} of {type(self).__name__}, '
                f'which has {number} samples; expected a list of positions from 0 to {number - 1}, '
                f'or an int of at most {number}.'
            )
        return samples

    def extra_repr(self) -> list[str]:
        """Return the lines that ``repr`` adds: the split and its folder."""
        root = [f'Root: \t{self.data_root}'] if self.data_root else []
        return [f'Split: \t{self.split}', *root]


def check_per_class(number: Any, most: int, split: str) -> None:
    """Refuse a number of training images per class that cannot be taken."""
    if number is None or split == 'train' and isinstance(number, int) and 1 <= number <= most:
        return
    raise ValueError(
        f'num_train_per_class={number!r} with split={split!r}, expected None for all images or, '
        f"with split='train', an int from 1 to {most}."
    )


def take_per_class(labels: np.ndarray, part: slice) -> list[int]:
    """Take a part of each of ten classes, whose images are put in one fixed order first."""
    generator = np.random.RandomState(0)
    taken: list[int] = []
    for label in range(10):
        taken += generator.permutation(np.flatnonzero(labels == label))[part].tolist()
    return sorted(taken)
