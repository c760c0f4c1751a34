"""Data preprocessors: of resident data, of a view of the images, of several views of each."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor
from mmpretrain.models.utils import ClsDataPreprocessor
from torch import Tensor, nn

from crd_plugin.registry import MODELS

__all__ = ['MultiViewPreprocessor', 'ResidentDataPreprocessor', 'ViewPreprocessor']


@MODELS.register_module()
class ResidentDataPreprocessor(ClsDataPreprocessor):
    """``mmpretrain.ClsDataPreprocessor``, under the name that configs of resident data use."""


@MODELS.register_module()
class ViewPreprocessor(ClsDataPreprocessor):
    """Give a network its view of the images, normalised: luminance, some channels, a size.

    As ``data_preprocessor`` of a network it also counts in a distillation.

    Args:
        view (dict | nn.Module): From pixels, 0 to 255, to what the network sees, such as
            ``dict(type='crd_plugin.LabView', channels='L')``.
        mean (Sequence[float]): Mean of each channel of the view.
        std (Sequence[float]): Standard deviation of each channel of the view.
        **kwargs: Other arguments of ``mmpretrain.ClsDataPreprocessor``. In a distillation all of
            them are the distillation's.

    Raises:
        ValueError: If mean and std do not fit each other or the view.
    """

    def __init__(
        self, view: dict | nn.Module, mean: Sequence[float], std: Sequence[float], **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.view = _NormalisedView(view, mean, std)

    def forward(self, data: dict, training: bool = False) -> dict:
        """Preprocess a collated batch as ``ClsDataPreprocessor`` does, then take the view of it."""
        data = super().forward(data, training)
        return {**data, 'inputs': self.view(data['inputs'])}


class _NormalisedView(nn.Module):
    """A view of pixels, normalised."""

    takes_pixels = True
    mean: Tensor  # (C, 1, 1)
    std: Tensor

    def __init__(self, view: dict | nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or min(std, default=0) <= 0:
            raise ValueError(
                f'mean={mean} and std={std}, expected as many means as positive deviations, one '
                'per channel of the view.'
            )
        self.view = MODELS.build(view) if isinstance(view, dict) else view
        for name, values in dict(mean=mean, std=std).items():
            # Not part of a checkpoint: it follows from the config.
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Look at images ``(B, C, H, W)``."""
        images = self.view(images)
        if images.size(1) != len(self.mean):
            raise ValueError(
                f'the view {type(self.view).__name__} has {images.size(1)} channels, but mean and '
                f'std have {len(self.mean)} numbers; give one per channel of the view.'
            )
        return (images - self.mean.to(images.dtype)) / self.std.to(images.dtype)


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
