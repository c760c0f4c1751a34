"""Relational knowledge distillation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from crd_plugin.ops import pair_vectors, unit_vectors
from crd_plugin.ops.features import Features
from crd_plugin.registry import MODELS

from ._common import FeatureLoss, Pairs, not_negative


@MODELS.register_module()
class RKDLoss(FeatureLoss):
    r"""Relational distillation: distances and angles between samples.

    .. math::
        L = w_d \operatorname{mean}_{ij} \ell(D^s_{ij}, D^t_{ij})
          + w_a \operatorname{mean}_{ijk} \ell(A^s_{ijk}, A^t_{ijk})

    with l the smooth L1 loss, D the Euclidean distances divided by their mean, and A the cosine of
    the angle at sample i between samples j and k.

    Source: Park et al., arXiv:1904.05068, section 3.2; numbers of HobbitLong/RepDistiller
    ``distiller_zoo/RKD.py``. In float32 it is the sum of ``mmrazor.DistanceWiseRKD`` and
    ``mmrazor.AngleWiseRKD``, both with ``with_l2_norm=False``. Those overflow under autocast to
    float16, return NaN for a batch of one sample, and give a sample that a batch holds twice a
    gradient 1e12 times too large; here the loss is computed in float32, one sample is an error, and
    the gradient is of the size of the others'.

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

    def pair(self, s_feats: Features, t_feats: Features) -> Pairs:
        """Return the flattened features."""
        return [pair_vectors(s_feats, t_feats)]

    def compare_layer(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss, without its factor; a part of weight 0 is left out."""
        losses = []
        for weight, relation in (
            (self.distance_weight, _distances),
            (self.angle_weight, _angles),
        ):
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
