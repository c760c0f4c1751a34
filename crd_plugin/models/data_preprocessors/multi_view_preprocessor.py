"""Preprocessing of several views of each image."""

from __future__ import annotations

from typing import Any

from mmengine.model import BaseDataPreprocessor
from torch import Tensor


class MultiViewPreprocessor(BaseDataPreprocessor):
    """Send each view of a batch through another preprocessor.

    So training on several views and testing on single images share one config, that of the data
    set. Differs from MMPretrain's ``SelfSupDataPreprocessor``, which takes views too, but does not
    pad, does not handle labels, and needs another ``collate_fn`` and other arguments than
    ``ClsDataPreprocessor``.

    Args:
        preprocessor (BaseDataPreprocessor): Preprocessor of single images. Batch augmentations such
            as Mixup are refused: each view would be mixed with other images.

    Raises:
        ValueError: If ``preprocessor`` has batch augmentations.
    """

    def __init__(self, preprocessor: BaseDataPreprocessor) -> None:
        super().__init__()
        if getattr(preprocessor, 'batch_augments', None) is not None:
            raise ValueError(
                'data_preprocessor.batch_augments mixes images, but the views of an image must '
                'show it alone; remove batch_augments.'
            )
        self.preprocessor = preprocessor

    def forward(self, data: Any, training: bool = False) -> Any:
        """Preprocess a batch of images, or of views of them.

        Args:
            data (dict): As collated: under ``inputs`` images, or a list with the images of each
                view.
            training (bool): Passed on. Defaults to False.

        Returns:
            dict: ``inputs``, a batch ``(B, C, H, W)`` or a list of one such batch per view, and
            ``data_samples``.
        """
        views = views_of(data)
        if views is None:
            return self.preprocessor(data, training)
        # The samples once: the preprocessor may write to them.
        first = self.preprocessor({**data, 'inputs': views[0]}, training)
        others = [self.preprocessor(dict(inputs=view), training)['inputs'] for view in views[1:]]
        return {**first, 'inputs': [first['inputs'], *others]}


def views_of(data: Any) -> list | None:
    """Return the views of a collated batch.

    Args:
        data (dict): From ``pseudo_collate`` (a list of images per view) or ``default_collate`` (a
            tensor ``(B, C, H, W)`` per view).

    Returns:
        list | None: One entry per view; None for single images.
    """
    inputs = data.get('inputs') if isinstance(data, dict) else None
    if not isinstance(inputs, (list, tuple)) or not inputs:
        return None
    first = inputs[0]
    is_view = isinstance(first, (list, tuple)) or (isinstance(first, Tensor) and first.dim() == 4)
    return list(inputs) if is_view else None
