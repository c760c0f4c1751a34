"""Preprocessing of several views of each image."""

from typing import Any

from mmengine.model import BaseDataPreprocessor
from torch import Tensor


class MultiViewPreprocessor(BaseDataPreprocessor):
    """Send each view of a batch through another preprocessor.

    So training on several views and testing on single images share one config. Why not MMPretrain's
    ``SelfSupDataPreprocessor``: it does not pad or handle labels, and has other arguments.

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
        """Preprocess collated images to ``(B, C, H, W)``, or views of them to a list of such."""
        views = data['inputs']
        # A view is a list of images (pseudo_collate) or (B, C, H, W) (default_collate).
        if isinstance(views, Tensor) or isinstance(views[0], Tensor) and views[0].dim() != 4:
            return self.preprocessor(data, training)
        # The samples once: the preprocessor may write to them.
        first = self.preprocessor({**data, 'inputs': views[0]}, training)
        others = [self.preprocessor(dict(inputs=view), training)['inputs'] for view in views[1:]]
        return {**first, 'inputs': [first['inputs'], *others]}
