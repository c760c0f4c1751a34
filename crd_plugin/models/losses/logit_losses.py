"""Losses that compare logits."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.logging import MessageHub, MMLogger
from torch import Tensor, nn

from crd_plugin.ops import no_autocast, pair_logits, unit_vectors
from crd_plugin.ops.features import Features
from crd_plugin.registry import MODELS

from .._numbers import count, not_negative, positive
from ._common import FeatureLoss
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
        ValueError, TypeError: If an argument is out of range or not a number.
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
    return F.kl_div(student, teacher, reduction='batchmean', log_target=True)


@MODELS.register_module()
class LSKDLoss(FeatureLoss):
    """Knowledge distillation of standardised logits.

    ``L = tau^2 mean KL(softmax(z_t / tau) || softmax(z_s / tau))``, ``z = (x - mean(x)) / std(x)``
    of each sample's logits. The gradient grows as one over the student's standard deviation:
    ``init_cfg=None`` of the head, torch's initial weights, prevents too large first steps.

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
        ValueError, TypeError: If an argument is out of range or not a number.
    """

    pairing = staticmethod(pair_logits)

    def __init__(self, tau: float = 2.0, loss_weight: float = 1.0) -> None:
        super().__init__(loss_weight)
        self.tau = positive('tau', tau, 2)

    def compare_layer(self, student: Tensor, teacher: Tensor) -> Tensor:
        """As for :class:`FeatureLoss`."""
        student, teacher = (
            (_standardize(logits) / self.tau).log_softmax(1) for logits in (student, teacher)
        )
        return self.tau**2 * _divergence(student, teacher)


def _standardize(logits: Tensor) -> Tensor:
    centred = logits - logits.mean(1, keepdim=True)
    return math.sqrt(logits.size(1) - 1) * unit_vectors(centred, dim=1)


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
        ValueError, TypeError: If an argument is out of range or not a number.
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
            value = _divergence(student, each.logsumexp(0) - math.log(len(pairs)))
        return self.loss_weight * self.tau**2 * value
