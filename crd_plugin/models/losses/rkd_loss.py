"""Relational knowledge distillation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from crd_plugin.ops import pair_vectors, unit_vectors
from crd_plugin.registry import MODELS

from .._numbers import not_negative
from ._common import FeatureLoss


@MODELS.register_module()
class RKDLoss(FeatureLoss):
    """Relational distillation: distances and angles between samples.

    ``L = w_d mean l(D_s, D_t) + w_a mean l(A_s, A_t)`` with l the smooth L1 loss, D the Euclidean
    distances divided by their mean, and A the cosines of the angles at sample i between j and k.

    Source: Park et al., arXiv:1904.05068, section 3.2; numbers of HobbitLong/RepDistiller
    ``distiller_zoo/RKD.py``, except that a sample that a batch holds twice has a gradient of the
    size of the others'.

    Args:
        distance_weight (float): Factor w_d. Defaults to 25.0.
        angle_weight (float): Factor w_a. Defaults to 50.0.
        loss_weight (float): Factor of the sum. Defaults to 1.0, as published.

    Shape:
        One vector per sample, ``(B, D_s)`` and ``(B, D_t)``, B at least 2 (of two samples, the loss
        is always 0); maps are flattened.

    Raises:
        ValueError: If a weight is negative or not finite, or both parts have weight 0.
        TypeError: If a weight is not a number.
    """

    pairing = staticmethod(pair_vectors)
    min_samples = 2

    def __init__(
        self, distance_weight: float = 25.0, angle_weight: float = 50.0, loss_weight: float = 1.0
    ) -> None:
        super().__init__(loss_weight)
        self.distance_weight = not_negative('distance_weight', distance_weight)
        self.angle_weight = not_negative('angle_weight', angle_weight)
        if distance_weight == angle_weight == 0:
            raise ValueError(
                'distance_weight and angle_weight are both 0, so nothing is left of the loss; '
                'expected at least one of them (published: 25 and 50).'
            )

    def compare_layer(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss, without its factor; a part of weight 0 is left out."""
        losses = []
        for weight, relation in ((self.distance_weight, _distances), (self.angle_weight, _angles)):
            if weight:
                losses.append(weight * F.smooth_l1_loss(relation(student), relation(teacher)))
        return torch.stack(losses).sum()


def _distances(x: Tensor) -> Tensor:
    """Compute the distances of all pairs divided by their mean, ``(B, B)``."""
    squares = x.square().sum(1)
    distance = squares[:, None] + squares - 2 * x @ x.mT
    distance = distance.clamp(min=1e-12).sqrt()
    batch = x.size(0)
    own = torch.eye(batch, dtype=torch.bool, device=x.device)
    distance = distance.masked_fill(own, 0)
    # The clamp leaves all but the diagonal positive, so this is the mean of the positive ones.
    return distance * (batch * (batch - 1) / distance.sum())


def _angles(x: Tensor) -> Tensor:
    """Compute the cosine of the angle at sample i between j and k, ``(B, B, B)``."""
    unit = unit_vectors(x - x[:, None], dim=2)
    return unit @ unit.mT
