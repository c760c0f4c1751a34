"""Losses of maps that have no layers of their own."""

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

from .._numbers import count, positive
from ._common import FeatureLoss, Pairs, Shapes, SizedLoss


@MODELS.register_module()
class ATLoss(FeatureLoss):
    """Attention transfer: the student looks where the teacher looks.

    ``L = sum over layers of mean (q_s - q_t)^2``, q the unit vector of ``mean over c of |F|^p``.

    Source: Zagoruyko and Komodakis, arXiv:1612.03928, section 3.1; numbers of
    HobbitLong/RepDistiller ``distiller_zoo/AT.py``: the mean of squares, not the paper's norm.

    Args:
        power (float): p, positive. Defaults to 2, as published.
        loss_weight (float): Factor of the loss. Defaults to 1.0 (published: 1000).

    Shape:
        Maps ``(B, C, H, W)`` of each layer; the higher map is pooled to the size of the lower one.

    Raises:
        ValueError, TypeError: If an argument is out of range or not a number.
    """

    takes_stages = True

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
    """Flow of the solution procedure.

    ``L = sum over i of mean (G_s - G_t)^2`` with ``G[b, c, d]`` the mean over positions of channel
    c of map i + 1 times channel d of map i, the higher map pooled to the lower one. Used alone, in
    a stage before the classifier is trained. A pair whose channels differ map by map, "n/a" in
    published tables, is refused when the model is built.

    Source: Yim et al., CVPR 2017, eq. 1-2; numbers of HobbitLong/RepDistiller
    ``distiller_zoo/FSP.py``.

    Args:
        s_shapes, t_shapes (Sequence[Sequence[int]], optional): Channels, height and width of each
            map. Defaults to None: inferred by ``FrozenTeacherDistill``.
        match_sizes (bool): Require equal heights and widths of student and teacher too, as in the
            paper. RepDistiller does not (False): it compares means over different positions.
            Defaults to True.
        loss_weight (float): Factor of the loss. Defaults to 1.0, as published for the first stage.

    Shape:
        Maps ``(B, C, H, W)``, stem to last stage, at least two.

    Raises:
        ValueError: If an argument is out of range, or the maps cannot be compared.
        TypeError: If ``loss_weight`` is not a number.
    """

    takes_stages = True
    by_shape = True

    def __init__(
        self,
        s_shapes: Sequence[Sequence[int]] | None = None,
        t_shapes: Sequence[Sequence[int]] | None = None,
        match_sizes: bool = True,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(loss_weight)
        self.match_sizes = match_sizes
        self.set_sizes(s_shapes=s_shapes, t_shapes=t_shapes)

    def check(self, pairs: Pairs) -> None:
        """Raise a ValueError for maps that cannot be compared."""
        self.build(*self._measure(pairs))

    def compare(self, pairs: Pairs) -> Tensor:
        """As for :class:`FeatureLoss`."""
        students, teachers = zip(*pairs)
        with no_autocast(students[0]):
            losses = [F.mse_loss(*pair) for pair in zip(flows(students), flows(teachers))]
        return torch.stack(losses).sum()

    def build(self, s_size: Shapes, t_size: Shapes) -> None:
        """Check that the two networks can be compared; there are no layers."""
        check_neighbours('FSP', *([shape[0] for shape in side] for side in (s_size, t_size)))
        s_sizes, t_sizes = ([shape[1:] for shape in side] for side in (s_size, t_size))
        if self.match_sizes and s_sizes != t_sizes:
            raise ValueError(
                'FSP takes inner products over positions, so both networks need maps of equal '
                f'height and width; the student has {s_sizes}, the teacher {t_sizes}. Such a pair '
                'has no FSP; take another method, or match_sizes=False, which compares means over '
                'different positions.'
            )


def check_neighbours(method: str, students: list[int], teachers: list[int]) -> None:
    """Require the channels of at least two layers, as many of student and teacher."""
    if len(students) < 2:
        raise ValueError(
            f'{method} compares neighbouring layers, expected at least 2, but got {len(students)}; '
            'record the stages without data_idx.'
        )
    if students != teachers:
        raise ValueError(
            f'{method} compares channels, so both networks need equally many map by map; the '
            f'student has {students}, the teacher {teachers}. Such a pair has no {method} ("n/a" '
            'or left out in published tables); take another method.'
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
    """Correlation of neighbouring layers' leading singular vectors.

    A map is a matrix of positions by channels. The teacher keeps its k first right singular vectors
    v; of the student's first k + 3, the one most parallel to each stands for it, with its sign.
    ``L = sum over neighbours and pairs of channels of (r_s - r_t)^2 / B`` with ``r = exp(-(v_c -
    u_d)^2 / 8)`` of the upper layer's v and the lower one's u.

    Source: Lee et al., arXiv:1807.06819, section 3; numbers of HobbitLong/RepDistiller
    ``distiller_zoo/KDSVD.py``. Differs: the sign of the teacher's vectors is not that of the SVD
    routine; the sum of each is made positive.

    Args:
        num_vectors (int): k. Vectors are weighted by their singular values, scaled to unit norm.
            Defaults to 1, as published.
        loss_weight (float): Factor of the loss. Defaults to 1.0.

    Shape:
        Maps ``(B, C, H, W)`` of at least two layers, with equal channels layer by layer; sizes may
        differ.

    Raises:
        ValueError, TypeError: If an argument is out of range or not a number.
    """

    takes_stages = True

    def __init__(self, num_vectors: int = 1, loss_weight: float = 1.0) -> None:
        super().__init__(loss_weight)
        self.num_vectors = count('num_vectors', num_vectors, ' (published: 1)')

    def compare(self, pairs: Pairs) -> Tensor:
        """As for :class:`FeatureLoss`."""
        check_neighbours('KDSVD', *([x.size(1) for x in side] for side in zip(*pairs)))
        layers = [self._vectors(*pair) for pair in pairs]
        losses = []
        for lower, upper in zip(layers, layers[1:]):
            r_s, r_t = map(_radial_basis, upper, lower)
            losses.append((r_s - r_t).square().sum())
        return torch.stack(losses).sum() / len(pairs[0][0])

    def _vectors(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weighted vectors of one layer, ``(B, C, k)`` for student and teacher."""
        k = self.num_vectors
        student, teacher = student.flatten(2).mT, teacher.flatten(2).mT  # (B, H * W, C)
        if k > min(*student.shape[1:], *teacher.shape[1:]):
            raise ValueError(
                f'num_vectors is {k}, but a map of {tuple(student.shape[1:])} or '
                f'{tuple(teacher.shape[1:])} positions and channels has fewer; lower it.'
            )
        v_t, sigma = right_singular_vectors(teacher, k)
        v_t = _orient(v_t)
        v_s, _ = right_singular_vectors(student, min(k + 3, *student.shape[1:]))
        weight = F.normalize(sigma, dim=1)[:, None]
        return align(v_s, v_t) * weight, v_t * weight


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
    """Neuron selectivity transfer: where the channels are active.

    Each channel of a map is a unit vector over its positions; the loss is the squared maximum mean
    discrepancy ``mean k(t, t') + mean k(s, s') - 2 mean k(s, t)`` of both sets of channels with the
    kernel ``k(a, b) = (a . b)^2``.

    Source: Huang and Wang, arXiv:1707.01219, section 4 (d=2, c=0); numbers of
    HobbitLong/RepDistiller ``distiller_zoo/NST.py``.

    Args:
        loss_weight (float): Factor of the loss. Defaults to 1.0 (published: 50).

    Shape:
        Maps ``(B, C, H, W)`` of each layer; the higher map is pooled to the size of the lower one.
    """

    takes_stages = True

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
