"""Knowledge distillation by singular value decomposition."""

import torch
import torch.nn.functional as F
from torch import Tensor

from crd_plugin.ops import right_singular_vectors
from crd_plugin.registry import MODELS

from .._numbers import count
from ._common import FeatureLoss, Pairs


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
        ValueError: If an argument is out of range.
        TypeError: If ``loss_weight`` is not a number.
    """

    takes_stages = True

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
