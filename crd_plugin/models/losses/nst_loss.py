"""Neuron selectivity transfer."""

from torch import Tensor

from crd_plugin.ops import match_heights, unit_vectors
from crd_plugin.registry import MODELS

from ._common import FeatureLoss


@MODELS.register_module()
class NSTLoss(FeatureLoss):
    """Neuron selectivity transfer: where the channels are active.

    Each channel of a map is a unit vector over its positions; the loss is the squared maximum mean
    discrepancy ``mean k(t, t') + mean k(s, s') - 2 mean k(s, t)`` of both sets of channels with the
    kernel ``k(a, b) = (a . b)^2``.

    Source: Huang and Wang, arXiv:1707.01219, section 4 (d=2, c=0); numbers of
    HobbitLong/RepDistiller ``distiller_zoo/NST.py``; no tensor has more than
    ``B * max(C, H * W)^2`` numbers.

    Args:
        loss_weight (float): Factor of the loss. Defaults to 1.0 (published: 50).

    Shape:
        Maps ``(B, C, H, W)`` of each layer; the higher map is pooled to the size of the lower one.
    """

    takes_stages = True

    def compare_layer(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the squared discrepancy of one layer, averaged over the batch."""
        student, teacher = match_heights(student, teacher)
        s, t = (unit_vectors(x.flatten(2), dim=2) for x in (student, teacher))  # (B, C, H * W)
        (c_s, positions), c_t = s.shape[1:], t.size(1)
        if positions * (c_s + c_t) < c_s**2 + c_t**2 + c_s * c_t:
            # The mean of (a.b)^2 is the inner product of the mean outer products a a^T, so the
            # discrepancy is the squared distance of two matrices over positions.
            gap = s.mT @ s / c_s - t.mT @ t / c_t
            return gap.square().sum((1, 2)).mean()
        kernels = [(a @ b.mT).square().mean() for a, b in ((s, s), (t, t), (s, t))]
        return kernels[0] + kernels[1] - 2 * kernels[2]
