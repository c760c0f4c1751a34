"""Losses whose layers bring the student's maps to the teacher's."""

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crd_plugin.ops import absolute_power, attention_vector, full_precision, match_heights
from crd_plugin.ops.features import Features
from crd_plugin.registry import MODELS

from .._numbers import positive
from ..connectors.conv_regressor import ConvRegressor
from ._common import Pairs, Shapes, SizedLoss, Widths, check_built, check_given


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
        s_shapes, t_shapes (Sequence[Sequence[int]], optional): Channels, height and width of each
            map. Defaults to None: inferred by ``FrozenTeacherDistill``.
        margin (float): mu, in units of the activation. Defaults to 1.0.
        loss_weight (float): Factor of the loss. Defaults to 1.0, as published.

    Shape:
        Maps ``(B, C, H, W)`` of each layer, shallow to deep, before the activation
        (``pre_activation=True`` of our backbones).

    Raises:
        ValueError: If an argument is out of range, or a :class:`ConvRegressor` cannot be made.
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
        """As for :class:`FeatureLoss`."""
        losses = []
        for connector, (student, teacher) in zip(self.connectors, pairs):
            student = regress(connector, student, teacher)
            towards = torch.where(teacher > 0, student, -student)
            losses.append((self.margin - towards).clamp(min=0).square().sum())
        total = torch.stack([2.0 ** (i + 1 - len(losses)) * loss for i, loss in enumerate(losses)])
        # The published scale; it has no other reason.
        return total.sum() * (3 / 1000 / len(pairs[0][0]))

    def build(self, s_size: Shapes, t_size: Shapes) -> None:
        """Make one connector per layer."""
        self.connectors.extend(
            nn.Identity() if s == t else ConvRegressor(s, t, relu=False)
            for s, t in zip(s_size, t_size)
        )


def regress(connector: nn.Module, student: Tensor, teacher: Tensor) -> Tensor:
    """Bring a map of the student to the shape of the teacher's."""
    # Under autocast the layers may run in half precision, the sum must not.
    found = full_precision(connector(student))
    if found.shape != teacher.shape:
        raise ValueError(
            f's_feats becomes {tuple(found.shape)}, but t_feats has the shape '
            f'{tuple(teacher.shape)}; set model.input_shape to the size of the training images.'
        )
    return found


@MODELS.register_module()
class FitNetLoss(SizedLoss):
    """FitNet: a regressor brings the student's map to the teacher's.

    ``L = mean (r(F_s) - F_t)^2`` with r a convolution, batch norm and ReLU
    (:class:`ConvRegressor`), trained together with the student in one stage.

    Source: Romero et al., arXiv:1412.6550, section 2.2; numbers of HobbitLong/RepDistiller
    ``distiller_zoo/FitNet.py``.

    Args:
        s_shape, t_shape (Sequence[int], optional): Channels, height, width of the maps. Defaults to
            None: inferred by ``FrozenTeacherDistill``.
        loss_weight (float): Factor of the loss. Defaults to 1.0 (published: 100).

    Shape:
        One map each, ``(B, *s_shape)`` and ``(B, *t_shape)``. Other sizes fit if their heights
        relate in the same way.

    Raises:
        ValueError: If an argument is out of range, or a :class:`ConvRegressor` cannot be made.
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
        """As for :class:`FeatureLoss`."""
        return F.mse_loss(regress(self.regressor, student, teacher), teacher)

    def build(self, s_size: Shapes, t_size: Shapes) -> None:
        """Make the regressor."""
        self.regressor = ConvRegressor(s_size[0], t_size[0])


@MODELS.register_module()
class FTLoss(SizedLoss):
    """Factor transfer.

    A paraphraser, an autoencoder of the teacher's last map, is trained first
    (:meth:`reconstruction`) and then frozen. Its code, the teacher's factor, is compared with the
    output of a translator of the student's map, which is trained together with the student:
    ``L = mean |q_s - q_t|^p2``, q the unit vector of ``mean over c of |F|^p1``, the higher factor
    pooled to the lower one.

    Source: Kim et al., arXiv:1802.04977, section 3; numbers of HobbitLong/RepDistiller
    ``distiller_zoo/FT.py`` and ``models/util.py``. The paper compares all channels of a factor.

    Args:
        s_channels, t_channels (int, optional): Channels of the maps. Defaults to None: inferred by
            ``FrozenTeacherDistill``.
        rate (float): Channels of a factor, as a fraction of the teacher's. Defaults to 0.5.
        p1, p2 (float): Powers of an activation and of the difference. Defaults to 2 and 1.
        loss_weight (float): Factor of the loss. Defaults to 1.0 (published: 200).

    Shape:
        One map each, ``(B, C_s, H, W)`` and ``(B, C_t, H, W)``.

    Raises:
        ValueError, TypeError: If an argument is out of range or not a number.
    """

    published_layer = '-1, the last map before pooling'

    def __init__(
        self,
        s_channels: int | None = None,
        t_channels: int | None = None,
        rate: float = 0.5,
        p1: float = 2,
        p2: float = 1,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(loss_weight)
        self.rate = positive('rate', rate, 0.5)
        self.p1 = positive('p1', p1, 2)
        self.p2 = positive('p2', p2, 1)
        self.set_sizes(s_channels=s_channels, t_channels=t_channels)

    def compare_layer(self, student: Tensor, teacher: Tensor) -> Tensor:
        """As for :class:`FeatureLoss`; no gradient reaches the paraphraser."""
        with torch.no_grad():
            factor_t = self.paraphraser.get_submodule('encoder')(teacher)
        return factor_loss(self.translator(student), factor_t, self.p1, self.p2)

    def reconstruction(self, t_feats: Features) -> Tensor:
        """Compute the paraphraser's mean squared error, the loss of the first stage.

        Args:
            t_feats (Tensor | Sequence[Tensor]): Teacher's map, as for :meth:`forward`.

        Returns:
            Tensor: Scalar.

        Raises:
            ValueError: If the channels are not those of the paraphraser.
        """
        check_built(self, *self.sizes)
        ((_, teacher),) = self.pair(t_feats, t_feats)
        check_given('t_channels', self.sizes['t_channels'], (teacher.size(1),))
        return F.mse_loss(full_precision(self.paraphraser(teacher)), teacher)

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
    """Variational information distillation: predict the teacher's maps.

    ``L = sum over layers of mean ((mu(F_s) - F_t)^2 / v + log v) / 2`` with one regressor mu (three
    1x1 convolutions with ReLU between) and one variance ``v = softplus(a) + eps`` per teacher
    channel for each layer, trained with the student. It can be negative.

    Source: Ahn et al., arXiv:1904.05835, section 2; numbers of HobbitLong/RepDistiller
    ``distiller_zoo/VID.py``.

    Args:
        s_channels, t_channels (int | Sequence[int], optional): Channels of the maps, one per layer.
            Defaults to None: inferred by ``FrozenTeacherDistill``.
        init_variance (float): Initial value of v. Defaults to 5.0.
        eps (float): Lower bound of v, below ``init_variance``. Defaults to 1e-5.
        loss_weight (float): Factor of the loss. Defaults to 1.0, as published.

    Shape:
        Maps ``(B, C, H, W)`` of each layer; the higher map is pooled to the size of the lower one.

    Raises:
        ValueError, TypeError: If an argument is out of range or not a number.
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
        """As for :class:`FeatureLoss`."""
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
