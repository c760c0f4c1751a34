"""FitNet hints."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from crd_plugin.ops import full_precision
from crd_plugin.registry import MODELS

from ..connectors.conv_regressor import ConvRegressor
from ._common import Shapes, SizedLoss


@MODELS.register_module()
class FitNetLoss(SizedLoss):
    """FitNet: a regressor brings the student's map to the teacher's.

    ``L = mean (r(F_s) - F_t)^2`` with r a convolution, batch norm and ReLU
    (:class:`ConvRegressor`), trained together with the student in one stage.

    Source: Romero et al., arXiv:1412.6550, section 2.2; numbers of HobbitLong/RepDistiller
    ``distiller_zoo/FitNet.py``.

    Args:
        s_shape (Sequence[int], optional): Channels, height, width of the student's map. Defaults to
            None: inferred by ``FrozenTeacherDistill``.
        t_shape (Sequence[int], optional): The same of the teacher.
        loss_weight (float): Factor of the loss. Defaults to 1.0 (published: 100).

    Shape:
        One map each, ``(B, *s_shape)`` and ``(B, *t_shape)``. Other sizes fit if their heights
        relate in the same way.

    Raises:
        ValueError: If an argument is out of range, or one convolution does not lead from one shape
            to the other.
        TypeError: If ``loss_weight`` is not a number.
    """

    by_shape = True
    published_layer = '1, the second stage'

    def __init__(
        self,
        s_shape: Sequence[int] | None = None,
        t_shape: Sequence[int] | None = None,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(loss_weight)
        self.set_sizes(s_shape=s_shape, t_shape=t_shape)

    def compare_layer(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss, without its factor."""
        # Under autocast the regressor may run in half precision, the mean must not.
        return F.mse_loss(full_precision(self.regressor(student)), teacher)

    def build(self, s_size: Shapes, t_size: Shapes) -> None:
        """Make the regressor."""
        self.regressor = ConvRegressor(s_size[0], t_size[0])
