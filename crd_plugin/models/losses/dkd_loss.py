"""Decoupled knowledge distillation."""

import torch
import torch.nn.functional as F
from mmengine.logging import MessageHub, MMLogger
from torch import Tensor, nn

from crd_plugin.ops import no_autocast, pair_logits
from crd_plugin.ops.features import Features
from crd_plugin.registry import MODELS

from .._numbers import count, not_negative, positive
from .crd_checks import check_column


@MODELS.register_module()
class DKDLoss(nn.Module):
    """Decoupled knowledge distillation: KD in two parts with weights of their own.

    ``L = tau^2 (alpha KL(b_t || b_s) + beta KL(r_t || r_s))``, averaged over the batch, with p the
    softmax of logits divided by tau, y the class of a sample, ``b = (p_y, 1 - p_y)`` and r the
    other classes' ``p / (1 - p_y)``. KD has the teacher's ``1 - p_y`` for beta.

    During the first epochs of a run of MMEngine the loss grows linearly: epoch e, from 1, counts
    e / ``warmup_epochs``. Outside a run it has its full weight.

    Source: Zhao et al., arXiv:2203.08679, equation 7; behaviour matched: megvii-research/mdistiller
    ``mdistiller/distillers/DKD.py`` @ a08d46f. Differs: a class without probability gives a finite
    loss.

    Args:
        alpha (float): Weight of the first part, target class against the others. Defaults to 1.0.
        beta (float): Weight of the second part, the others among themselves. Defaults to 8.0
            (published: 2, 6 or 8, by the pair of networks).
        tau (float): Temperature. Defaults to 4.0.
        warmup_epochs (int): Epochs until the loss has its full weight; 1 for none. Defaults to 20.
        loss_weight (float): Factor of the loss. Defaults to 1.0.

    Shape:
        s_feats, t_feats: logits, ``(B, C)`` float, C at least 2. labels: ``(B,)`` int64.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If a number is expected and not given.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 8.0,
        tau: float = 4.0,
        warmup_epochs: int = 20,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.alpha = not_negative('alpha', alpha)
        self.beta = not_negative('beta', beta)
        self.tau = positive('tau', tau, 4)
        self.warmup_epochs = count('warmup_epochs', warmup_epochs, ' (published: 20)')
        self.loss_weight = not_negative('loss_weight', loss_weight)
        self._warned = False

    def forward(self, s_feats: Features, t_feats: Features, labels: Tensor | None) -> Tensor:
        """Compute the loss of one batch; no gradient reaches the teacher's logits."""
        student, teacher = pair_logits(s_feats, t_feats)
        num_classes = student.size(1)
        if labels is None:
            raise ValueError(
                'labels is None, but DKDLoss needs one class per sample; record gt_label with '
                'crd_plugin.SampleField, and use data with one label per sample.'
            )
        check_column('labels', labels, len(student))
        # Looking at numbers would wait for a GPU.
        if labels.device.type == 'cpu' and ((labels < 0) | (labels >= num_classes)).any():
            raise ValueError(
                f'labels are {int(labels.min())} to {int(labels.max())}, expected 0 to '
                f'{num_classes - 1}, the classes of the logits; set num_classes of the heads to '
                'that of the data set.'
            )
        with no_autocast(student):
            (s_binary, s_rest), (t_binary, t_rest) = (
                _split(logits / self.tau, labels) for logits in (student, teacher)
            )
            target = _divergence(s_binary, t_binary)
            others = _divergence(s_rest, t_rest)
            value = self.tau**2 * (self.alpha * target + self.beta * others)
        return self.loss_weight * self._warmup() * value

    def _warmup(self) -> float:
        """Return the share of the loss that counts in this epoch."""
        hub = MessageHub.get_current_instance()
        if hub.get_info('loop_stage') != 'train':
            return 1.0
        epochs = hub.get_info('max_epochs')
        if epochs < self.warmup_epochs and not self._warned:
            MMLogger.get_current_instance().warning(
                f'warmup_epochs={self.warmup_epochs} of DKDLoss is more than the {epochs} of '
                'train_cfg.max_epochs, so the loss never has its full weight; lower it. A loop by '
                'iterations counts as one epoch: set it to 1.'
            )
            self._warned = True
        return min((hub.get_info('epoch') + 1) / self.warmup_epochs, 1.0)


def _split(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of target against rest, ``(B, 2)``, and in the rest ``(B, C-1)``."""
    labels = labels[:, None]
    column = torch.arange(logits.size(1) - 1, device=logits.device)
    rest = logits.gather(1, column + (column >= labels))
    binary = torch.cat([logits.gather(1, labels), rest.logsumexp(1, keepdim=True)], 1)
    return binary.log_softmax(1), rest.log_softmax(1)


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean KL divergence of log-probabilities over the batch."""
    return F.kl_div(student, teacher, reduction='batchmean', log_target=True)
