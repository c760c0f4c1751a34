"""Hints from a middle layer."""

from typing import Optional, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from crd_plugin.ops import no_autocast, pair_maps
from crd_plugin.registry import MODELS

from ..connectors.conv_regressor import ConvRegressor, check_shape
from ._common import check_given, finite, not_inferred


@MODELS.register_module()
class FitNetLoss(nn.Module):
    r"""FitNet: a regressor of the student's map meets the teacher's.

    .. math::
        L = \frac{1}{B C H W} \lVert r(F_s) - F_t \rVert^2

    with r a convolution, batch norm and ReLU (:class:`ConvRegressor`),
    trained together with the student in one stage.

    Source: Romero et al., arXiv:1412.6550, section 2.2; numbers of
    HobbitLong/RepDistiller ``distiller_zoo/FitNet.py``. Unlike
    ``mmrazor.L2Loss`` with a convolutional connector, the regressor is chosen
    by the heights of both maps and needs no widths in the config, and the
    mean is taken in float32 whatever autocast says.

    Args:
        s_shape (Sequence[int], optional): Channels, height, width of the
            student's map. Defaults to None: inferred by
            ``FrozenTeacherDistill``.
        t_shape (Sequence[int], optional): Those of the teacher's map.
            Defaults to None: inferred.
        loss_weight (float): Factor of the loss. Defaults to 1.0 (published:
            100).

    Shape:
        s_feats: ``(B, *s_shape)``, t_feats: ``(B, *t_shape)``, or maps of
        other sizes whose heights relate in the same way. Output: scalar
        float32 (float64 for float64 maps).

    Raises:
        ValueError: If an argument is out of range, or one convolution does
            not lead from one shape to the other.
        TypeError: If one is no number where a number is expected.
    """

    def __init__(
        self,
        s_shape: Optional[Sequence[int]] = None,
        t_shape: Optional[Sequence[int]] = None,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.loss_weight = finite('loss_weight', loss_weight)
        self.s_shape, self.t_shape = (
            None if shape is None else check_shape(name, shape)
            for name, shape in (('s_shape', s_shape), ('t_shape', t_shape))
        )
        self.regressor: Optional[ConvRegressor] = None
        if self.s_shape and self.t_shape:
            self.regressor = ConvRegressor(self.s_shape, self.t_shape)

    @property
    def needs_width(self) -> bool:
        """bool: The regressor is still to be made from features."""
        return self.regressor is None

    def infer_width(self, s_feats: Tensor, t_feats: Tensor) -> None:
        """Take the shapes from a pair of maps and make the regressor.

        Args:
            s_feats (Tensor): As given to :meth:`forward`.
            t_feats (Tensor): Likewise.

        Raises:
            ValueError: If a shape of the config differs.
        """
        student, teacher = _pair(s_feats, t_feats)
        found = tuple(student.shape[1:]), tuple(teacher.shape[1:])
        check_given('s_shape', self.s_shape, found[0])
        check_given('t_shape', self.t_shape, found[1])
        self.s_shape, self.t_shape = found
        self.regressor = ConvRegressor(*found)

    def forward(self, s_feats: Tensor, t_feats: Tensor) -> Tensor:
        """Loss of one batch.

        Args:
            s_feats (Tensor): Student's map, ``(B, *s_shape)``.
            t_feats (Tensor): Teacher's map, ``(B, *t_shape)``.

        Returns:
            Tensor: Scalar, already multiplied by ``loss_weight``.

        Raises:
            ValueError: If the regressor does not bring one to the other.
        """
        student, teacher = _pair(s_feats, t_feats)
        if self.regressor is None:
            raise not_inferred('FitNetLoss', 's_shape and t_shape')
        shapes = tuple(student.shape[1:]), tuple(teacher.shape[1:])
        if not self.regressor.fits(*shapes):
            raise ValueError(
                'Channels, height and width of s_feats and t_feats are '
                f'{shapes[0]} and {shapes[1]}, but the regressor was made for '
                f's_shape={self.s_shape} and t_shape={self.t_shape}; set '
                'model.input_shape to the size of the training images.'
            )
        # Under autocast it may run in half precision, the mean may not.
        regressed = self.regressor(student)
        with no_autocast(student):
            loss = F.mse_loss(regressed.to(teacher.dtype), teacher)
        return self.loss_weight * loss


def _pair(s_feats: Tensor, t_feats: Tensor):
    """The one map of each side."""
    pairs = pair_maps(s_feats, t_feats)
    if len(pairs) != 1:
        raise ValueError(
            f's_feats and t_feats have {len(pairs)} layers, FitNetLoss takes '
            'one map of each; choose it with data_idx in '
            'loss_forward_mappings (published: 1, the second stage).'
        )
    return pairs[0]
