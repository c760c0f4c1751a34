"""Losses that compare maps or their statistics, with no layers of their own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from crd_plugin.ops import (
    attention_vector,
    match_heights,
    no_autocast,
    right_singular_vectors,
    unit_vectors,
)
from crd_plugin.registry import MODELS

from ._common import FeatureLoss, Pairs, Shapes, SizedLoss, count, positive, shapes, shapes_of


@MODELS.register_module()
class ATLoss(FeatureLoss):
    r"""Attention transfer: the student looks where the teacher looks.

    .. math::
        L = \sum_l \frac{1}{B H W} \lVert q_s^l - q_t^l \rVert^2, \quad
        q = \frac{a}{\lVert a \rVert}, \quad
        a_{hw} = \frac{1}{C} \sum_c |F_{chw}|^p

    Source: Zagoruyko and Komodakis, arXiv:1612.03928, section 3.1; numbers of
    HobbitLong/RepDistiller ``distiller_zoo/AT.py``: the mean of squares, not the paper's norm.
    Unlike ``mmrazor.ATLoss``, which gives the same number for one pair of maps of one size, it
    takes the layers together, reduces the higher map to the lower one, and is computed in float32
    under autocast.

    Args:
        power (float): p, positive. Defaults to 2, as published.
        loss_weight (float): Factor of the loss. Defaults to 1.0 (published: 1000).

    Shape:
        Maps ``(B, C, H, W)`` of each layer; the higher map is pooled to the size of the lower one.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If an argument is not a number.
    """

    def __init__(self, power: float = 2, loss_weight: float = 1.0) -> None:
        super().__init__(loss_weight)
        self.power = positive('power', power, 2)

    def compare_layer(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss of one layer."""
        student, teacher = match_heights(student, teacher)
        gap = attention_vector(student, self.power) - attention_vector(teacher, self.power)
        return gap.square().mean()


@MODELS.register_module()
class FSPLoss(SizedLoss):
    r"""Flow of the solution procedure.

    The inner products of the channels of neighbouring maps, from the stem to the last stage, are
    brought to those of the teacher:

    .. math::
        L = \sum_i \operatorname{mean} (G^S_i - G^T_i)^2, \quad
        G_i[b, c, d] = \frac{1}{H W} \sum_x F_{i+1}[b, c, x] F_i[b, d, x]

    Of two neighbours, the higher map is reduced to the lower one by average pooling. Used alone, in
    a stage before the classifier is trained.

    Both networks need the same channels map by map. Pairs without them are the empty cells ("n/a")
    of the published tables; here such a pair is refused when the model is built.

    Source: Yim et al., CVPR 2017, eq. 1-2; numbers of HobbitLong/RepDistiller
    ``distiller_zoo/FSP.py``.

    Args:
        s_shapes (Sequence[Sequence[int]], optional): Channels, height and width of each student
            map. Defaults to None: inferred by ``FrozenTeacherDistill``.
        t_shapes (Sequence[Sequence[int]], optional): Channels, height and width of each teacher
            map. Defaults to None: inferred.
        match_sizes (bool): Require equal heights and widths of student and teacher too, as in the
            paper. RepDistiller does not (False): it compares means over different positions.
            Defaults to True.
        loss_weight (float): Factor of the loss. Defaults to 1.0, as published for the first stage.

    Shape:
        Maps ``(B, C, H, W)``, stem to last stage, at least two.

    Raises:
        ValueError: If an argument is out of range, or the maps of student and teacher differ in
            number, channels or size.
        TypeError: If ``loss_weight`` is not a number.
    """

    measure = staticmethod(shapes_of)

    def __init__(
        self,
        s_shapes: Sequence[Sequence[int]] | None = None,
        t_shapes: Sequence[Sequence[int]] | None = None,
        match_sizes: bool = True,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(loss_weight)
        self.match_sizes = match_sizes
        self.set_sizes(s_shapes=shapes('s_shapes', s_shapes), t_shapes=shapes('t_shapes', t_shapes))

    def check(self, pairs: Pairs) -> None:
        """Raise a ValueError for maps that cannot be compared."""
        self.build(*shapes_of(pairs))

    def compare(self, pairs: Pairs) -> Tensor:
        """Compute the loss of all neighbours, without its factor."""
        students, teachers = zip(*pairs)
        with no_autocast(students[0]):
            losses = [F.mse_loss(*pair) for pair in zip(flows(students), flows(teachers))]
        return torch.stack(losses).sum()

    def build(self, s_size: Shapes, t_size: Shapes) -> None:
        """Check that the two networks can be compared; there are no layers."""
        if len(s_size) < 2:
            raise ValueError(
                f'FSP compares neighbouring maps, at least two, but got {len(s_size)}.'
            )
        s_channels, t_channels = ([shape[0] for shape in side] for side in (s_size, t_size))
        if s_channels != t_channels:
            raise ValueError(
                'FSP compares inner products of channels, so both networks need equally many map '
                f'by map; the student has {s_channels}, the teacher {t_channels}. Such a pair has '
                'no FSP ("n/a" or left out in published tables); take another method.'
            )
        s_sizes, t_sizes = ([shape[1:] for shape in side] for side in (s_size, t_size))
        if self.match_sizes and s_sizes != t_sizes:
            raise ValueError(
                'FSP takes inner products over positions, so both networks need maps of equal '
                f'height and width; the student has {s_sizes}, the teacher {t_sizes}. Such a pair '
                'has no FSP; take another method, or match_sizes=False, which compares means over '
                'different positions.'
            )


def flows(maps: Sequence[Tensor]) -> list[Tensor]:
    """Return ``(B, C_{i+1}, C_i)``, means over positions, for each pair of neighbouring maps."""
    matrices = []
    for pair in zip(maps, maps[1:]):
        bottom, top = (x.flatten(2) for x in match_heights(*pair))
        matrices.append(top @ bottom.mT / bottom.size(2))
    return matrices


@MODELS.register_module()
class KDSVDLoss(FeatureLoss):
    r"""Correlation of neighbouring layers' leading singular vectors.

    A map is a matrix of positions by channels. The teacher keeps its k first right singular vectors
    v; of the student's first k + 3, the one most parallel to each stands for it, with its sign.
    Between neighbouring layers

    .. math::
        L = \frac{1}{B} \sum_{l > 1} \sum_{b, c, c'}
            (r^s_{cc'} - r^t_{cc'})^2, \quad
        r_{cc'} = \exp\Big(-\frac{(v^l_c - v^{l-1}_{c'})^2}{8}\Big)

    Source: Lee et al., arXiv:1807.06819, section 3; numbers of HobbitLong/RepDistiller
    ``distiller_zoo/KDSVD.py``. Differs: there the loss depends on the sign that the SVD routine
    happens to give the teacher's vectors; here the sum of each is made positive, so that maps after
    a ReLU have a first vector without negative values.

    Args:
        num_vectors (int): k, at least 1. Vectors are weighted by their singular values, scaled to
            unit norm, so a single vector has weight 1. Defaults to 1, as published.
        loss_weight (float): Factor of the loss. Defaults to 1.0.

    Shape:
        Maps ``(B, C, H, W)`` of at least two layers, with equal channels layer by layer; sizes may
        differ.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If ``loss_weight`` is not a number.
    """

    def __init__(self, num_vectors: int = 1, loss_weight: float = 1.0) -> None:
        super().__init__(loss_weight)
        self.num_vectors = count('num_vectors', num_vectors, ' (published: 1)')

    def compare(self, pairs: Pairs) -> Tensor:
        """Compute the loss of all neighbours, without its factor."""
        self._check(pairs)
        layers = [self._vectors(*pair) for pair in pairs]
        losses = []
        for lower, upper in zip(layers, layers[1:]):
            r_s, r_t = map(_radial_basis, upper, lower)
            losses.append((r_s - r_t).square().sum())
        return torch.stack(losses).sum() / pairs[0][0].size(0)

    def _vectors(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weighted vectors of one layer, ``(B, C, k)`` for student and teacher."""
        k = self.num_vectors
        student, teacher = student.flatten(2).mT, teacher.flatten(2).mT  # (B, H * W, C)
        v_t, sigma = right_singular_vectors(teacher, k)
        v_t = _orient(v_t)
        v_s, _ = right_singular_vectors(student, min(k + 3, *student.shape[1:]))
        weight = F.normalize(sigma, dim=1)[:, None]
        return align(v_s, v_t) * weight, v_t * weight

    def _check(self, pairs: Pairs) -> None:
        """Raise a ValueError for maps that have no such vectors to compare."""
        if len(pairs) < 2:
            raise ValueError(
                's_feats has 1 layer, expected at least 2: KDSVDLoss compares neighbouring layers; '
                'record the stages without data_idx.'
            )
        for i, (student, teacher) in enumerate(pairs):
            if student.size(1) != teacher.size(1):
                raise ValueError(
                    f's_feats[{i}] has {student.size(1)} channels and t_feats[{i}] '
                    f'{teacher.size(1)}; singular vectors over channels can only be compared if '
                    "there are as many. Choose a student of the teacher's widths, or another "
                    'method.'
                )
            for name, x in (('s_feats', student), ('t_feats', teacher)):
                rank = min(x.size(1), x[0, 0].numel())
                if rank < self.num_vectors:
                    raise ValueError(
                        f'{name}[{i}] has {rank} singular vectors, expected at least '
                        f'num_vectors={self.num_vectors}.'
                    )


def align(v_s: Tensor, v_t: Tensor) -> Tensor:
    """Return, for each vector of ``v_t``, the most parallel one of ``v_s`` with its sign."""
    cosine = (v_s.mT @ v_t).detach()
    best = cosine.abs().argmax(1, keepdim=True)  # (B, 1, k)
    sign = cosine.gather(1, best).sign()
    return v_s.gather(2, best.expand(-1, v_s.size(1), -1)) * sign


def _orient(vectors: Tensor) -> Tensor:
    """Choose the sign that makes the sum of a vector positive."""
    return torch.where(vectors.sum(1, keepdim=True) < 0, -vectors, vectors)


def _radial_basis(upper: Tensor, lower: Tensor) -> Tensor:
    """Compare all pairs of channels of two layers, ``(B, C, C', k)``."""
    return (-(upper[:, :, None] - lower[:, None]).square() / 8).exp()


@MODELS.register_module()
class NSTLoss(FeatureLoss):
    r"""Neuron selectivity transfer: where the channels are active.

    Each channel of a map is a unit vector over its positions; the loss is the squared maximum mean
    discrepancy of both sets of channels with the kernel :math:`k(a, b) = (a \cdot b)^2`:

    .. math::
        L = \sum_l \operatorname{mean}_b \big[ \overline{k(t, t')}
            + \overline{k(s, s')} - 2 \overline{k(s, t)} \big]

    Source: Huang and Wang, arXiv:1707.01219, section 4 (d=2, c=0); numbers of
    HobbitLong/RepDistiller ``distiller_zoo/NST.py``, which needs ``B * C_s * C_t * H * W`` numbers
    for all pairs of channels; here no tensor has more than ``B * max(C, H * W)^2``.

    Args:
        loss_weight (float): Factor of the loss. Defaults to 1.0 (published: 50).

    Shape:
        Maps ``(B, C, H, W)`` of each layer; the higher map is pooled to the size of the lower one.
    """

    def compare_layer(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the squared discrepancy of one layer, averaged over the batch."""
        student, teacher = match_heights(student, teacher)
        s, t = (unit_vectors(x.flatten(2), dim=2) for x in (student, teacher))  # (B, C, H * W)
        (c_s, positions), c_t = s.shape[1:], t.size(1)
        if positions * (c_s + c_t) < c_s**2 + c_t**2 + c_s * c_t:
            # The mean of (a.b)^2 is the inner product of the mean outer products a a^T, so the
            # discrepancy is the squared distance of two matrices over positions.
            gap = s.mT @ s / c_s - t.mT @ t / c_t
            return gap.square().sum((1, 2)).mean()
        kernels = [(a @ b.mT).square().mean() for a, b in ((s, s), (t, t), (s, t))]
        return kernels[0] + kernels[1] - 2 * kernels[2]
