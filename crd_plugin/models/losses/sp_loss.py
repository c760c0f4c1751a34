"""Similarity-preserving distillation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crd_plugin.ops import no_autocast, pair_maps, unit_vectors
from crd_plugin.ops.features import Features
from crd_plugin.registry import MODELS

from ._common import finite


@MODELS.register_module()
class SPLoss(nn.Module):
    r"""Similarity-preserving distillation: which samples resemble each other.

    .. math::
        L = \sum_l \frac{1}{B^2} \lVert \hat G_s^l - \hat G_t^l \rVert_F^2,
        \quad G = F F^\top

    with F the flattened maps of the batch and each row of G divided by its norm. The loss of a
    batch of one sample is zero.

    Source: Tung and Mori, arXiv:1907.09682, section 3; numbers of HobbitLong/RepDistiller
    ``distiller_zoo/SP.py``, except that the gradient of a sample whose map is zero is not 1e12
    times too large. MMRazor has no such loss.

    Args:
        loss_weight (float): Factor of the loss. Defaults to 1.0 (published: 3000).

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
            s_feats (Tensor | Sequence[Tensor]): Student's map ``(B, C, H, W)`` of each layer.
            t_feats (Tensor | Sequence[Tensor]): Teacher's map of each layer; its channels, height
                and width may differ.

        Returns:
            Tensor: Sum over the layers times ``loss_weight``, scalar float32 (float64 for float64).

        Raises:
            ValueError: If layers or batches cannot be paired.
        """
        pairs = pair_maps(s_feats, t_feats)
        with no_autocast(pairs[0][0]):
            losses = [(_similarity(s) - _similarity(t)).square().mean() for s, t in pairs]
            return self.loss_weight * torch.stack(losses).sum()


def _similarity(feature_map: Tensor) -> Tensor:
    """Compute the row-normalised products of all pairs of samples, ``(B, B)``."""
    flat = feature_map.flatten(1)
    return unit_vectors(flat @ flat.mT, dim=1)
