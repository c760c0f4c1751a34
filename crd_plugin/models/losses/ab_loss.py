"""Where the teacher's hidden units switch on: activation boundaries."""

from typing import Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from crd_plugin.ops import full_precision, pair_maps
from crd_plugin.registry import MODELS

from ..connectors.conv_regressor import ConvRegressor, Shape, check_shape
from ._common import finite, not_inferred, positive

Shapes = Tuple[Shape, ...]


@MODELS.register_module()
class ABLoss(nn.Module):
    r"""Distillation of activation boundaries.

    The student's maps, before their activation, are pushed beyond a margin
    :math:`\mu` on that side of zero where the teacher's are:

    .. math::
        L = \frac{3}{1000 B} \sum_i 2^{i-L+1} \sum_x \begin{cases}
            (s + \mu)^2 & t \le 0,\ s > -\mu \\
            (s - \mu)^2 & t > 0,\ s \le \mu \\
            0 & \text{otherwise} \end{cases}

    with layers i = 0 ... L - 1. Where channels or sizes differ, a convolution
    with batch norm (:class:`ConvRegressor`) brings the student's map to the
    teacher's shape. Used alone, in a stage before the classifier is trained.

    Source: Heo et al., arXiv:1811.03233, section 3; numbers of
    HobbitLong/RepDistiller ``distiller_zoo/AB.py`` and ``models/util.py``.
    ``mmrazor.ABLoss`` gives the same number for one layer; it has neither the
    convolutions nor the weights of the layers.

    Args:
        s_shapes (Sequence[Sequence[int]], optional): Channels, height and
            width of each student map. Defaults to None: inferred by
            ``FrozenTeacherDistill``.
        t_shapes (Sequence[Sequence[int]], optional): Those of the teacher's
            maps. Defaults to None: inferred.
        margin (float): mu, in units of the activation. Defaults to 1.0.
        loss_weight (float): Factor of the loss. Defaults to 1.0, as
            published.

    Shape:
        s_feats, t_feats: sequences of L maps ``(B, C, H, W)``, shallow to
        deep, before the activation (``pre_activation=True`` of our
        backbones). Output: scalar float32 (float64 for float64 maps).

    Raises:
        ValueError: If an argument is out of range, or one convolution does
            not lead from a student shape to its teacher's.
        TypeError: If one is no number where a number is expected.
    """

    def __init__(
        self,
        s_shapes: Optional[Sequence[Sequence[int]]] = None,
        t_shapes: Optional[Sequence[Sequence[int]]] = None,
        margin: float = 1.0,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.margin = positive('margin', margin, 1.0)
        self.loss_weight = finite('loss_weight', loss_weight)
        self.s_shapes = check_shapes('s_shapes', s_shapes)
        self.t_shapes = check_shapes('t_shapes', t_shapes)
        self.connectors = nn.ModuleList()
        if self.s_shapes and self.t_shapes:
            self._build()

    @property
    def needs_width(self) -> bool:
        """bool: The connectors are still to be made from features."""
        return not self.connectors

    def infer_width(self, s_feats: Sequence[Tensor], t_feats: Sequence[Tensor]) -> None:
        """Take the shapes from pairs of maps and make the connectors.

        Args:
            s_feats (Sequence[Tensor]): As given to :meth:`forward`.
            t_feats (Sequence[Tensor]): Likewise.

        Raises:
            ValueError: If a shape of the config differs.
        """
        found = shapes_of(pair_maps(s_feats, t_feats))
        for name, given, shapes in (
            ('s_shapes', self.s_shapes, found[0]),
            ('t_shapes', self.t_shapes, found[1]),
        ):
            if given not in (None, shapes):
                raise ValueError(
                    f'{name} is {given}, but the recorded maps have {shapes}; '
                    f'set {name} to that, or leave it out to infer it.'
                )
        self.s_shapes, self.t_shapes = found
        self._build()

    def forward(self, s_feats: Sequence[Tensor], t_feats: Sequence[Tensor]) -> Tensor:
        """Loss of one batch.

        Args:
            s_feats (Sequence[Tensor]): Student's maps.
            t_feats (Sequence[Tensor]): Teacher's maps, as many.

        Returns:
            Tensor: Sum over the layers, multiplied by ``loss_weight``.

        Raises:
            ValueError: If the connectors do not bring one to the other.
        """
        pairs = pair_maps(s_feats, t_feats)
        if self.needs_width:
            raise not_inferred('ABLoss', 's_shapes and t_shapes')
        self._check_fit(*shapes_of(pairs))
        losses = []
        for connector, (student, teacher) in zip(self.connectors, pairs):
            # Under autocast it may run in half precision, the sum may not.
            connected = full_precision(connector(student))
            losses.append(boundary_loss(connected, teacher, self.margin))
        weights = [2.0 ** (i - len(losses) + 1) for i in range(len(losses))]
        total = sum(w * loss for w, loss in zip(weights, losses))
        # The published scale; it has no other reason.
        return self.loss_weight * total * (3 / 1000 / len(pairs[0][0]))

    def _build(self) -> None:
        """Make one connector a layer."""
        if len(self.s_shapes) != len(self.t_shapes):
            raise ValueError(
                f's_shapes has {len(self.s_shapes)} layers and t_shapes '
                f'{len(self.t_shapes)}, expected as many.'
            )
        for s_shape, t_shape in zip(self.s_shapes, self.t_shapes):
            self.connectors.append(
                nn.Identity() if s_shape == t_shape else ConvRegressor(s_shape, t_shape, relu=False)
            )

    def _check_fit(self, s_shapes: Shapes, t_shapes: Shapes) -> None:
        """Other sizes may do, if the same convolutions lead there."""
        layers = zip(self.connectors, s_shapes, t_shapes)
        fits = len(s_shapes) == len(self.connectors) and all(_fits(*layer) for layer in layers)
        if not fits:
            raise ValueError(
                'Channels, heights and widths of s_feats and t_feats are '
                f'{s_shapes} and {t_shapes}, but the connectors were made for '
                f's_shapes={self.s_shapes} and t_shapes={self.t_shapes}; set '
                'model.input_shape to the size of the training images.'
            )


def _fits(connector: nn.Module, s_shape: Shape, t_shape: Shape) -> bool:
    """Whether a connector leads from one shape to the other."""
    if isinstance(connector, nn.Identity):
        return s_shape == t_shape
    return connector.fits(s_shape, t_shape)


def boundary_loss(student: Tensor, teacher: Tensor, margin: float) -> Tensor:
    """Squares by which the student misses the margin on the teacher's side.

    Args:
        student (Tensor): Before the activation, any shape.
        teacher (Tensor): Likewise, the same shape.
        margin (float): How far from zero the student has to be.

    Returns:
        Tensor: Their sum, a scalar.
    """
    towards = torch.where(teacher > 0, student, -student)
    return (margin - towards).clamp(min=0).square().sum()


def check_shapes(name: str, shapes: Optional[Sequence[Sequence[int]]]) -> Optional[Shapes]:
    """Shapes of maps, one a layer.

    Args:
        name (str): Argument, for the message.
        shapes (Sequence[Sequence[int]], optional): Channels, height and width
            of each.

    Returns:
        tuple[tuple[int, int, int]]: The same; None for None.

    Raises:
        ValueError: If one is no shape, or there are none.
    """
    if shapes is None:
        return None
    if not isinstance(shapes, Sequence) or not shapes:
        raise ValueError(
            f'{name} is {shapes}, expected a list with channels, height and width of each layer.'
        )
    return tuple(check_shape(f'{name}[{i}]', shape) for i, shape in enumerate(shapes))


def shapes_of(pairs: Sequence[Tuple[Tensor, Tensor]]) -> Tuple[Shapes, Shapes]:
    """Channels, heights and widths of the student's and the teacher's maps.

    Args:
        pairs (Sequence[tuple[Tensor, Tensor]]): Of ``pair_maps``.

    Returns:
        tuple: Shapes of the student's maps, and of the teacher's.
    """
    return tuple(tuple(tuple(x.shape[1:]) for x in side) for side in zip(*pairs))
