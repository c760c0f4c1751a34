"""Random images in place of a data set that is not there."""

import sys
from pathlib import Path
from typing import Any

import crd_plugin  # isort: skip  # noqa: F401  makes the imports below work
import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS
from PIL import Image

KINDS = {
    # samples, classes, height and width of an image, whether they are JPEG files
    'CIFAR10': (50000, 10, 32, 32, False),
    'CIFAR100': (50000, 100, 32, 32, False),
    'ImageNet': (1281167, 1000, 375, 500, True),
    'STL10': (5000, 10, 96, 96, False),
    'TinyImageNet200': (100000, 200, 64, 64, True),
}


@DATASETS.register_module()
class StandIn(BaseDataset):
    """Random images of the number and size of a real training set, in memory or in files."""

    def __init__(self, kind: str, folder: str, **kwargs: Any) -> None:
        self.samples, self.classes, *self.size, self.files = KINDS[kind]
        self.folder = Path(folder)
        super().__init__(metainfo=dict(classes=tuple(map(str, range(self.classes)))), **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Return annotations with an image or the path of one."""
        labels, images = self.get_gt_labels().tolist(), self._make_images()
        key = 'img_path' if self.files else 'img'
        return [{key: image, 'gt_label': label} for image, label in zip(images, labels)]

    def _make_images(self) -> Any:
        """Make an image per sample, or one file with about the detail of a photograph for all."""
        random, (height, width) = np.random.default_rng(0), self.size
        if not self.files:
            return random.integers(0, 256, (self.samples, height, width, 3), dtype=np.uint8)
        path = self.folder / f'{height}x{width}.jpg'
        coarse = random.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.BICUBIC)
        image.save(path, quality=90)
        return [str(path)] * self.samples

    def get_gt_labels(self) -> np.ndarray:
        """Return the class of every sample, ``(N,)`` int64."""
        return np.arange(self.samples) % self.classes


def replace_dataset(loader: Any, config: str, folder: str | Path) -> None:
    """Put random images in place of a loader's innermost data set; files go to a folder."""
    holder = loader
    while isinstance(holder.dataset.get('dataset'), dict):
        holder = holder.dataset
    kind = str(holder.dataset.type).rpartition('.')[2]
    if kind not in KINDS:
        sys.exit(
            f'error: --synthetic has no stand-in for the {kind} of {config}; it knows '
            f'{", ".join(KINDS)}.'
        )
    pipeline = holder.dataset.get('pipeline', [])
    holder.dataset = dict(type='StandIn', kind=kind, folder=str(folder), pipeline=pipeline)
