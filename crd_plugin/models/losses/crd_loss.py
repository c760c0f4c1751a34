"""The objective of contrastive representation distillation."""

import math
from typing import Optional, Sequence, Tuple, Union

import torch
from mmengine.dist import all_gather
from torch import Tensor, nn

from crd_plugin.ops import (
    ContrastResult,
    Negatives,
    ShardNegatives,
    all_negatives,
    draw_negatives,
    info_nce,
    log_partition,
    nce,
    no_autocast,
    prepare,
    shared_negatives,
)
from crd_plugin.registry import MODELS

from ..memory_bank import MemoryBank
from ..sharded_bank import ShardedBank
from ._common import count, finite, positive
from .crd_checks import check_column, check_embeddings, check_labels, check_left_out, check_range
from .in_batch_contrast import InBatchContrast
from .sharded_contrast import contrast_with_shards, draw_from_shards


@MODELS.register_module()
class CRDLoss(nn.Module):
    r"""Contrastive Representation Distillation.

    Student embeddings are anchors against the teacher's rows of a memory bank
    and teacher embeddings against the student's; both losses are summed:

    .. math::
        L = -\frac{1}{B} \sum_i \Big[ \log h_{i,pos}
            + \sum_{k=1}^{K} \log (1 - h_{ik}) \Big], \quad
        h = \frac{P}{P + K/N}, \quad P = \frac{e^{\langle g, v\rangle/\tau}}{Z}

    Source: Tian et al., arXiv:1910.10699, eq. 17-18; numbers of
    HobbitLong/RepDistiller ``crd/``. Unlike ``mmrazor.CRDLoss``,
    ``loss_weight`` counts (there it is stored and never used), negatives can
    exclude the anchor's class without ids from the data loader, a forward pass
    changes no bank, and ranks agree on Z.

    ``MemoryBankHook`` sizes the bank and commits its updates. Without a bank,
    ``negatives='batch'``, no hook and no ids are needed: keys are the other
    side's embeddings of the global batch, gathered over ranks, and carry
    gradient like the anchors. K is then the number of other samples, N that
    of all, and Z / N is fixed by the first batch.

    Args:
        embed_dim (int): Width D of the embeddings. Defaults to 128.
        num_negatives (int, optional): K. Defaults to None: 16384, as
            published. Not to be given with ``negatives='batch'``.
        temperature (float): tau. Defaults to 0.07.
        momentum (float, optional): Weight of the OLD row of the bank.
            Defaults to None: 0.5, as published. Not to be given with
            ``negatives='batch'``.
        objective (str): ``'nce'`` or ``'infonce'`` (the paper's ablation).
        negatives (str): ``'sampled'``: K ids for each anchor, as published;
            ``'shared'``: one draw of K rows for the batch; ``'all'``: every
            row weighted K / pool, which is the expectation of ``'sampled'``;
            ``'batch'``: the other samples of the global batch, no bank;
            ``objective='infonce'`` is recommended with it.
        exclude (str): ``'class'``: negatives are of another class;
            ``'instance'``: any other row, for data without labels.
        num_samples (int, optional): Rows N. Defaults to None: the length of
            the training set, set by ``MemoryBankHook``. Not to be given with
            ``negatives='batch'``.
        loss_weight (float): Factor of the loss. Defaults to 1.0.
        sharded (bool): Split the rows of the bank over the ranks: each keeps
            N / W of them, scores the anchors of all ranks against these, and
            the sums are reduced. The same loss with ``negatives='all'``, the
            same expectation otherwise. Defaults to False.
        bank_dtype (str, optional): What rows are kept in: ``'float32'``,
            ``'float16'`` or ``'bfloat16'``; all maths is in float32. Defaults
            to None: float32.

    Shape:
        s_feats, t_feats: ``(B, D)`` float with unit L2 norm.
        sample_idx: ``(B,)`` int64. Output: scalar float32 (float64 for
        float64 embeddings).

    Raises:
        ValueError: If an argument is out of range or not one of its words.
        TypeError: If one is no number where a number is expected.
    """

    def __init__(
        self,
        embed_dim: int = 128,
        num_negatives: Optional[int] = None,
        temperature: float = 0.07,
        momentum: Optional[float] = None,
        objective: str = 'nce',
        negatives: str = 'sampled',
        exclude: str = 'class',
        num_samples: Optional[int] = None,
        loss_weight: float = 1.0,
        sharded: bool = False,
        bank_dtype: Optional[str] = None,
    ) -> None:
        super().__init__()
        if num_negatives is not None:
            count('num_negatives', num_negatives, ' (published: 16384)')
        count('embed_dim', embed_dim, ' (published: 128)')
        positive('temperature', temperature, 0.07)
        finite('loss_weight', loss_weight)
        choices = (
            ('objective', objective, ('nce', 'infonce')),
            ('negatives', negatives, ('sampled', 'shared', 'all', 'batch')),
            ('exclude', exclude, ('class', 'instance')),
            ('bank_dtype', bank_dtype, (None, 'float32', 'float16', 'bfloat16')),
        )
        for name, value, words in choices:
            if value not in words:
                raise ValueError(f'{name} is {value!r}, expected one of {words}.')
        self.embed_dim = embed_dim
        self.temperature = temperature
        self.objective = objective
        self.negatives = negatives
        self.exclude = exclude
        self.loss_weight = loss_weight
        self.num_negatives: Optional[int] = None
        self.bank: Optional[MemoryBank] = None
        if negatives == 'batch':
            check_left_out(
                num_negatives=num_negatives,
                momentum=momentum,
                num_samples=num_samples,
                sharded=sharded or None,
                bank_dtype=bank_dtype,
            )
            self.batch = InBatchContrast()
        else:
            self.num_negatives = 16384 if num_negatives is None else (num_negatives)
            momentum = 0.5 if momentum is None else momentum
            bank = ShardedBank if sharded else MemoryBank
            self.bank = bank(
                embed_dim, momentum, num_samples, getattr(torch, bank_dtype or 'float32')
            )
        # log K and the losses of positives, of which mi_bound is made.
        self._critic: Optional[Tuple[float, Tensor]] = None

    def forward(
        self,
        s_feats: Tensor,
        t_feats: Tensor,
        sample_idx: Optional[Tensor] = None,
        labels: Optional[Tensor] = None,
        contrast_idx: Optional[Tensor] = None,
        negatives: Union[Negatives, ShardNegatives, None] = None,
    ) -> Tensor:
        """Loss of one batch; in training mode an update is left in the bank.

        Args:
            s_feats (Tensor): Student embeddings, ``(B, D)``, unit norm.
            t_feats (Tensor): Teacher embeddings, ``(B, D)``, unit norm.
            sample_idx (Tensor, optional): Position of each sample in the
                training set, ``(B,)`` int64. A bank needs it; with
                ``negatives='batch'`` and ``exclude='instance'`` it tells
                copies of a sample apart from others.
            labels (Tensor, optional): Class of each sample, ``(B,)`` int64.
                The bank knows the labels; these are compared with it, on
                CPU tensors, to notice a training set that is not the bank's.
                With ``negatives='batch'`` they are needed for
                ``exclude='class'`` and not looked at otherwise.
            contrast_idx (Tensor, optional): Rows to score, ``(B, 1 + K)``
                int64, the first column the positive. Replaces the drawing of
                negatives, for parity with the published code.
            negatives (Negatives | ShardNegatives, optional): What
                :meth:`draw` of a loss with a bank of the same samples
                returned for this batch, so that several losses share it.
                Defaults to None: drawn here.

        Returns:
            Tensor: Scalar, already multiplied by ``loss_weight``.

        Raises:
            ValueError: If shapes, ids or values are not as described.
            RuntimeError: If the bank has no size, or its last update was
                never committed.
        """
        if self.bank is None:
            check_left_out(contrast_idx=contrast_idx, negatives=negatives)
            return self._forward_batch(s_feats, t_feats, sample_idx, labels)
        self._check(s_feats, t_feats, sample_idx, labels, contrast_idx)
        if negatives is None:
            negatives = self.draw(sample_idx, contrast_idx, s_feats.dtype)
        pos_idx = sample_idx if contrast_idx is None else contrast_idx[:, 0]
        with no_autocast(s_feats):
            # It would refuse the other of the two half types.
            anchors = torch.stack([s_feats, t_feats])
        if isinstance(self.bank, ShardedBank):
            result, new_log_z = contrast_with_shards(
                anchors, self.bank, negatives, self.objective, self.temperature
            )
        else:
            result, new_log_z = self._contrast(anchors, pos_idx, negatives)
        if self.training:
            self.bank.stage(sample_idx, s_feats, t_feats, new_log_z)
        self._critic = math.log(negatives.num_negatives), result.positive_loss
        return self.loss_weight * result.loss.sum()

    @property
    def mi_bound(self) -> Optional[Tensor]:
        """Tensor: Lower bound of the mutual information, in nats, scalar
        without gradient; None before the first batch.

        ``I(T; S) >= log K + E[log h]``, section 3.1 of the paper; the mean of
        both directions.
        """
        if self._critic is None:
            return None
        log_k, positive_loss = self._critic
        return log_k - positive_loss.mean()

    def _contrast(
        self, anchors: Tensor, pos_idx: Tensor, negatives: Negatives
    ) -> Tuple[ContrastResult, Optional[Tensor]]:
        """Both directions, and the log of Z if it has to be set."""
        bank = self.bank
        arguments = anchors, (bank.teacher, bank.student), pos_idx, negatives
        if self.objective == 'infonce':
            return info_nce(*arguments, self.temperature), None
        log_z, new_log_z = bank.log_z, None
        if not bank.has_z:
            log_z = new_log_z = self._estimate_log_z(*arguments)
        return nce(*arguments, log_z, self.temperature), new_log_z

    def _forward_batch(
        self,
        s_feats: Tensor,
        t_feats: Tensor,
        sample_idx: Optional[Tensor],
        labels: Optional[Tensor],
    ) -> Tensor:
        """:meth:`forward` without a bank."""
        batch = s_feats.size(0)
        self._check_feats(s_feats, t_feats, batch)
        key, name = sample_idx, 'sample_idx'
        if self.exclude == 'class':
            key, name = labels, 'labels'
            if labels is None:
                raise ValueError(
                    "labels is None, but exclude='class' with "
                    "negatives='batch' needs the class of each sample; "
                    'record it with crd_plugin.SampleField, or use '
                    "exclude='instance' for data without labels."
                )
        if key is not None:
            check_column(name, key, batch)
        result = self.batch(s_feats, t_feats, key, self.objective, self.temperature)
        self._critic = 0.0, -result.mi_bound
        return self.loss_weight * result.loss

    def draw(
        self,
        sample_idx: Tensor,
        contrast_idx: Optional[Tensor] = None,
        dtype: torch.dtype = torch.float32,
    ) -> Union[Negatives, ShardNegatives]:
        """Negatives of a batch, by the rule of ``self.negatives``.

        With a sharded bank they are those of all ranks' batches: every rank
        must call it.

        Args:
            sample_idx (Tensor): As for :meth:`forward`.
            contrast_idx (Tensor, optional): As for :meth:`forward`; then
                these are the negatives.
            dtype (torch.dtype): Of the embeddings. Defaults to float32.

        Returns:
            Negatives | ShardNegatives: Ready to be scored, by this loss or by
            several.

        Raises:
            ValueError: If ids are not as described.
            RuntimeError: If there is no bank, or it has no size.
        """
        if self.bank is None:
            raise RuntimeError(
                "CRDLoss with negatives='batch' draws nothing: its negatives "
                'are the other samples of the global batch; call forward() '
                "alone, or use negatives='sampled'."
            )
        self._check_ids(sample_idx, contrast_idx)
        if isinstance(self.bank, ShardedBank):
            return draw_from_shards(
                self.bank,
                sample_idx,
                contrast_idx,
                self.num_negatives,
                self.negatives,
                self.exclude,
                dtype,
            )
        num_samples = self.bank.num_samples
        if contrast_idx is not None:
            given = Negatives(contrast_idx.size(1) - 1, contrast_idx[:, 1:])
            return prepare(given, num_samples, dtype)
        draw = {'sampled': draw_negatives, 'shared': shared_negatives, 'all': all_negatives}[
            self.negatives
        ]
        label_index = None
        if self.exclude == 'class':
            label_index = self.bank.label_index
        drawn = draw(sample_idx, num_samples, self.num_negatives, label_index)
        return prepare(drawn, num_samples, dtype)

    def _estimate_log_z(
        self, anchors: Tensor, rows: Sequence[Tensor], pos_idx: Tensor, negatives: Negatives
    ) -> Tensor:
        """Partition constants of the first batch over all ranks, ``(2,)``."""
        local = log_partition(anchors, rows, pos_idx, negatives, self.temperature)
        size = local.new_full((1,), pos_idx.numel())
        ranks = torch.stack(all_gather(torch.cat([local, size])))
        weight = ranks[:, 2:].log()
        mean = (ranks[:, :2] + weight).logsumexp(0) - weight.logsumexp(0)
        return mean + math.log(self.bank.num_samples)

    def _check(
        self,
        s_feats: Tensor,
        t_feats: Tensor,
        sample_idx: Optional[Tensor],
        labels: Optional[Tensor],
        contrast_idx: Optional[Tensor],
    ) -> None:
        """Say what is wrong with the input; no read-back from a GPU."""
        self._check_ids(sample_idx, contrast_idx)
        self._check_feats(s_feats, t_feats, sample_idx.numel())
        if labels is not None and self.bank.labels.numel():
            check_column('labels', labels, sample_idx.numel())
            if sample_idx.device.type == 'cpu':
                check_labels(labels, self.bank.labels[sample_idx], sample_idx)

    def _check_ids(self, sample_idx: Optional[Tensor], contrast_idx: Optional[Tensor]) -> None:
        """The bank has rows, and the ids are rows of it."""
        num_samples = self.bank.num_samples
        if num_samples == 0:
            raise RuntimeError(
                'CRDLoss has a memory bank without rows: MemoryBankHook is '
                "missing; add dict(type='crd_plugin.MemoryBankHook') to "
                'custom_hooks, or give num_samples.'
            )
        if sample_idx is None:
            raise ValueError(
                'sample_idx is None, but the memory bank needs the position '
                'of each sample in the training set; record it with '
                "crd_plugin.SampleField, or use negatives='batch'."
            )
        check_column('sample_idx', sample_idx)
        batch = sample_idx.numel()
        if contrast_idx is not None and (
            contrast_idx.dtype != torch.int64
            or contrast_idx.dim() != 2
            or contrast_idx.size(0) != batch
            or contrast_idx.size(1) < 2
        ):
            raise ValueError(
                f'contrast_idx is {contrast_idx.dtype} of shape '
                f'{tuple(contrast_idx.shape)}, expected int64 of shape '
                f'({batch}, 1 + K) with the positive first.'
            )
        if sample_idx.device.type != 'cpu':
            return  # Looking at numbers would wait for the GPU.
        for name, ids in (('sample_idx', sample_idx), ('contrast_idx', contrast_idx)):
            if ids is not None and ids.numel():
                check_range(name, int(ids.min()), int(ids.max()), num_samples)

    def _check_feats(self, s_feats: Tensor, t_feats: Tensor, batch: int) -> None:
        """One embedding a sample and side; of unit norm, on the host."""
        sides = (('s_feats', 'student', s_feats), ('t_feats', 'teacher', t_feats))
        for name, _, feats in sides:
            if feats.shape != (batch, self.embed_dim):
                raise ValueError(
                    f'{name} has shape {tuple(feats.shape)}, expected '
                    f'({batch}, {self.embed_dim}): one embedding of width '
                    'embed_dim a sample; put a crd_plugin.EmbeddingConnector '
                    f'with embed_dim={self.embed_dim} in front of it.'
                )
        if s_feats.device.type == 'cpu':
            for name, side, feats in sides:
                check_embeddings(name, side, feats.detach().float().norm(dim=1))
