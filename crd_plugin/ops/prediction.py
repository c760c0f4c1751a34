"""Distance between a prediction and its target."""

from torch import Tensor

from .features import full_precision, no_autocast, unit_vectors

__all__ = ['prediction_distance']


def prediction_distance(prediction: Tensor, target: Tensor) -> Tensor:
    """Compute the squared distance of unit vectors, ``2 - 2 cos``, per sample.

    Source: Grill et al., arXiv:2006.07733, eq. 2; numbers of ShipengFu/CoCoRD ``helper/util.py``,
    class DistillMSE, @ 645b95d.

    Args:
        prediction (Tensor): Predictions, ``(B, D)`` float.
        target (Tensor): Targets, ``(B, D)`` float; no gradient reaches them.

    Returns:
        Tensor: ``(B,)`` float32 (float64 for float64 predictions).
    """
    with no_autocast(prediction):
        prediction = unit_vectors(full_precision(prediction), dim=-1)
        target = unit_vectors(full_precision(target.detach()), dim=-1)
        return 2 - 2 * (prediction * target).sum(-1)
