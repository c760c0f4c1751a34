"""Activation boundaries."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from crd_plugin.ops import full_precision
from crd_plugin.registry import MODELS

from .._numbers import positive
from ..connectors.conv_regressor import ConvRegressor
from ._common import Pairs, Shapes, SizedLoss


@MODELS.register_module()
class ABLoss(SizedLoss):
    """Distillation of activation boundaries.

    The student's maps, before their activation, are pushed beyond a margin on that side of zero
    where the teacher's are: the squares by which they miss it are summed, layer i of n counts
    ``2^(i - n + 1)``. Where channels or sizes differ, a :class:`ConvRegressor` brings the student's
    map to the teacher's shape. Used alone, in a stage before the classifier is trained.

    Source: Heo et al., arXiv:1811.03233, section 3; numbers of HobbitLong/RepDistiller
    ``distiller_zoo/AB.py`` and ``models/util.py``.

    Args:
        s_shapes (Sequence[Sequence[int]], optional): Channels, height and width of each student
            map. Defaults to None: inferred by ``FrozenTeacherDistill``.
        t_shapes (Sequence[Sequence[int]], optional): The same of the teacher.
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
    by_shape = True

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
        self.set_sizes(s_shapes=s_shapes, t_shapes=t_shapes)

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
