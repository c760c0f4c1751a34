"""Activation boundaries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from crd_plugin.ops import full_precision
from crd_plugin.registry import MODELS

from ..connectors.conv_regressor import ConvRegressor
from ._common import (
    Pairs,
    Shapes,
    SizedLoss,
    positive,
    shapes,
    shapes_of,
)


@MODELS.register_module()
class ABLoss(SizedLoss):
    r"""Distillation of activation boundaries.

    The student's maps, before their activation, are pushed beyond a margin :math:`\mu` on that
    side of zero where the teacher's are:

    .. math::
        L = \frac{3}{1000 B} \sum_i 2^{i-L+1} \sum_x \begin{cases}
            (s + \mu)^2 & t \le 0,\ s > -\mu \\
            (s - \mu)^2 & t > 0,\ s \le \mu \\
            0 & \text{otherwise} \end{cases}

    with layers i = 0 ... L - 1. Where channels or sizes differ, a convolution with batch norm
    (:class:`ConvRegressor`) brings the student's map to the teacher's shape. Used alone, in a stage
    before the classifier is trained.

    Source: Heo et al., arXiv:1811.03233, section 3; numbers of HobbitLong/RepDistiller
    ``distiller_zoo/AB.py`` and ``models/util.py``. ``mmrazor.ABLoss`` gives the same number for one
    layer; it has neither the convolutions nor the weights of the layers.

    Args:
        s_shapes (Sequence[Sequence[int]], optional): Channels, height and width of each student
            map. Defaults to None: inferred by ``FrozenTeacherDistill``.
        t_shapes (Sequence[Sequence[int]], optional): Channels, height and width of each teacher
            map. Defaults to None: inferred.
        margin (float): mu, in units of the activation. Defaults to 1.0.
        loss_weight (float): Factor of the loss. Defaults to 1.0, as published.

    Shape:
        Maps ``(B, C, H, W)`` of each layer, shallow to deep, before the activation
        (``pre_activation=True`` of our backbones).

    Raises:
        ValueError: If an argument is out of range, or one convolution does not lead from a student
            shape to its teacher's.
        TypeError: If ``margin`` or ``loss_weight`` is not a number.
    """

    takes_stages = True
    before_activation = True

    measure = staticmethod(shapes_of)

    def __init__(
        self,
        s_shapes: Sequence[Sequence[int]] | None = None,
        t_shapes: Sequence[Sequence[int]] | None = None,
        margin: float = 1.0,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(loss_weight)
        self.margin = positive('margin', margin, 1.0)
        self.connectors = nn.ModuleList()
        self.set_sizes(s_shapes=shapes('s_shapes', s_shapes), t_shapes=shapes('t_shapes', t_shapes))

    def check(self, pairs: Pairs) -> None:
        """Raise a ValueError if the connectors do not bring the student's maps to the teacher's."""
        self.check_fits(self.connectors, pairs)

    def compare(self, pairs: Pairs) -> Tensor:
        """Compute the loss of all layers, without its factor."""
        losses = [
            # Under autocast the connector may run in half precision, the sum must not.
            boundary_loss(full_precision(connector(student)), teacher, self.margin)
            for connector, (student, teacher) in zip(self.connectors, pairs)
        ]
        total = torch.stack([2.0 ** (i + 1 - len(losses)) * loss for i, loss in enumerate(losses)])
        # The published scale; it has no other reason.
        return total.sum() * (3 / 1000 / len(pairs[0][0]))

    def build(self, s_size: Shapes, t_size: Shapes) -> None:
        """Make one connector per layer."""
        self.connectors.extend(
            nn.Identity() if s == t else ConvRegressor(s, t, relu=False)
            for s, t in zip(s_size, t_size)
        )


def boundary_loss(student: Tensor, teacher: Tensor, margin: float) -> Tensor:
    """Sum the squares by which the student misses the margin on the teacher's side."""
    towards = torch.where(teacher > 0, student, -student)
    return (margin - towards).clamp(min=0).square().sum()
