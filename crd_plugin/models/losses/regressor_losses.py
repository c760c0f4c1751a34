"""Losses that compare maps after layers of their own, trained with the student."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crd_plugin.ops import absolute_power, attention_vector, full_precision, match_heights
from crd_plugin.ops.features import Features
from crd_plugin.registry import MODELS

from ..connectors.conv_regressor import ConvRegressor, check_shape
from ._common import (
    Pairs,
    Shapes,
    SizedLoss,
    Widths,
    check_given,
    finite,
    positive,
    shapes,
    shapes_of,
    widths,
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


@MODELS.register_module()
class FTLoss(SizedLoss):
    r"""Factor transfer.

    A paraphraser, an autoencoder of the teacher's last map, is trained first
    (:meth:`reconstruction`) and then frozen. Its code, the teacher's factor, is compared with the
    output of a translator of the student's map, which is trained together with the student:

    .. math::
        L = \frac{1}{B H W} \sum \big| q_S - q_T \big|^{p_2}, \quad
        q = \frac{v}{\lVert v \rVert_2}, \quad
        v = \frac{1}{C} \sum_c |F_c|^{p_1}

    Of two factors, the higher one is reduced to the lower one by average pooling.

    Source: Kim et al., arXiv:1802.04977, section 3; numbers of HobbitLong/RepDistiller
    ``distiller_zoo/FT.py`` and ``models/util.py``, which collapse a factor to one map (q above)
    where the paper compares all its channels. ``mmrazor.FTLoss`` compares all channels, has no p_1
    and p_2, and its paraphraser needs a run of its own.

    Args:
        s_channels (int, optional): Channels of the student's map. Defaults to None: inferred by
            ``FrozenTeacherDistill``.
        t_channels (int, optional): Channels of the teacher's map. Defaults to None: inferred.
        rate (float): Channels of a factor, as a fraction of the teacher's. Defaults to 0.5.
        p1 (float): Power of an activation. Defaults to 2.
        p2 (float): Power of the difference. Defaults to 1.
        reconstruction_weight (float): Factor of :meth:`reconstruction`. Defaults to 1.0, as
            published.
        loss_weight (float): Factor of the loss. Defaults to 1.0 (published: 200).

    Shape:
        One map each, ``(B, C_s, H, W)`` and ``(B, C_t, H, W)``.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If an argument is not a number where one is expected.
    """

    published_layer = '-1, the last map before pooling'

    def __init__(
        self,
        s_channels: int | None = None,
        t_channels: int | None = None,
        rate: float = 0.5,
        p1: float = 2,
        p2: float = 1,
        reconstruction_weight: float = 1.0,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(loss_weight)
        self.rate = positive('rate', rate, 0.5)
        self.p1 = positive('p1', p1, 2)
        self.p2 = positive('p2', p2, 1)
        self.reconstruction_weight = finite('reconstruction_weight', reconstruction_weight)
        self.set_sizes(
            s_channels=widths('s_channels', s_channels, single=True),
            t_channels=widths('t_channels', t_channels, single=True),
        )

    def compare_layer(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss, without its factor; no gradient reaches the paraphraser."""
        with torch.no_grad():
            factor_t = self.paraphraser.get_submodule('encoder')(teacher)
        return factor_loss(self.translator(student), factor_t, self.p1, self.p2)

    def reconstruction(self, t_feats: Features) -> Tensor:
        """Compute the paraphraser's mean squared error, the loss of the first stage.

        Args:
            t_feats (Tensor | Sequence[Tensor]): Teacher's map, ``(B, C_t, H, W)``, or a sequence of
                one such map.

        Returns:
            Tensor: Scalar, multiplied by ``reconstruction_weight``.

        Raises:
            ValueError: If the channels are not those of the paraphraser.
        """
        self.check_built()
        ((_, teacher),) = self.pair(t_feats, t_feats)
        check_given('t_channels', self.sizes['t_channels'], (teacher.size(1),))
        restored = full_precision(self.paraphraser(teacher))
        return self.reconstruction_weight * F.mse_loss(restored, teacher)

    def build(self, s_size: tuple[int], t_size: tuple[int]) -> None:
        """Make paraphraser and translator."""
        channels, width = t_size[0], int(t_size[0] * self.rate)
        if width < 1:
            raise ValueError(
                f'rate is {self.rate}, of {channels} teacher channels it leaves none; take a '
                'larger one (published: 0.5).'
            )
        encoder = _convolutions(nn.Conv2d, channels, channels, width, width)
        decoder = _convolutions(nn.ConvTranspose2d, width, width, channels, channels)
        self.paraphraser = nn.Sequential(OrderedDict(encoder=encoder, decoder=decoder))
        encoder = _convolutions(nn.Conv2d, *s_size, *s_size, width, width, batch_norm=True)
        self.translator = nn.Sequential(OrderedDict(encoder=encoder))


def factor_loss(factor_s: Tensor, factor_t: Tensor, p1: float, p2: float) -> Tensor:
    """Compare two factors ``(B, C, H, W)`` of any channels and sizes by their attention."""
    factor_s, factor_t = match_heights(full_precision(factor_s), full_precision(factor_t))
    gap = attention_vector(factor_s, p1) - attention_vector(factor_t, p1)
    return absolute_power(gap, p2).mean()


def _convolutions(
    convolution: type[nn.Module], *widths: int, batch_norm: bool = False
) -> nn.Sequential:
    """Make 3x3 convolutions from each width to the next."""
    layers: list[nn.Module] = []
    for pair in zip(widths, widths[1:]):
        # An identity stands in for a missing batch norm, as the published keys count it.
        norm = nn.BatchNorm2d(pair[1]) if batch_norm else nn.Identity()
        layers += [convolution(*pair, 3, padding=1), norm, nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers)


@MODELS.register_module()
class VIDLoss(SizedLoss):
    r"""Variational information distillation: predict the teacher's maps.

    .. math::
        L = \sum_l \operatorname{mean}_{bchw} \tfrac12 \Big[
            \frac{(\mu^l(F_s^l) - F_t^l)^2}{v_c^l} + \log v_c^l \Big], \quad
        v = \operatorname{softplus}(\alpha) + \epsilon

    with, for each layer, one regressor mu (three 1x1 convolutions with ReLU between) and one
    variance v per teacher channel, trained with the student. It is a bound of the mutual
    information without its constant, so it can be negative.

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
        self.set_sizes(
            s_channels=widths('s_channels', s_channels), t_channels=widths('t_channels', t_channels)
        )

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
