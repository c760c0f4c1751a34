"""Distillation by singular value decomposition."""

from typing import List, Tuple

import torch
from torch import Tensor, nn

from crd_plugin.ops import no_autocast, pair_maps, right_singular_vectors
from crd_plugin.ops.features import Features
from crd_plugin.registry import MODELS

from ._common import finite


@MODELS.register_module()
class KDSVDLoss(nn.Module):
    r"""Correlation of neighbouring layers' leading singular vectors.

    A map is a matrix of positions by channels. The teacher keeps its k first
    right singular vectors v; of the student's first k + 3 the one most
    parallel to each stands for it, with its sign. Between neighbouring layers

    .. math::
        L = \frac{1}{B} \sum_{l > 1} \sum_{b, c, c'}
            (r^s_{cc'} - r^t_{cc'})^2, \quad
        r_{cc'} = \exp\Big(-\frac{(v^l_c - v^{l-1}_{c'})^2}{8}\Big)

    Source: Lee et al., arXiv:1807.06819, section 3; numbers of
    HobbitLong/RepDistiller ``distiller_zoo/KDSVD.py``. Differs: there the
    loss changes with the sign that the SVD routine happens to give the
    teacher's vectors; here their sum is made positive, which for maps after a
    ReLU makes every value of the first one positive. MMRazor has no such
    loss.

    Args:
        num_vectors (int): k, at least 1. Vectors are weighted by their
            singular values, scaled to unit norm, so the only one of
            ``num_vectors=1`` has weight 1. Defaults to 1, as published.
        loss_weight (float): Factor of the loss. Defaults to 1.0.

    Shape:
        s_feats, t_feats: two or more maps ``(B, C, H, W)``; channels must
        agree layer by layer, sizes need not. Output: scalar float32 (float64
        for float64 maps).

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If one is no number where a number is expected.
    """

    def __init__(self, num_vectors: int = 1, loss_weight: float = 1.0) -> None:
        super().__init__()
        if not isinstance(num_vectors, int) or num_vectors < 1:
            raise ValueError(
                f'num_vectors is {num_vectors}, expected a positive integer (published: 1).'
            )
        self.num_vectors = num_vectors
        self.loss_weight = finite('loss_weight', loss_weight)

    def forward(self, s_feats: Features, t_feats: Features) -> Tensor:
        """Loss of one batch.

        Args:
            s_feats (Sequence[Tensor]): Student's maps, at least two.
            t_feats (Sequence[Tensor]): Teacher's maps, as many.

        Returns:
            Tensor: Sum over neighbouring layers, times ``loss_weight``.

        Raises:
            ValueError: If layers cannot be paired, there is only one, or a
                map is too small for ``num_vectors``.
        """
        pairs = pair_maps(s_feats, t_feats)
        self._check(pairs)
        loss, before = 0.0, None
        with no_autocast(pairs[0][0]):
            for student, teacher in pairs:
                vectors = self._vectors(student, teacher)
                if before is not None:
                    r_s, r_t = map(_radial_basis, vectors, before)
                    loss = loss + (r_s - r_t).square().sum()
                before = vectors
            return self.loss_weight * loss / pairs[0][0].size(0)

    def _vectors(self, student: Tensor, teacher: Tensor) -> Tuple[Tensor, Tensor]:
        """Weighted vectors of one layer, ``(B, C, k)`` a side."""
        k = self.num_vectors
        v_t, sigma = right_singular_vectors(_matrix(teacher), k)
        v_t = _orient(v_t)
        most = min(k + 3, student.size(1), student[0, 0].numel())
        v_s, _ = right_singular_vectors(_matrix(student), most)
        weight = nn.functional.normalize(sigma, dim=1)[:, None]
        return align(v_s, v_t) * weight, v_t * weight

    def _check(self, pairs: List[Tuple[Tensor, Tensor]]) -> None:
        """Say what is wrong with the maps."""
        if len(pairs) < 2:
            raise ValueError(
                's_feats has 1 layer, expected at least 2: KDSVDLoss compares '
                'neighbouring layers; record the stages without data_idx.'
            )
        for i, (student, teacher) in enumerate(pairs):
            if student.size(1) != teacher.size(1):
                raise ValueError(
                    f's_feats[{i}] has {student.size(1)} channels and '
                    f't_feats[{i}] {teacher.size(1)}; singular vectors over '
                    'channels can only be compared if there are as many. '
                    "Choose a student of the teacher's widths, or another "
                    'method.'
                )
            for name, x in (('s_feats', student), ('t_feats', teacher)):
                rank = min(x.size(1), x[0, 0].numel())
                if rank < self.num_vectors:
                    raise ValueError(
                        f'{name}[{i}] has {rank} singular vectors, expected '
                        f'num_vectors={self.num_vectors} at least.'
                    )


def align(v_s: Tensor, v_t: Tensor) -> Tensor:
    """The student's vector that is most parallel to each of the teacher's.

    Args:
        v_s (Tensor): ``(B, C, m)``, unit vectors of any sign.
        v_t (Tensor): ``(B, C, k)``.

    Returns:
        Tensor: ``(B, C, k)``, each with the sign of its cosine.
    """
    cosine = v_s.transpose(1, 2) @ v_t
    best = cosine.detach().abs().argmax(1, keepdim=True)  # (B, 1, k)
    sign = cosine.detach().gather(1, best).sign()
    return v_s.gather(2, best.expand(-1, v_s.size(1), -1)) * sign


def _matrix(feature_map: Tensor) -> Tensor:
    """Positions by channels, ``(B, H * W, C)``."""
    return feature_map.flatten(2).transpose(1, 2)


def _orient(vectors: Tensor) -> Tensor:
    """The sign that makes the sum of a vector positive."""
    is_down = vectors.sum(1, keepdim=True) < 0
    return torch.where(is_down, -vectors, vectors)


def _radial_basis(upper: Tensor, lower: Tensor) -> Tensor:
    """All pairs of channels of two layers, ``(B, C, C', k)``."""
    return (-(upper[:, :, None] - lower[:, None]).square() / 8).exp()
