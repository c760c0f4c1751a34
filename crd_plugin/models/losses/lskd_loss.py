"""Knowledge distillation with logit standardisation."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from crd_plugin.ops import pair_logits, unit_vectors
from crd_plugin.ops.features import Features
from crd_plugin.registry import MODELS

from ._common import FeatureLoss, Pairs, positive


@MODELS.register_module()
class LSKDLoss(FeatureLoss):
    r"""Knowledge distillation of standardised logits.

    .. math::
        L = \frac{\tau^2}{B} \sum_b KL(softmax(z^t_b / \tau) \| softmax(z^s_b / \tau)), \quad
        z = \frac{x - mean(x)}{std(x)}

    Mean and standard deviation are those of a sample's logits. So the student matches the order and
    the proportions of the teacher's logits, not their size. The gradient grows as one over the
    student's standard deviation: logits that start near zero, as those of a narrow network with
    MMPretrain's heads, make the first steps too large. ``init_cfg=None`` of the head, torch's
    initial weights, prevents it.

    Source: Sun et al., arXiv:2403.01427, algorithm 1; behaviour matched:
    sunshangquan/logit-standardization-KD ``mdistiller/distillers/KD.py`` @ f6e5aa5, whose standard
    deviation divides by C - 1. Differs: 1e-7 is not added to it; instead a sample whose logits are
    all equal is not divided, so that its gradient is of the size of the others'.

    Args:
        tau (float): Temperature. Defaults to 2.0 (published: 2, 3 or 4, by the pair of networks).
        loss_weight (float): Factor of the loss. Defaults to 1.0 (published: 9).

    Shape:
        s_feats, t_feats: logits, ``(B, C)`` float, C at least 2.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If a number is expected and not given.
    """

    def __init__(self, tau: float = 2.0, loss_weight: float = 1.0) -> None:
        super().__init__(loss_weight)
        self.tau = positive('tau', tau, 2)

    def pair(self, s_feats: Features, t_feats: Features) -> Pairs:
        """Return the logits."""
        return [pair_logits(s_feats, t_feats)]

    def compare_layer(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss, without its factor."""
        student, teacher = (
            (_standardize(logits) / self.tau).log_softmax(1) for logits in (student, teacher)
        )
        divergence = F.kl_div(student, teacher, reduction='batchmean', log_target=True)
        return self.tau**2 * divergence


def _standardize(logits: Tensor) -> Tensor:
    """Bring each sample's logits to mean 0 and standard deviation 1."""
    centred = logits - logits.mean(1, keepdim=True)
    return math.sqrt(logits.size(1) - 1) * unit_vectors(centred, dim=1)
