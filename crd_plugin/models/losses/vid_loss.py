"""Variational information distillation."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crd_plugin.ops import match_heights
from crd_plugin.registry import MODELS

from .._numbers import positive
from ._common import Pairs, SizedLoss, Widths


@MODELS.register_module()
class VIDLoss(SizedLoss):
    """Variational information distillation: predict the teacher's maps.

    ``L = sum over layers of mean ((mu(F_s) - F_t)^2 / v + log v) / 2`` with one regressor mu (three
    1x1 convolutions with ReLU between) and one variance ``v = softplus(a) + eps`` per teacher
    channel for each layer, trained with the student. It can be negative.

    Source: Ahn et al., arXiv:1904.05835, section 2; numbers of HobbitLong/RepDistiller
    ``distiller_zoo/VID.py``.

    Args:
        s_channels (int | Sequence[int], optional): Channels of the student's maps, one per layer.
            Defaults to None: inferred by ``FrozenTeacherDistill``.
        t_channels (int | Sequence[int], optional): Channels of the teacher's maps. Defaults to
            None: inferred.
        init_variance (float): Initial value of v. Defaults to 5.0.
        eps (float): Lower bound of v, below ``init_variance``. Defaults to 1e-5.
        loss_weight (float): Factor of the loss. Defaults to 1.0, as published.

    Shape:
        Maps ``(B, C, H, W)`` of each layer; the higher map is pooled to the size of the lower one.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If an argument is not a number where one is expected.
    """

    takes_stages = True

    def __init__(
        self,
        s_channels: Widths | None = None,
        t_channels: Widths | None = None,
        init_variance: float = 5.0,
        eps: float = 1e-5,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(loss_weight)
        self.init_variance = positive('init_variance', init_variance, 5.0)
        self.eps = positive('eps', eps, 1e-5)
        if eps >= init_variance:
            raise ValueError(
                f'eps is {eps} and init_variance {init_variance}; the variance starts above its '
                'lower bound eps (published: 1e-5 and 5.0).'
            )
        self.layers = nn.ModuleList()
        self.set_sizes(s_channels=s_channels, t_channels=t_channels)

    def compare(self, pairs: Pairs) -> Tensor:
        """Compute the loss of all layers, without its factor."""
        losses = [layer(*match_heights(*pair)) for layer, pair in zip(self.layers, pairs)]
        return torch.stack(losses).sum()

    def build(self, s_size: tuple[int, ...], t_size: tuple[int, ...]) -> None:
        """Make one regressor per layer."""
        self.layers.extend(
            _VIDLayer(s, t, self.init_variance, self.eps) for s, t in zip(s_size, t_size)
        )


class _VIDLayer(nn.Module):
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
        # The inverse of softplus(log_scale) + eps = init_variance.
        above = init_variance - eps
        start = above + math.log(-math.expm1(-above))
        self.log_scale = nn.Parameter(torch.full((t_channels,), start))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the mean negative log-likelihood of the teacher's map."""
        # Under autocast the regressor may run in half precision; the teacher's map is float32.
        gap = self.regressor(student) - teacher
        squares = gap.square().mean((0, 2, 3))  # (C,)
        variance = F.softplus(self.log_scale) + self.eps
        return 0.5 * (squares / variance + variance.log()).mean()
