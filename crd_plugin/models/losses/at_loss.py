"""Attention transfer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crd_plugin.ops import attention_vector, match_heights, pair_maps
from crd_plugin.ops.features import Features
from crd_plugin.registry import MODELS

from ._common import finite, positive


@MODELS.register_module()
class ATLoss(nn.Module):
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

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If an argument is not a number.
    """

    def __init__(self, power: float = 2, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.power = positive('power', power, 2)
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
        losses = []
        for pair in pair_maps(s_feats, t_feats):
            q_s, q_t = (attention_vector(x, self.power) for x in match_heights(*pair))
            losses.append((q_s - q_t).square().mean())
        return self.loss_weight * torch.stack(losses).sum()
