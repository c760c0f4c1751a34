"""Knowledge distillation with logit standardisation."""

import math

import torch.nn.functional as F
from torch import Tensor

from crd_plugin.ops import pair_logits, unit_vectors
from crd_plugin.registry import MODELS

from .._numbers import positive
from ._common import FeatureLoss


@MODELS.register_module()
class LSKDLoss(FeatureLoss):
    """Knowledge distillation of standardised logits.

    ``L = tau^2 mean KL(softmax(z_t / tau) || softmax(z_s / tau))``, ``z = (x - mean(x)) / std(x)``
    of each sample's logits. The gradient grows as one over the
    student's standard deviation: ``init_cfg=None`` of the head, torch's initial weights, prevents
    too large first steps.

    Source: Sun et al., arXiv:2403.01427, algorithm 1; behaviour matched:
    sunshangquan/logit-standardization-KD ``mdistiller/distillers/KD.py`` @ f6e5aa5, whose standard
    deviation divides by C - 1. Differs: 1e-7 is not added to it; a sample whose logits are all
    equal is not divided.

    Args:
        tau (float): Temperature. Defaults to 2.0 (published: 2, 3 or 4, by the pair of networks).
        loss_weight (float): Factor of the loss. Defaults to 1.0 (published: 9).

    Shape:
        s_feats, t_feats: logits, ``(B, C)`` float, C at least 2.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If a number is expected and not given.
    """

    pairing = staticmethod(pair_logits)

    def __init__(self, tau: float = 2.0, loss_weight: float = 1.0) -> None:
        super().__init__(loss_weight)
        self.tau = positive('tau', tau, 2)

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
