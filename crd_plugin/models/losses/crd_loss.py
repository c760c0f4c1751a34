"""The objective of contrastive representation distillation."""
import math
from typing import Optional

import torch
from mmengine.dist import all_gather
from torch import Tensor, nn

from crd_plugin.ops import (Negatives, all_negatives, draw_negatives, info_nce,
                            log_partition, nce, prepare, shared_negatives)
from crd_plugin.registry import MODELS

from ..memory_bank import MemoryBank

# How far from 1 the norm of an embedding may be: float16 rounding of 128
# numbers stays below it, a forgotten normalisation does not.
_NORM_TOLERANCE = 1e-2


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

    ``MemoryBankHook`` sizes the bank and commits its updates.

    Args:
        embed_dim (int): Width D of the embeddings. Defaults to 128.
        num_negatives (int): K. Defaults to 16384.
        temperature (float): tau. Defaults to 0.07.
        momentum (float): Weight of the OLD row of the bank. Defaults to 0.5.
        objective (str): ``'nce'`` or ``'infonce'`` (the paper's ablation).
        negatives (str): ``'sampled'``: K ids for each anchor, as published;
            ``'shared'``: one draw of K rows for the batch; ``'all'``: every
            row weighted K / pool, which is the expectation of ``'sampled'``.
        exclude (str): ``'class'``: negatives are of another class;
            ``'instance'``: any other row, for data without labels.
        num_samples (int, optional): Rows N. Defaults to None: the length of
            the training set, set by ``MemoryBankHook``.
        loss_weight (float): Factor of the loss. Defaults to 1.0.

    Shape:
        s_feats, t_feats: ``(B, D)`` float with unit L2 norm.
        sample_idx: ``(B,)`` int64. Output: scalar float32 (float64 for
        float64 embeddings).

    Raises:
        ValueError: If an argument is out of range or not one of its words.
    """

    def __init__(self,
                 embed_dim: int = 128,
                 num_negatives: int = 16384,
                 temperature: float = 0.07,
                 momentum: float = 0.5,
                 objective: str = 'nce',
                 negatives: str = 'sampled',
                 exclude: str = 'class',
                 num_samples: Optional[int] = None,
                 loss_weight: float = 1.0) -> None:
        super().__init__()
        if num_negatives < 1:
            raise ValueError(
                f'num_negatives is {num_negatives}, expected at least 1 '
                '(published: 16384).')
        if not temperature > 0:
            raise ValueError(
                f'temperature is {temperature}, expected a positive number '
                '(published: 0.07).')
        if not math.isfinite(loss_weight):
            raise ValueError(
                f'loss_weight is {loss_weight}, expected a finite number.')
        choices = (('objective', objective, ('nce', 'infonce')),
                   ('negatives', negatives, ('sampled', 'shared', 'all')),
                   ('exclude', exclude, ('class', 'instance')))
        for name, value, words in choices:
            if value not in words:
                raise ValueError(
                    f'{name} is {value!r}, expected one of {words}.')
        self.embed_dim = embed_dim
        self.num_negatives = num_negatives
        self.temperature = temperature
        self.objective = objective
        self.negatives = negatives
        self.exclude = exclude
        self.loss_weight = loss_weight
        self.bank = MemoryBank(embed_dim, momentum, num_samples)
        # Lower bound of the mutual information, in nats; for the hook's log.
        self.mi_bound: Optional[Tensor] = None

    def forward(self,
                s_feats: Tensor,
                t_feats: Tensor,
                sample_idx: Tensor,
                labels: Optional[Tensor] = None,
                contrast_idx: Optional[Tensor] = None) -> Tensor:
        """Loss of one batch; in training mode an update is left in the bank.

        Args:
            s_feats (Tensor): Student embeddings, ``(B, D)``, unit norm.
            t_feats (Tensor): Teacher embeddings, ``(B, D)``, unit norm.
            sample_idx (Tensor): Position of each sample in the training set,
                ``(B,)`` int64.
            labels (Tensor, optional): Class of each sample, ``(B,)`` int64.
                The bank knows the labels; these are compared with it, on
                CPU tensors, to notice a training set that is not the bank's.
            contrast_idx (Tensor, optional): Rows to score, ``(B, 1 + K)``
                int64, the first column the positive. Replaces the drawing of
                negatives, for parity with the published code.

        Returns:
            Tensor: Scalar, already multiplied by ``loss_weight``.

        Raises:
            ValueError: If shapes, ids or values are not as described.
            RuntimeError: If the bank has no size, or its last update was
                never committed.
        """
        self._check(s_feats, t_feats, sample_idx, labels, contrast_idx)
        if contrast_idx is not None:
            pos_idx = contrast_idx[:, 0]
            negatives = Negatives(contrast_idx.size(1) - 1,
                                  contrast_idx[:, 1:])
        else:
            pos_idx = sample_idx
            negatives = self._draw(sample_idx)
        negatives = prepare(negatives, self.bank.num_samples, s_feats.dtype)
        sides = ((s_feats, self.bank.teacher), (t_feats, self.bank.student))
        log_z = new_log_z = None
        if self.objective == 'infonce':
            student, teacher = (
                info_nce(anchor, rows, pos_idx, negatives, self.temperature)
                for anchor, rows in sides)
        else:
            if self.bank.has_z:
                log_z = (self.bank.log_z_student, self.bank.log_z_teacher)
            else:
                log_z = new_log_z = self._estimate_log_z(
                    sides, pos_idx, negatives)
            student, teacher = (
                nce(anchor, rows, pos_idx, negatives, z, self.temperature)
                for (anchor, rows), z in zip(sides, log_z))
        if self.training:
            self.bank.stage(sample_idx, s_feats, t_feats, new_log_z)
        # I(T; S) >= log K + E[log h], section 3.1 of the paper; the mean of
        # both directions.
        self.mi_bound = math.log(negatives.num_negatives) + (
            student.log_h + teacher.log_h) / 2
        return self.loss_weight * (student.loss + teacher.loss)

    def _draw(self, sample_idx: Tensor) -> Negatives:
        """Negatives of this batch, by the rule of ``self.negatives``."""
        draw = {
            'sampled': draw_negatives,
            'shared': shared_negatives,
            'all': all_negatives
        }[self.negatives]
        label_index = None
        if self.exclude == 'class':
            label_index = self.bank.label_index
        return draw(sample_idx, self.bank.num_samples, self.num_negatives,
                    label_index)

    def _estimate_log_z(self, sides, pos_idx: Tensor,
                        negatives: Negatives) -> Tensor:
        """Partition constants of the first batch over all ranks, ``(2,)``."""
        local = torch.stack([
            log_partition(anchor, rows, pos_idx, negatives, self.temperature)
            for anchor, rows in sides
        ])
        size = local.new_tensor([float(pos_idx.numel())])
        ranks = torch.stack(all_gather(torch.cat([local, size])))
        weight = ranks[:, 2:].log()
        mean = (ranks[:, :2] + weight).logsumexp(0) - weight.logsumexp(0)
        return mean + math.log(self.bank.num_samples)

    def _check(self, s_feats: Tensor, t_feats: Tensor, sample_idx: Tensor,
               labels: Optional[Tensor],
               contrast_idx: Optional[Tensor]) -> None:
        """Say what is wrong with the input; no read-back from a GPU."""
        if self.bank.num_samples == 0:
            raise RuntimeError(
                'CRDLoss has a memory bank without rows: MemoryBankHook is '
                "missing; add dict(type='crd_plugin.MemoryBankHook') to "
                'custom_hooks, or give num_samples.')
        batch = sample_idx.numel()
        for name, feats in (('s_feats', s_feats), ('t_feats', t_feats)):
            if feats.shape != (batch, self.embed_dim):
                raise ValueError(
                    f'{name} has shape {tuple(feats.shape)}, expected '
                    f'({batch}, {self.embed_dim}): one embedding of width '
                    'embed_dim a sample; put a crd_plugin.EmbeddingConnector '
                    f'with embed_dim={self.embed_dim} in front of it.')
        if sample_idx.dtype != torch.int64 or sample_idx.dim() != 1:
            raise ValueError(
                f'sample_idx is {sample_idx.dtype} of shape '
                f'{tuple(sample_idx.shape)}, expected int64 of shape (B,); '
                'record it with crd_plugin.SampleField.')
        if contrast_idx is not None and (contrast_idx.dim() != 2
                                         or contrast_idx.size(0) != batch
                                         or contrast_idx.size(1) < 2):
            raise ValueError(
                f'contrast_idx has shape {tuple(contrast_idx.shape)}, '
                f'expected ({batch}, 1 + K) with the positive first.')
        if sample_idx.device.type == 'cpu':
            self._check_values(s_feats, t_feats, sample_idx, labels,
                               contrast_idx)

    @torch.no_grad()
    def _check_values(self, s_feats: Tensor, t_feats: Tensor,
                      sample_idx: Tensor, labels: Optional[Tensor],
                      contrast_idx: Optional[Tensor]) -> None:
        """Checks that look at numbers, for tensors on the host."""
        for name, ids in (('sample_idx', sample_idx), ('contrast_idx',
                                                       contrast_idx)):
            if ids is not None and ids.numel():
                check_range(name, int(ids.min()), int(ids.max()),
                            self.bank.num_samples)
        if labels is not None and self.bank.labels.numel():
            check_labels(labels, self.bank.labels[sample_idx], sample_idx)
        for name, side, feats in (('s_feats', 'student', s_feats),
                                  ('t_feats', 'teacher', t_feats)):
            norm = feats.detach().float().norm(dim=1)
            check_embeddings(name, side, norm)


def check_range(name: str, smallest: int, largest: int,
                num_rows: int) -> None:
    """Raise a ValueError for ids that the bank has no row for."""
    if smallest < 0 or largest >= num_rows:
        wrong = smallest if smallest < 0 else largest
        raise ValueError(
            f'{name} {wrong} is outside the memory bank of {num_rows} rows; '
            'the bank must be sized from the training set: leave num_samples '
            'out, and wrap that data set in crd_plugin.SampleIndexDataset.')


def check_labels(given: Tensor, expected: Tensor, sample_idx: Tensor) -> None:
    """Raise a ValueError for samples that are not those of the bank."""
    wrong = (given != expected).nonzero()
    if wrong.numel():
        at = int(wrong[0])
        raise ValueError(
            f'labels: sample {int(sample_idx[at])} has label '
            f'{int(given[at])}, the memory bank\'s row has '
            f'{int(expected[at])}; the batch comes from another data set, or '
            'another order of it, than the bank was sized from.')


def check_embeddings(name: str, side: str, norm: Tensor) -> None:
    """Raise a ValueError for embeddings that are not of unit norm.

    Args:
        name (str): Argument, for the message.
        side (str): ``'student'`` or ``'teacher'``.
        norm (Tensor): L2 norm of each embedding, ``(B,)``.
    """
    if not torch.isfinite(norm).all():
        bad = int((~torch.isfinite(norm)).sum())
        raise ValueError(
            f'{name}: {bad} of {norm.numel()} {side} embeddings are NaN or '
            f'infinite; the {side} or its connector has diverged: lower the '
            'learning rate, clip gradients, or check its checkpoint.')
    # A zero vector stays zero under F.normalize; it is no error of scale.
    off = ((norm - 1).abs() > _NORM_TOLERANCE) & (norm > 0)
    if off.any():
        raise ValueError(
            f'{name}: a {side} embedding has L2 norm '
            f'{float(norm[off][0]):.4g}, expected 1; put a '
            'crd_plugin.EmbeddingConnector, which normalises, in front of '
            'the loss.')
