"""Contrast within the global batch, for CRD without a memory bank."""

import math
from typing import NamedTuple, Optional

import torch
from mmengine.dist import all_gather
from mmengine.logging import MMLogger
from torch import Tensor, nn

from crd_plugin.ops import (
    batch_info_nce,
    batch_log_total,
    batch_nce,
    batch_weights,
    full_precision,
    no_autocast,
)

from ..collectives import gather_batches, gather_sizes, own_part


class InBatchResult(NamedTuple):
    """What :class:`InBatchContrast` returns.

    Attributes:
        loss (Tensor): Scalar, both directions.
        mi_bound (Tensor): Lower bound of the mutual information, in nats.
    """

    loss: Tensor
    mi_bound: Tensor


class InBatchContrast(nn.Module):
    r"""Student and teacher of a batch against each other, over all ranks.

    Student embeddings are anchors against the teacher's of the global batch
    and teacher embeddings against the student's. Keys are of this step, so
    the gradient flows through anchors and keys, on every rank that used them:
    both connectors learn from all pairs, as in SimCLR (Chen et al.,
    arXiv:2002.05709) and CLIP (Radford et al., arXiv:2103.00020).

    Each rank returns :math:`\frac{W}{B} \sum_i \ell_i` over its own anchors,
    with W ranks and B samples in the global batch, so that the mean over
    ranks, which DDP takes of gradients, is that of one process with the whole
    batch, whatever the sizes of the parts.

    State in checkpoints: ``log_mean`` ``(2,)``, the log of Z / N of student's
    and teacher's anchors; NaN until an ``'nce'`` step has been taken.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer('log_mean', torch.full((2,), math.nan).double())
        # Host-side copy of "the constants are set": no read-back in a step.
        self._has_z = False
        self._warned = False

    @property
    def has_z(self) -> bool:
        """bool: The partition constants are set."""
        return self._has_z

    def forward(
        self,
        s_feats: Tensor,
        t_feats: Tensor,
        sample_key: Optional[Tensor],
        objective: str,
        temperature: float,
    ) -> InBatchResult:
        """Loss of one batch; the first one in training mode fixes Z / N.

        Args:
            s_feats (Tensor): Student embeddings, ``(b, D)``, unit norm.
            t_feats (Tensor): Teacher embeddings, ``(b, D)``, unit norm.
            sample_key (Tensor, optional): Class or id of each sample,
                ``(b,)`` int64; samples of one key are no negatives of each
                other. Defaults to None: every sample is its own.
            objective (str): ``'nce'`` or ``'infonce'``.
            temperature (float): tau.

        Returns:
            InBatchResult: Loss and bound.
        """
        dtype = torch.promote_types(s_feats.dtype, t_feats.dtype)
        student, teacher = (full_precision(feats.to(dtype)) for feats in (s_feats, t_feats))
        with no_autocast(student):
            return self._contrast(student, teacher, sample_key, objective, temperature)

    def _contrast(
        self,
        student: Tensor,
        teacher: Tensor,
        sample_key: Optional[Tensor],
        objective: str,
        temperature: float,
    ) -> InBatchResult:
        """:meth:`forward` in float32 or float64."""
        sizes = gather_sizes(student.size(0), student.device)
        own, total = own_part(sizes), sum(sizes)
        position = torch.arange(total, device=student.device)
        given = position[own] if sample_key is None else sample_key
        keys, (students, teachers) = gather_batches(given, (student, teacher), sizes)
        if total == 1:
            return self._no_negative(student, teacher)
        weight = batch_weights(given, keys, student.dtype)
        scores = [
            anchor @ key.t() / temperature
            for anchor, key in ((student, teachers), (teacher, students))
        ]
        if objective == 'infonce':
            parts = [batch_info_nce(score, position[own], weight) for score in scores]
        else:
            log_mean = self._partition(scores, position[own], weight)
            parts = [
                batch_nce(score, position[own], weight, mean)
                for score, mean in zip(scores, log_mean)
            ]
        loss = sum(loss.sum() for loss, _ in parts) * (len(sizes) / total)
        log_h = sum(log_h.mean() for _, log_h in parts) / 2
        return InBatchResult(loss, math.log(total - 1) + log_h)

    @torch.no_grad()
    def _partition(self, scores, positive: Tensor, weight: Tensor) -> Tensor:
        """Log of Z / N of both directions, ``(2,)`` float64."""
        if self._has_z:
            return self.log_mean
        local = torch.stack([batch_log_total(score, positive, weight) for score in scores])
        log_mean = torch.stack(all_gather(local)).logsumexp(0)
        log_mean -= 2 * math.log(weight.size(1))
        if self.training:
            self.log_mean.copy_(log_mean)
            self._has_z = True
        return log_mean

    def _no_negative(self, student: Tensor, teacher: Tensor) -> InBatchResult:
        """Loss of a global batch of one sample: h = 1, so it is zero."""
        if not self._warned:
            MMLogger.get_current_instance().warning(
                "negatives='batch': a global batch of 1 sample has no "
                'negative and adds nothing to the loss; give batch_size at '
                'least 2, and drop_last=True if it is the last batch of an '
                'epoch.'
            )
            self._warned = True
        zero = 0 * (student.sum() + teacher.sum())
        return InBatchResult(zero, zero.detach())

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        """Notice constants that a checkpoint brings."""
        super()._load_from_state_dict(*args, **kwargs)
        self._has_z = not bool(torch.isnan(self.log_mean).any())
