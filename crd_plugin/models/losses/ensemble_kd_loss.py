"""Knowledge distillation from several teachers."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crd_plugin.ops import no_autocast, pair_logits
from crd_plugin.registry import MODELS

from .._numbers import not_negative, positive


@MODELS.register_module()
class EnsembleKDLoss(nn.Module):
    """Knowledge distillation from the mean of the teachers' softened probabilities.

    ``L = tau^2 KL(mean over m of softmax(t_m / tau) || softmax(s / tau))``, averaged over the
    batch. With one teacher it is ``mmrazor.KLDivergence``.

    Source: Hinton et al., arXiv:1503.02531, section 1.

    Args:
        tau (float): Temperature. Defaults to 4.0.
        loss_weight (float): Factor of the loss. Defaults to 1.0.

    Shape:
        s_feats: logits, ``(B, C)`` float. t_feats: one ``(B, C)`` float per teacher; in a mapping
        ``record_idx='all'``.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If a number is expected and not given.
    """

    def __init__(self, tau: float = 4.0, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.tau = positive('tau', tau, 4)
        self.loss_weight = not_negative('loss_weight', loss_weight)
        # Logits are looked at before training, when widths of other losses are inferred.
        self.needs_width = True

    def infer_width(self, s_feats: Tensor, t_feats: Tensor | Sequence[Tensor]) -> None:
        """Check that all networks tell the same classes apart; arguments as for :meth:`forward`."""
        teachers = [t_feats] if isinstance(t_feats, Tensor) else t_feats
        classes = [logits.size(1) for logits in teachers]
        if set(classes) != {s_feats.size(1)}:
            raise ValueError(
                f'EnsembleKDLoss was given logits of {classes} classes by the teachers and '
                f'{s_feats.size(1)} by the student; all must tell the same classes apart: leave '
                'the others out of teacher and teacher_ckpt, or use EnsembleCRDLoss, which reads '
                'features.'
            )
        self.needs_width = False

    def forward(self, s_feats: Tensor, t_feats: Tensor | Sequence[Tensor]) -> Tensor:
        """Compute the loss of one batch; no gradient reaches the teachers' logits."""
        teachers = [t_feats] if isinstance(t_feats, Tensor) else t_feats
        pairs = [pair_logits(s_feats, logits) for logits in teachers]
        with no_autocast(s_feats):
            student = (pairs[0][0] / self.tau).log_softmax(1)
            each = torch.stack([(teacher / self.tau).log_softmax(1) for _, teacher in pairs])
            mean = each.logsumexp(0) - math.log(len(pairs))
            value = F.kl_div(student, mean, reduction='batchmean', log_target=True)
        return self.loss_weight * self.tau**2 * value
