"""Attention transfer."""

from torch import Tensor

from crd_plugin.ops import attention_vector, match_heights
from crd_plugin.registry import MODELS

from .._numbers import positive
from ._common import FeatureLoss


@MODELS.register_module()
class ATLoss(FeatureLoss):
    """Attention transfer: the student looks where the teacher looks.

    ``L = sum over layers of mean (q_s - q_t)^2``, q the unit vector of ``mean over c of |F|^p``.

    Source: Zagoruyko and Komodakis, arXiv:1612.03928, section 3.1; numbers of
    HobbitLong/RepDistiller ``distiller_zoo/AT.py``: the mean of squares, not the paper's norm.

    Args:
        power (float): p, positive. Defaults to 2, as published.
        loss_weight (float): Factor of the loss. Defaults to 1.0 (published: 1000).

    Shape:
        Maps ``(B, C, H, W)`` of each layer; the higher map is pooled to the size of the lower one.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If an argument is not a number.
    """

    takes_stages = True

    def __init__(self, power: float = 2, loss_weight: float = 1.0) -> None:
        super().__init__(loss_weight)
        self.power = positive('power', power, 2)

    def compare_layer(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss of one layer."""
        student, teacher = match_heights(student, teacher)
        gap = attention_vector(student, self.power) - attention_vector(teacher, self.power)
        return gap.square().mean()
