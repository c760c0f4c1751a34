"""Preprocessing of several views of each image."""

from __future__ import annotations

from collections.abc import Sequence
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
        views = _views_of(data)
        if views is None:
            return self.preprocessor(data, training)
        # The samples once: the preprocessor may write to them.
        first = self.preprocessor({**data, 'inputs': views[0]}, training)
        others = [self.preprocessor(dict(inputs=view), training)['inputs'] for view in views[1:]]
        return {**first, 'inputs': [first['inputs'], *others]}


def _views_of(data: dict) -> Sequence | None:
    """Return the views of a collated batch; None for single images."""
    inputs = data['inputs']
    if isinstance(inputs, Tensor):
        return None
    # A view is a list of images (pseudo_collate) or (B, C, H, W) (default_collate).
    return inputs if not isinstance(inputs[0], Tensor) or inputs[0].dim() == 4 else None
