"""Preprocessing of several views of each image."""

from typing import Any, Dict, List, Optional

from mmengine.model import BaseDataPreprocessor
from torch import Tensor


class MultiViewPreprocessor(BaseDataPreprocessor):
    """Sends each view of a batch through another preprocessor.

    So training on several views and testing on single images share one
    config, that of the data set. MMPretrain's ``SelfSupDataPreprocessor``
    takes views too, but it pads nothing, knows no labels, and asks for
    another ``collate_fn`` and arguments than ``ClsDataPreprocessor``.

    Args:
        preprocessor (BaseDataPreprocessor): Of single images. Batch
            augmentations such as mixup are refused: each view would be mixed
            with other images.

    Raises:
        ValueError: If ``preprocessor`` has batch augmentations.
    """

    def __init__(self, preprocessor: BaseDataPreprocessor) -> None:
        super().__init__()
        if getattr(preprocessor, 'batch_augments', None) is not None:
            raise ValueError(
                'data_preprocessor.batch_augments mixes images, but the views '
                'of an image must show it alone; remove batch_augments.'
            )
        self.preprocessor = preprocessor

    def forward(self, data: Any, training: bool = False) -> Any:
        """Preprocess a batch of images or of views of them.

        Args:
            data (dict): As collated: under ``inputs`` images, or a list with
                the images of each view.
            training (bool): Handed on. Defaults to False.

        Returns:
            dict: ``inputs`` is a batch ``(B, C, H, W)``, or a list of one
            such batch a view, and ``data_samples``.
        """
        views = views_of(data)
        if views is None:
            return self.preprocessor(data, training)
        first: Optional[Dict[str, Any]] = None
        batches: List[Tensor] = []
        for view in views:
            # Samples once: the preprocessor may write to them.
            batch = {**data, 'inputs': view}
            if first is not None:
                batch.pop('data_samples', None)
            batch = self.preprocessor(batch, training)
            first = batch if first is None else first
            batches.append(batch['inputs'])
        return {**first, 'inputs': batches}


def views_of(data: Any) -> Optional[list]:
    """Views of a collated batch.

    Args:
        data (dict): Of ``pseudo_collate`` (a list of images a view) or
            ``default_collate`` (a tensor ``(B, C, H, W)`` a view).

    Returns:
        list | None: One entry a view; None for single images.
    """
    inputs = data.get('inputs') if isinstance(data, dict) else None
    if not isinstance(inputs, (list, tuple)) or not inputs:
        return None
    several = isinstance(inputs[0], (list, tuple)) or (
        isinstance(inputs[0], Tensor) and inputs[0].dim() == 4
    )
    return list(inputs) if several else None
