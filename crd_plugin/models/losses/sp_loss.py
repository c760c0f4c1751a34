"""Similarity-preserving distillation."""

from torch import Tensor

from crd_plugin.ops import unit_vectors
from crd_plugin.registry import MODELS

from ._common import FeatureLoss


@MODELS.register_module()
class SPLoss(FeatureLoss):
    """Similarity-preserving distillation: which samples resemble each other.

    ``L = sum over layers of mean (G_s - G_t)^2``, ``G = F F^T`` of the flattened maps, each row
    divided by its norm.

    Source: Tung and Mori, arXiv:1907.09682, section 3; numbers of HobbitLong/RepDistiller
    ``distiller_zoo/SP.py``, except that the gradient of a sample whose map is zero is not 1e12
    times too large.

    Args:
        loss_weight (float): Factor of the loss. Defaults to 1.0 (published: 3000).

    Shape:
        Maps ``(B, C, H, W)`` of each layer; channels, heights and widths may differ.
    """

    min_samples = 2

    def compare_layer(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss of one layer."""
        return (_similarity(student) - _similarity(teacher)).square().mean()


def _similarity(feature_map: Tensor) -> Tensor:
    """Compute the row-normalised products of all pairs of samples, ``(B, B)``."""
    flat = feature_map.flatten(1)
    return unit_vectors(flat @ flat.mT, dim=1)
