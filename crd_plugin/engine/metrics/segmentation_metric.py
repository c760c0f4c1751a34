"""Pixel accuracy and mean intersection over union."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric

from crd_plugin.registry import METRICS


@METRICS.register_module()
class SegmentationMetric(BaseMetric):
    """Compare predicted label maps with the true ones, over the labelled pixels of all images.

    ``pixel_accuracy`` is the share of right pixels; ``mean_iou`` the mean over classes of
    intersection over union, both in percent. A class that is neither present nor predicted has no
    union and is left out of the mean.

    Args:
        num_classes (int): Number of classes C.
        ignore_index (int): Value of unlabelled pixels, which do not count. Defaults to 255.
        **kwargs: Arguments of ``mmengine.evaluator.BaseMetric``.

    Raises:
        ValueError: If a label map has a value out of range or another size than the prediction.
    """

    default_prefix = 'segmentation'

    def __init__(self, num_classes: int, ignore_index: int = 255, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.ignore_index = ignore_index

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep the confusion matrix ``(C, C)`` of each image, true classes in rows."""
        for sample in data_samples:
            true, found = (
                torch.as_tensor(sample[name]).cpu().numpy().astype(np.int64)
                for name in ('gt_seg_map', 'pred_seg_map')
            )
            if true.shape != found.shape:
                raise ValueError(
                    f'gt_seg_map is {true.shape} and pred_seg_map {found.shape}, expected one '
                    'size; resize both in the pipeline.'
                )
            known = true != self.ignore_index
            true, found = true[known], found[known]
            for name, values in (('gt_seg_map', true), ('pred_seg_map', found)):
                if values.size and not 0 <= values.min() <= values.max() < self.num_classes:
                    raise ValueError(
                        f'{name} has values from {values.min()} to {values.max()}, expected 0 to '
                        f'{self.num_classes - 1}; set num_classes of the metric and of the head to '
                        'that of the data set.'
                    )
            cells = np.bincount(true * self.num_classes + found, minlength=self.num_classes**2)
            self.results.append(cells.reshape(self.num_classes, self.num_classes))

    def compute_metrics(self, results: list[np.ndarray]) -> dict[str, float]:
        """Compute both numbers from the matrices of all images; NaN without a labelled pixel."""
        confusion = np.sum(results, axis=0)
        right = confusion.diagonal()
        union = confusion.sum(0) + confusion.sum(1) - right
        present = union > 0
        if not present.any():
            return dict(pixel_accuracy=float('nan'), mean_iou=float('nan'))
        return dict(
            pixel_accuracy=float(100 * right.sum() / confusion.sum()),
            mean_iou=float(100 * (right[present] / union[present]).mean()),
        )
