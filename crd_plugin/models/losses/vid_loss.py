"""Variational information distillation."""

import math
from typing import List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crd_plugin.ops import full_precision, match_heights, no_autocast, pair_maps
from crd_plugin.ops.features import Features
from crd_plugin.registry import MODELS

from ._common import Widths, check_given, finite, not_inferred, positive, widths


@MODELS.register_module()
class VIDLoss(nn.Module):
    r"""Variational information distillation: predict the teacher's maps.

    .. math::
        L = \sum_l \operatorname{mean}_{bchw} \tfrac12 \Big[
            \frac{(\mu^l(F_s^l) - F_t^l)^2}{v_c^l} + \log v_c^l \Big], \quad
        v = \operatorname{softplus}(\alpha) + \epsilon

    with one regressor mu (three 1x1 convolutions, ReLU between) and one
    variance v a teacher channel for each layer, trained with the student. It
    is a bound of the mutual information without its constant, so it can be
    negative.

    Source: Ahn et al., arXiv:1904.05835, section 2; numbers of
    HobbitLong/RepDistiller ``distiller_zoo/VID.py``. MMRazor has no such
    loss.

    Args:
        s_channels (int | Sequence[int], optional): Channels of the student's
            maps, one a layer. Defaults to None: inferred by
            ``FrozenTeacherDistill``.
        t_channels (int | Sequence[int], optional): Channels of the teacher's
            maps. Defaults to None: inferred.
        init_variance (float): First value of v. Defaults to 5.0.
        eps (float): Lower bound of v, below ``init_variance``. Defaults to
            1e-5.
        loss_weight (float): Factor of the loss. Defaults to 1.0, as
            published.

    Shape:
        s_feats, t_feats: a map ``(B, C, H, W)`` or a list of them, one a
        layer. Output: scalar float32 (float64 for float64 maps).

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If one is no number where a number is expected.
    """

    def __init__(
        self,
        s_channels: Optional[Widths] = None,
        t_channels: Optional[Widths] = None,
        init_variance: float = 5.0,
        eps: float = 1e-5,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.loss_weight = finite('loss_weight', loss_weight)
        self.init_variance = positive('init_variance', init_variance, 5.0)
        self.eps = positive('eps', eps, 1e-5)
        if eps >= init_variance:
            raise ValueError(
                f'eps is {eps} and init_variance {init_variance}; the '
                'variance starts above its lower bound eps (published: 1e-5 '
                'and 5.0).'
            )
        self.s_channels = widths('s_channels', s_channels)
        self.t_channels = widths('t_channels', t_channels)
        self.layers = nn.ModuleList()
        if self.s_channels and self.t_channels:
            self._build()

    @property
    def needs_width(self) -> bool:
        """bool: The regressors are still to be made from features."""
        return not self.layers

    def infer_width(self, s_feats: Features, t_feats: Features) -> None:
        """Take the channels from pairs of maps and make the regressors.

        Args:
            s_feats (Tensor | Sequence[Tensor]): As given to :meth:`forward`.
            t_feats (Tensor | Sequence[Tensor]): Likewise.

        Raises:
            ValueError: If channels of the config differ.
        """
        found = _channels(pair_maps(s_feats, t_feats))
        check_given('s_channels', self.s_channels, found[0])
        check_given('t_channels', self.t_channels, found[1])
        self.s_channels, self.t_channels = found
        self._build()

    def forward(self, s_feats: Features, t_feats: Features) -> Tensor:
        """Loss of one batch.

        Args:
            s_feats (Tensor | Sequence[Tensor]): Student's maps.
            t_feats (Tensor | Sequence[Tensor]): Teacher's maps, as many.

        Returns:
            Tensor: Sum over the layers, multiplied by ``loss_weight``.

        Raises:
            ValueError: If layers or shapes do not fit.
        """
        pairs = pair_maps(s_feats, t_feats)
        if self.needs_width:
            raise not_inferred('VIDLoss', 's_channels and t_channels')
        found = _channels(pairs)
        check_given('s_channels', self.s_channels, found[0])
        check_given('t_channels', self.t_channels, found[1])
        return self.loss_weight * sum(layer(*pair) for layer, pair in zip(self.layers, pairs))

    def _build(self) -> None:
        """Make one regressor a layer."""
        if len(self.s_channels) != len(self.t_channels):
            raise ValueError(
                f's_channels has {len(self.s_channels)} layers and '
                f't_channels {len(self.t_channels)}, expected as many.'
            )
        for s, t in zip(self.s_channels, self.t_channels):
            self.layers.append(_Layer(s, t, self.init_variance, self.eps))


class _Layer(nn.Module):
    """Regressor and variances of one layer."""

    def __init__(self, s_channels: int, t_channels: int, init_variance: float, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.regressor = nn.Sequential(
            nn.Conv2d(s_channels, t_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(t_channels, t_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(t_channels, t_channels, 1, bias=False),
        )
        # softplus(log_scale) + eps is init_variance.
        above = init_variance - eps
        start = above + math.log(-math.expm1(-above))
        self.log_scale = nn.Parameter(torch.full((t_channels,), start))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Negative log-likelihood of the teacher's map, a mean."""
        student, teacher = match_heights(student, teacher)
        mean = full_precision(self.regressor(student))
        with no_autocast(mean):
            variance = F.softplus(self.log_scale) + self.eps
            # The mean over the map first: C numbers a sample remain.
            squares = (mean - teacher).square().mean((0, 2, 3))
            return 0.5 * (squares / variance + variance.log()).mean()


def _channels(pairs: Sequence[Tuple[Tensor, Tensor]]) -> List[tuple]:
    """Channels of the student's and of the teacher's maps."""
    return [tuple(x.size(1) for x in side) for side in zip(*pairs)]
