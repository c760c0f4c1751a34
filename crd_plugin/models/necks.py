"""Necks: what a head is given of the outputs of a backbone."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from crd_plugin.registry import MODELS

from ._numbers import count

__all__ = ['LayerFeature']


@MODELS.register_module()
class LayerFeature(nn.Module):
    """Flatten the map of one layer, for a linear probe of it.

    Source: the linear classifiers of HobbitLong/CMC, ``models/LinearModel.py`` @ 0f2b643, which
    reduce maps of early layers by max pooling to about 9,000 numbers.

    Args:
        layer (int): Index among the outputs of the backbone, see its ``out_indices``.
        size (int, optional): Height and width that maps are reduced to by adaptive max pooling.
            Defaults to None: as they are.

    Raises:
        ValueError: If an argument is out of range, or a backbone has no such output.
    """

    def __init__(self, layer: int, size: int | None = None) -> None:
        super().__init__()
        if type(layer) is not int:
            raise ValueError(f'layer is {layer!r}, expected the index of an output.')
        self.layer, self.size = layer, None if size is None else count('size', size)

    def forward(self, outputs: Sequence[Tensor]) -> tuple[Tensor]:
        """Pick one of the outputs ``(B, C, H, W)`` or ``(B, C)`` and flatten it."""
        if not -len(outputs) <= self.layer < len(outputs):
            raise ValueError(
                f'layer is {self.layer}, but the backbone has {len(outputs)} outputs, counted from '
                '0; choose one of them, or set backbone.out_indices.'
            )
        feature = outputs[self.layer]
        if self.size is not None and feature.dim() == 4:
            feature = F.adaptive_max_pool2d(feature, self.size)
        return (feature.flatten(1),)
