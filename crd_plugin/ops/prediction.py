"""Distance of a prediction from its target."""

import torch.nn.functional as F
from torch import Tensor

from .features import full_precision, no_autocast

__all__ = ['prediction_distance']


def prediction_distance(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared distance of unit vectors, ``2 - 2 cos``, of each sample.

    Source: Grill et al., arXiv:2006.07733, eq. 2; numbers of
    ShipengFu/CoCoRD ``helper/util.py``, class DistillMSE, @ 645b95d.

    Args:
        prediction (Tensor): ``(B, D)`` float.
        target (Tensor): Likewise; it gets no gradient.

    Returns:
        Tensor: ``(B,)`` float32 (float64 for float64 predictions).
    """
    with no_autocast(prediction):
        prediction = F.normalize(full_precision(prediction), dim=-1)
        target = F.normalize(full_precision(target.detach()), dim=-1)
        return 2 - 2 * (prediction * target).sum(-1)
