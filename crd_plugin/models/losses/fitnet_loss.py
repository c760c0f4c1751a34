"""FitNet hints."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from crd_plugin.ops import full_precision
from crd_plugin.registry import MODELS

from ..connectors.conv_regressor import ConvRegressor, check_shape
from ._common import (
    Pairs,
    Shapes,
    SizedLoss,
    shapes_of,
)


@MODELS.register_module()
class FitNetLoss(SizedLoss):
    r"""FitNet: a regressor brings the student's map to the teacher's.

    .. math::
        L = \frac{1}{B C H W} \lVert r(F_s) - F_t \rVert^2

    with r a convolution, batch norm and ReLU (:class:`ConvRegressor`), trained together with the
    student in one stage.

    Source: Romero et al., arXiv:1412.6550, section 2.2; numbers of HobbitLong/RepDistiller
    ``distiller_zoo/FitNet.py``. Unlike ``mmrazor.L2Loss`` with a convolutional connector, the
    regressor is chosen by the heights of both maps and needs no widths in the config, and the mean
    is taken in float32 under autocast.

    Args:
        s_shape (Sequence[int], optional): Channels, height, width of the student's map. Defaults to
            None: inferred by ``FrozenTeacherDistill``.
        t_shape (Sequence[int], optional): Channels, height, width of the teacher's map. Defaults to
            None: inferred.
        loss_weight (float): Factor of the loss. Defaults to 1.0 (published: 100).

    Shape:
        One map each, ``(B, *s_shape)`` and ``(B, *t_shape)``. Other sizes fit if their heights
        relate in the same way.

    Raises:
        ValueError: If an argument is out of range, or one convolution does not lead from one shape
            to the other.
        TypeError: If ``loss_weight`` is not a number.
    """

    measure = staticmethod(shapes_of)
    published_layer = '1, the second stage'

    def __init__(
        self,
        s_shape: Sequence[int] | None = None,
        t_shape: Sequence[int] | None = None,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(loss_weight)
        self.set_sizes(
            s_shape=None if s_shape is None else (check_shape('s_shape', s_shape),),
            t_shape=None if t_shape is None else (check_shape('t_shape', t_shape),),
        )

    def check(self, pairs: Pairs) -> None:
        """Raise a ValueError if the regressor does not bring the student's map to the teacher's."""
        self.check_fits(self.children(), pairs)

    def compare_layer(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss, without its factor."""
        # Under autocast the regressor may run in half precision, the mean must not.
        return F.mse_loss(full_precision(self.regressor(student)), teacher)

    def build(self, s_size: Shapes, t_size: Shapes) -> None:
        """Make the regressor."""
        self.regressor = ConvRegressor(s_size[0], t_size[0])
