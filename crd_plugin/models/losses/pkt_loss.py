"""Probabilistic knowledge transfer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crd_plugin.ops import no_autocast, pair_vectors
from crd_plugin.ops.features import Features
from crd_plugin.registry import MODELS

from ._common import finite

# The value of HobbitLong/RepDistiller; it changes the numbers in float32.
_EPS = 1e-7


@MODELS.register_module()
class PKTLoss(nn.Module):
    r"""Probabilistic knowledge transfer: which samples are neighbours.

    .. math::
        L = \frac{1}{B^2} \sum_{ij} p^t_{ij}
            \log \frac{p^t_{ij} + \epsilon}{p^s_{ij} + \epsilon}, \quad
        p_{ij} = \frac{1 + \cos(x_i, x_j)}{\sum_k (1 + \cos(x_i, x_k))}

    The mean over all pairs, diagonal included, is small; hence the large published weight. The loss
    of a batch of one sample is zero.

    Source: Passalis and Tefas, ECCV 2018, arXiv:1803.10837, section 3; numbers of
    HobbitLong/RepDistiller ``distiller_zoo/PKT.py``, except that a zero vector has a finite
    gradient instead of NaN. MMRazor has no such loss.

    Args:
        loss_weight (float): Factor of the loss. Defaults to 1.0 (published: 30000).

    Raises:
        ValueError: If ``loss_weight`` is not finite.
        TypeError: If ``loss_weight`` is not a number.
    """

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = finite('loss_weight', loss_weight)

    def forward(self, s_feats: Features, t_feats: Features) -> Tensor:
        """Compute the loss of one batch.

        Args:
            s_feats (Tensor | Sequence[Tensor]): Student's vectors, ``(B, D_s)``, or a sequence of
                one such tensor; maps are flattened.
            t_feats (Tensor | Sequence[Tensor]): Teacher's vectors, ``(B, D_t)``, likewise.

        Returns:
            Tensor: Loss times ``loss_weight``, scalar float32 (float64 for float64 features).

        Raises:
            ValueError: If shapes do not fit.
        """
        student, teacher = pair_vectors(s_feats, t_feats)
        with no_autocast(student):
            p_s, p_t = _neighbours(student), _neighbours(teacher)
            loss = (p_t * ((p_t + _EPS) / (p_s + _EPS)).log()).mean()
        return self.loss_weight * loss


def _neighbours(x: Tensor) -> Tensor:
    """Turn cosine similarities into probabilities, row by row, ``(B, B)``."""
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    # A zero vector is not divided, so that its gradient is of the size of the others'.
    unit = x / (norm + _EPS).masked_fill(norm == 0, 1)
    similarity = (unit @ unit.mT + 1) / 2
    return similarity / similarity.sum(1, keepdim=True)
