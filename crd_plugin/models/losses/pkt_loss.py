"""Probabilistic knowledge transfer."""

import torch
from torch import Tensor

from crd_plugin.ops import pair_vectors
from crd_plugin.registry import MODELS

from ._common import FeatureLoss

# The value of HobbitLong/RepDistiller; it changes the numbers in float32.
_EPS = 1e-7


@MODELS.register_module()
class PKTLoss(FeatureLoss):
    """Probabilistic knowledge transfer: which samples are neighbours.

    ``L = mean over i, j of p_t log ((p_t + eps) / (p_s + eps))``, p the rows of ``1 + cos(x_i,
    x_j)`` divided by their sum. The mean over all pairs is small; hence the large published weight.

    Source: Passalis and Tefas, ECCV 2018, arXiv:1803.10837, section 3; numbers of
    HobbitLong/RepDistiller ``distiller_zoo/PKT.py``, except that a zero vector has a finite
    gradient instead of NaN.

    Args:
        loss_weight (float): Factor of the loss. Defaults to 1.0 (published: 30000).

    Shape:
        One vector per sample, ``(B, D_s)`` and ``(B, D_t)``; maps are flattened.
    """

    pairing = staticmethod(pair_vectors)
    min_samples = 2

    def compare_layer(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss, without its factor."""
        p_s, p_t = _neighbours(student), _neighbours(teacher)
        return (p_t * ((p_t + _EPS) / (p_s + _EPS)).log()).mean()


def _neighbours(x: Tensor) -> Tensor:
    """Turn cosine similarities into probabilities, row by row, ``(B, B)``."""
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    # A zero vector is not divided, so that its gradient is of the size of the others'.
    unit = x / (norm + _EPS).masked_fill(norm == 0, 1)
    similarity = (unit @ unit.mT + 1) / 2
    return similarity / similarity.sum(1, keepdim=True)
