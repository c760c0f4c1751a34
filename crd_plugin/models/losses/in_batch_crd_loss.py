"""CRD without a memory bank: the global batch against itself."""

import math
from typing import Any

import torch
from mmengine.dist import all_gather
from mmengine.logging import MMLogger
from torch import Tensor

from crd_plugin.ops import check_classes, critic_loss, full_precision, no_autocast
from crd_plugin.registry import MODELS

from .._numbers import one_of
from ..collectives import gather_batches, gather_sizes, own_part
from .crd_checks import check_column, check_feats
from .crd_loss import CRDLoss


@MODELS.register_module()
class InBatchCRDLoss(CRDLoss):
    r"""Contrast student and teacher embeddings within the global batch.

    Student embeddings are anchors against the teacher's of the batch of all ranks, and teacher
    embeddings against the student's. The gradient flows through anchors and keys, as in CLIP
    (Radford et al., arXiv:2103.00020). K is the number of other samples, N that of all, and Z / N
    is fixed by the first batch with negatives. Neither ids nor ``MemoryBankHook`` are needed.

    Each rank returns :math:`\frac{W}{B} \sum_i \ell_i` over its own anchors, with W ranks and B
    samples in the global batch: the mean over ranks, which DDP takes of gradients, is that of one
    process with the whole batch.

    Args:
        embed_dim (int): Width D of the embeddings. Defaults to 128.
        temperature (float): tau. Defaults to 0.07.
        objective (str): ``'nce'``, or ``'infonce'``, which needs no constant from the first batch.
            Defaults to ``'nce'``.
        exclude (str): ``'class'``: samples of the anchor's class are not negatives; ``'instance'``:
            copies of the anchor are not.
        loss_weight (float): Factor of the loss. Defaults to 1.0.
        **bank_arguments: Arguments of :class:`CRDLoss` that need a bank are refused.

    Shape:
        s_feats, t_feats: ``(b, D)`` float with unit L2 norm. labels: ``(b,)`` int64, for
        ``exclude='class'``. sample_idx: ``(b,)`` int64; without it every sample is its own.
        known: ``(b,)`` bool; False leaves a sample out, after which a rank may have none.

    State in checkpoints: ``log_mean`` ``(2,)``, the log of Z / N of student's and teacher's
    anchors; NaN until an ``'nce'`` step with negatives has been taken.

    Raises:
        ValueError, TypeError: If an argument is out of range, not a number, or needs a bank.
    """

    log_mean: Tensor
    _has_bank = False

    def __init__(
        self,
        embed_dim: int = 128,
        *,
        temperature: float = 0.07,
        objective: str = 'nce',
        negatives: str = 'batch',
        exclude: str = 'class',
        loss_weight: float = 1.0,
        **bank_arguments: Any,
    ) -> None:
        _check_left_out(**bank_arguments)
        super().__init__(
            embed_dim,
            temperature=temperature,
            objective=objective,
            negatives=one_of('negatives', negatives, ('batch',)),
            exclude=exclude,
            loss_weight=loss_weight,
        )
        self.bank = None  # type: ignore[assignment]
        self.register_buffer('log_mean', torch.full((2,), math.nan).double())
        # Host copy of "the constants are set", so that a step reads nothing back.
        self._has_z = False
        # Whether no sample of the last batch had a negative, on its device.
        self._alone: Tensor | None = None
        self._warned = False

    def forward(  # type: ignore[override]
        self,
        s_feats: Tensor,
        t_feats: Tensor,
        sample_idx: Tensor | None = None,
        labels: Tensor | None = None,
        contrast_idx: None = None,
        negatives: None = None,
        known: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss of one batch; in training mode the first one fixes Z / N."""
        _check_left_out(contrast_idx=contrast_idx, negatives=negatives)
        check_feats(s_feats, t_feats, len(s_feats), self.embed_dim)
        name, key = ('labels', labels) if self.exclude == 'class' else ('sample_idx', sample_idx)
        if key is None and self.exclude == 'class':
            raise ValueError(
                "labels is None, but exclude='class' with negatives='batch' needs one class per "
                "sample; record gt_label with crd_plugin.SampleField, or use exclude='instance' "
                'for data without labels or with several per sample.'
            )
        if key is not None:
            check_column(name, key, len(s_feats))
        if known is not None:
            s_feats, t_feats = s_feats[known], t_feats[known]
            key = None if key is None else key[known]
        if key is not None and self.exclude == 'class' and key.is_cpu:
            check_classes(key)
        dtype = torch.promote_types(s_feats.dtype, t_feats.dtype)
        student, teacher = (full_precision(feats.to(dtype)) for feats in (s_feats, t_feats))
        with no_autocast(student):
            return self.loss_weight * self._contrast_batch(student, teacher, key)

    def draw(self, *args: Any, **kwargs: Any) -> Any:
        """Raise a RuntimeError: the negatives are the other samples of the batch."""
        raise RuntimeError(
            "CRDLoss with negatives='batch' draws nothing: its negatives are the other samples "
            "of the global batch; call forward() alone, or use negatives='sampled'."
        )

    def _contrast_batch(self, student: Tensor, teacher: Tensor, key: Tensor | None) -> Tensor:
        """Sum of both directions over this rank's anchors, in float32 or float64."""
        sizes = gather_sizes(len(student), student.device)
        own, total = own_part(sizes), sum(sizes)
        position = torch.arange(total, device=student.device)[own]
        key = position if key is None else key
        keys, (students, teachers) = gather_batches(key, (student, teacher), sizes)
        if total == 0:
            return student.sum() + teacher.sum()
        # Samples of the anchor's own key are left out; what remains is weighted to count as K = B -
        # 1 negatives.
        weight = (key[:, None] != keys).to(student.dtype)
        remaining = weight.sum(1, keepdim=True)
        weight = weight * ((total - 1) / remaining.clamp_min(1))
        self._alone = (keys == keys[0]).all()
        if self._alone.is_cpu:  # Elsewhere MemoryBankHook does so now and then.
            self.warn_if_alone()
        unset = self.objective == 'nce' and not self._has_z
        if total == 1 or (unset and bool(self._alone)):  # h = 1, or no negative to take Z from.
            self._critic = 1, torch.zeros(2, 1, device=student.device)
            return 0 * (student.sum() + teacher.sum())
        sides = ((student, teachers), (teacher, students))
        scores = [anchors @ keys.t() / self.temperature for anchors, keys in sides]
        means: Any = (None, None)
        if self.objective == 'nce':
            means = self._partition(scores, position, weight)
        parts = [
            critic_loss(score, position, weight, mean)
            for score, mean in zip(scores, means, strict=True)
        ]
        if len(student):
            self._critic = total - 1, -torch.stack([log_h for _, log_h in parts])
        return torch.stack([loss for loss, _ in parts]).sum() * (len(sizes) / total)

    @torch.no_grad()
    def _partition(self, scores: list[Tensor], positive: Tensor, weight: Tensor) -> Tensor:
        """Logarithm of Z / N of both directions, ``(2,)`` float64."""
        if self._has_z:
            return self.log_mean
        # One positive and K weighted negatives of each anchor.
        log_weight = weight.scatter(1, positive[:, None], 1).log()
        local = torch.stack([(score + log_weight).double().logsumexp((0, 1)) for score in scores])
        log_mean = torch.stack(all_gather(local)).logsumexp(0) - 2 * math.log(weight.size(1))
        if self.training:
            self.log_mean.copy_(log_mean)
            self._has_z = True
        return log_mean

    def warn_if_alone(self) -> None:
        """Warn once if no sample of the last batch had a negative, which waits for a GPU."""
        if self._alone is not None and not self._warned and bool(self._alone):
            self._warned = True
            kind = 'class' if self.exclude == 'class' else 'sample'
            MMLogger.get_current_instance().warning(
                f"negatives='batch': all samples of a global batch are of one {kind}, so none has "
                'a negative and nothing is pushed apart; shuffle the training set, enlarge '
                "batch_size, set drop_last=True, or use exclude='instance' with distinct samples."
            )

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Take over the constants, also from their former name ``batch.log_mean``."""
        former = state_dict.pop(prefix + 'batch.log_mean', None)
        if former is not None:
            state_dict[prefix + 'log_mean'] = former
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._has_z = not bool(torch.isnan(self.log_mean).any())


def _check_left_out(**arguments: Any) -> None:
    """Raise a ValueError for arguments that mean nothing without a bank."""
    given = [name for name, value in arguments.items() if value is not None and value is not False]
    if given:
        raise ValueError(
            f"{', '.join(given)} given, but negatives='batch' has no memory bank: the negatives "
            'are the other samples of the global batch; leave '
            f"{'it' if len(given) == 1 else 'them'} out, or use negatives='sampled'."
        )
