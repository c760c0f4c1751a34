"""A data set whose images tell which sample they are."""

import numpy as np
from mmpretrain.datasets import BaseDataset

from crd_plugin.registry import DATASETS

PACK = dict(type='PackInputs')


@DATASETS.register_module()
class Numbers(BaseDataset):
    """Sample i is a 2x2 image of the value ``start + i``."""

    METAINFO = dict(classes=('a', 'b', 'c'))

    def __init__(self, labels=(0, 0, 1, 1, 2, 2), start=0, key='gt_label', **kwargs):
        self.labels, self.start, self.key = labels, start, key
        super().__init__(**{'ann_file': '', 'pipeline': [PACK], 'serialize_data': False, **kwargs})

    def load_data_list(self):
        """Return an annotation per label."""
        return [
            {'img': np.full((2, 2, 3), self.start + i, dtype=np.uint8), self.key: label}
            for i, label in enumerate(self.labels)
        ]


def numbers(**kwargs):
    """Return the config of a Numbers data set."""
    return dict(type='crd_plugin.Numbers', **kwargs)


class OwnIndexing(Numbers):
    """Redraws in a __getitem__ of its own, as some data sets do."""

    def __getitem__(self, idx):
        """Read a sample, or another one if the pipeline returns None."""
        item = self.prepare_data(idx)
        while item is None:
            item = self.prepare_data(self._rand_another())
        return item


def drop_odd(info):
    """Return None for images of an odd value, as a transform may for a broken file."""
    return None if info['img'][0, 0, 0] % 2 else info


def images_of(dataset):
    """Return all images before the pipeline, ``(N, H, W, C)``."""
    return np.stack([dataset.get_data_info(i)['img'] for i in range(len(dataset))])
