"""Random images in place of a data set that is not there."""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import crd_plugin  # isort: skip  # noqa: F401  makes the imports below work
import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS
from PIL import Image

# Different JPEG files that the samples take turns with.
NUM_FILES = 200


class Kind(NamedTuple):
    """Size of a training set: images, classes, pixels; JPEG files rather than arrays in memory."""

    samples: int
    classes: int
    height: int
    width: int
    files: bool


KINDS = {
    'CIFAR10': Kind(50000, 10, 32, 32, False),
    'CIFAR100': Kind(50000, 100, 32, 32, False),
    'ImageNet': Kind(1281167, 1000, 375, 500, True),
    'STL10': Kind(5000, 10, 96, 96, False),
    'TinyImageNet200': Kind(100000, 200, 64, 64, True),
}


@DATASETS.register_module()
class StandIn(BaseDataset):
    """Random images of the number and size of a real training set, in memory or in files."""

    def __init__(self, kind: str, folder: str, **kwargs: Any) -> None:
        self.kind, self.folder = KINDS[kind], Path(folder)
        classes = tuple(map(str, range(self.kind.classes)))
        super().__init__(metainfo=dict(classes=classes), **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Return annotations with an image or the path of one."""
        kind, labels = self.kind, self.get_gt_labels().tolist()
        if kind.files:
            paths = write_images(self.folder, kind)
            return [
                dict(img_path=paths[number % len(paths)], gt_label=label)
                for number, label in enumerate(labels)
            ]
        shape = (kind.samples, kind.height, kind.width, 3)
        images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        return [
            dict(img=image, gt_label=label) for image, label in zip(images, labels, strict=True)
        ]

    def get_gt_labels(self) -> np.ndarray:
        """Return the class of every sample, ``(N,)`` int64."""
        return np.arange(self.kind.samples) % self.kind.classes


def write_images(folder: Path, kind: Kind) -> list[str]:
    """Write JPEG files with about the detail of a photograph; return their paths."""
    generator = np.random.default_rng(0)
    paths = []
    for number in range(NUM_FILES):
        path = folder / f'{kind.height}x{kind.width}_{number}.jpg'
        coarse = generator.integers(0, 256, (kind.height // 8, kind.width // 8, 3), dtype=np.uint8)
        if not path.is_file():
            image = Image.fromarray(coarse).resize((kind.width, kind.height), Image.BICUBIC)
            image.save(path, quality=90)
        paths.append(str(path))
    return paths


def replace_dataset(loader: Any, config: str, folder: Path) -> None:
    """Put random images in place of a loader's innermost data set; files go to a folder."""
    holder, dataset = None, loader
    while isinstance(dataset.get('dataset'), dict):
        holder, dataset = dataset, dataset['dataset']
    kind = str(dataset.get('type')).rpartition('.')[2]
    if holder is None or kind not in KINDS:
        sys.exit(
            f'error: --synthetic has no stand-in for the {kind} of {config}; it knows '
            f'{", ".join(KINDS)}.'
        )
    pipeline = dataset.get('pipeline', [])
    holder['dataset'] = dict(type='StandIn', kind=kind, folder=str(folder), pipeline=pipeline)
