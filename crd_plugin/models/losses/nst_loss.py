"""Neuron selectivity transfer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crd_plugin.ops import match_heights, no_autocast, pair_maps, unit_vectors
from crd_plugin.ops.features import Features
from crd_plugin.registry import MODELS

from ._common import finite


@MODELS.register_module()
class NSTLoss(nn.Module):
    r"""Neuron selectivity transfer: where the channels are active.

    Each channel of a map is a unit vector over its positions; the loss is the squared maximum mean
    discrepancy of both sets of channels with the kernel :math:`k(a, b) = (a \cdot b)^2`:

    .. math::
        L = \sum_l \operatorname{mean}_b \big[ \overline{k(t, t')}
            + \overline{k(s, s')} - 2 \overline{k(s, t)} \big]

    Source: Huang and Wang, arXiv:1707.01219, section 4 (d=2, c=0); numbers of
    HobbitLong/RepDistiller ``distiller_zoo/NST.py``, which needs ``B * C_s * C_t * H * W`` numbers
    for all pairs of channels; here no tensor has more than ``B * max(C, H * W)^2``. MMRazor has no
    such loss.

    Args:
        loss_weight (float): Factor of the loss. Defaults to 1.0 (published: 50).

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
            s_feats (Tensor | Sequence[Tensor]): Student's map ``(B, C_s, H, W)`` of each layer.
            t_feats (Tensor | Sequence[Tensor]): Teacher's map ``(B, C_t, H, W)`` of each layer.

        Returns:
            Tensor: Sum over the layers times ``loss_weight``, scalar float32 (float64 for float64).

        Raises:
            ValueError: If layers or shapes cannot be paired.
        """
        pairs = pair_maps(s_feats, t_feats)
        with no_autocast(pairs[0][0]):
            losses = [_discrepancy(*match_heights(*pair)) for pair in pairs]
            return self.loss_weight * torch.stack(losses).sum()


def _discrepancy(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the squared discrepancy of one layer, averaged over the batch."""
    s, t = (unit_vectors(x.flatten(2), dim=2) for x in (student, teacher))  # (B, C, H * W)
    (c_s, positions), c_t = s.shape[1:], t.size(1)
    if positions * (c_s + c_t) < c_s**2 + c_t**2 + c_s * c_t:
        # The mean of (a.b)^2 is the inner product of the mean outer products a a^T, so the
        # discrepancy is the squared distance of two matrices over positions.
        gap = s.mT @ s / c_s - t.mT @ t / c_t
        return gap.square().sum((1, 2)).mean()
    kernels = [(a @ b.mT).square().mean() for a, b in ((s, s), (t, t), (s, t))]
    return kernels[0] + kernels[1] - 2 * kernels[2]
