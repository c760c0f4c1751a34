"""The objective of contrastive representation distillation."""

import inspect
import math
from typing import Any

import torch
from mmengine.dist import all_gather
from torch import Tensor, nn

from crd_plugin.ops import (
    ContrastResult,
    Negatives,
    draw_negatives,
    full_precision,
    given_negatives,
    info_nce,
    nce,
    no_autocast,
    partition_sums,
)
from crd_plugin.ops.contrast import KnownGradient
from crd_plugin.registry import MODELS

from .._numbers import count, not_negative, one_of, positive
from ..memory_bank import MemoryBank, PendingUpdate
from ..sharded_bank import ShardedBank
from .captured_step import CapturedStep
from .crd_checks import (
    check_column,
    check_fast_paths,
    check_feats,
    check_labels,
    check_positives,
    check_range,
)

# Negatives per sample, and the size of the training set, of CIFAR-100 in the paper.
_PUBLISHED = (16384, 50000)


@MODELS.register_module()
class CRDLoss(nn.Module):
    r"""Contrast student and teacher embeddings with a memory bank (CRD).

    Student embeddings are anchors against the teacher's rows of a memory bank and teacher
    embeddings against the student's; both losses are summed:

    .. math::
        L = -\frac{1}{B} \sum_i \Big[ \log h_{i,pos}
            + \sum_{k=1}^{K} \log (1 - h_{ik}) \Big], \quad
        h = \frac{P}{P + K/N}, \quad P = \frac{e^{\langle g, v\rangle/\tau}}{Z}

    ``MemoryBankHook`` sizes the bank and commits its updates. With ``negatives='batch'`` this is
    :class:`InBatchCRDLoss`, which has no bank.

    Source: Tian et al., arXiv:1910.10699, eq. 17-18; numbers of HobbitLong/RepDistiller ``crd/``.

    Args:
        embed_dim (int): Width D of the embeddings. Defaults to 128.
        num_negatives (int, optional): K. Defaults to None: 16384, as published for the 50,000
            images of CIFAR-100, or the same share of a smaller training set.
        temperature (float): tau. Defaults to 0.07.
        momentum (float, optional): Weight of the OLD row of the bank. Defaults to None: 0.5.
        objective (str): ``'nce'`` or ``'infonce'`` (the paper's ablation).
        negatives (str): ``'sampled'``: about K rows for each anchor, weighted to count as K;
            ``'shared'``: one draw of K rows for the batch; ``'all'``: every row weighted K / pool,
            which for ``'nce'`` is the expectation of both; ``'batch'``: see
            :class:`InBatchCRDLoss`.
        exclude (str): ``'class'``: negatives are of another class; ``'instance'``: any other row,
            for data without labels.
        num_samples (int, optional): Rows N. Defaults to None: set by ``MemoryBankHook``.
        loss_weight (float): Factor of the loss. Defaults to 1.0.
        sharded (bool): Split the rows of the bank over the ranks. The same loss with
            ``negatives='all'``, for ``'nce'`` the same expectation otherwise. Defaults to False.
        bank_dtype (str, optional): Type of the rows, ``'float16'`` or ``'bfloat16'``; all maths is
            in float32. Defaults to None: ``'float32'``.
        kernel (str): ``'torch'``, or ``'triton'`` for one Triton kernel per direction; on a GPU,
            with ``objective='nce'``. Defaults to ``'torch'``.
        cuda_graph (bool): Replay the objective and the update of the bank as one CUDA graph where a
            batch is as long as the one before; on a GPU, in one process. The forward pass then
            writes the rows. Defaults to False.

    Raises:
        ValueError, TypeError: If an argument is out of range, not one of the allowed values or not
            a number.
    """

    bank: MemoryBank
    _has_bank = True

    def __new__(cls, *args: Any, **kwargs: Any) -> 'CRDLoss':
        """Choose the class without a bank for the config word 'batch'."""
        if cls is CRDLoss and kwargs.get('negatives') == 'batch':
            from .in_batch_crd_loss import InBatchCRDLoss

            return super().__new__(InBatchCRDLoss)
        return super().__new__(cls)

    def __init__(
        self,
        embed_dim: int = 128,
        num_negatives: int | None = None,
        temperature: float = 0.07,
        momentum: float | None = None,
        objective: str = 'nce',
        negatives: str = 'sampled',
        exclude: str = 'class',
        num_samples: int | None = None,
        loss_weight: float = 1.0,
        sharded: bool = False,
        bank_dtype: str | None = None,
        kernel: str = 'torch',
        cuda_graph: bool = False,
    ) -> None:
        super().__init__()
        if num_negatives is not None:
            count('num_negatives', num_negatives, ' (published: 16384)')
        self.objective = one_of('objective', objective, ('nce', 'infonce'))
        self.negatives = one_of('negatives', negatives, ('sampled', 'shared', 'all', 'batch'))
        self.exclude = one_of('exclude', exclude, ('class', 'instance'))
        self.kernel = one_of('kernel', kernel, ('torch', 'triton'))
        one_of('bank_dtype', bank_dtype, (None, 'float32', 'float16', 'bfloat16'))
        if negatives == 'batch' and self._has_bank:
            raise ValueError(
                f"negatives='batch' is InBatchCRDLoss, which {type(self).__name__} is not; give it "
                'to crd_plugin.CRDLoss by keyword, or derive your class from '
                'crd_plugin.InBatchCRDLoss.'
            )
        if kernel == 'triton' and objective == 'infonce':
            raise ValueError("kernel='triton' has the objective 'nce' only; leave kernel out.")
        if cuda_graph and sharded:
            raise ValueError(
                'cuda_graph=True works in one process, in which sharded=True splits nothing; leave '
                'one of them out.'
            )
        self.embed_dim = count('embed_dim', embed_dim, ' (published: 128)')
        self.temperature = positive('temperature', temperature, 0.07)
        self.loss_weight = not_negative('loss_weight', loss_weight)
        self.cuda_graph = cuda_graph
        self._num_negatives = num_negatives
        if self._has_bank:
            momentum = 0.5 if momentum is None else momentum
            dtype = getattr(torch, bank_dtype or 'float32')
            kind = ShardedBank if sharded else MemoryBank
            self.bank = kind(embed_dim, momentum, num_samples, dtype)
        # K and the losses of the positives, from which mi_bound is computed.
        self._critic: tuple[int, Tensor] | None = None
        self._captured = CapturedStep()

    @property
    def num_negatives(self) -> int:
        """int: K; without one in the config it follows from the size of the bank."""
        if self._num_negatives is not None:
            return self._num_negatives
        most, of = _PUBLISHED
        return min(most, max(1, self.bank.num_samples * most // of))

    @num_negatives.setter
    def num_negatives(self, value: int | None) -> None:
        self._num_negatives = value

    @property
    def mi_bound(self) -> Tensor | None:
        """Tensor: Lower bound of the mutual information, scalar in nats; None before a batch.

        ``I(T; S) >= log K + E[log h]``, section 3.1 of the paper; the mean of both directions.
        """
        if self._critic is None:
            return None
        num_negatives, positive_loss = self._critic
        return math.log(num_negatives) - positive_loss.mean()

    @property
    def log_k(self) -> float | None:
        """float: log K of the last batch, which ``mi_bound`` cannot exceed; None before one."""
        return None if self._critic is None else math.log(self._critic[0])

    def forward(
        self,
        s_feats: Tensor,
        t_feats: Tensor,
        sample_idx: Tensor | None = None,
        labels: Tensor | None = None,
        contrast_idx: Tensor | None = None,
        negatives: Negatives | None = None,
    ) -> Tensor:
        """Compute the loss of one batch; in training mode, stage an update of the bank.

        Args:
            s_feats (Tensor): Student embeddings, ``(B, D)``, unit norm.
            t_feats (Tensor): Teacher embeddings, ``(B, D)``, unit norm.
            sample_idx (Tensor): Position of each sample in the training set, ``(B,)`` int64.
            labels (Tensor, optional): Class of each sample, ``(B,)`` int64; with
                ``exclude='class'`` compared with the bank's, on a CPU.
            contrast_idx (Tensor, optional): Rows to score, ``(B, 1 + K)`` int64, in place of drawn
                ones; the first column is the positive, the sample or one of its class.
            negatives (Negatives, optional): What :meth:`draw` of a loss with a bank of the same
                samples returned for this batch. Defaults to None: drawn here.

        Returns:
            Tensor: Scalar float32 (float64 for float64 embeddings), times ``loss_weight``.

        Raises:
            ValueError: If shapes, ids or values are not as described.
            RuntimeError: If the bank has no size, or its last update was never committed.
        """
        sample_idx = self._check_ids(sample_idx, contrast_idx)
        check_feats(s_feats, t_feats, sample_idx.numel(), self.embed_dim)
        if labels is not None and self.exclude == 'class' and self.bank.labels.numel():
            check_column('labels', labels, sample_idx.numel())
            if sample_idx.device.type == 'cpu':
                check_labels(labels, self.bank.labels[sample_idx], sample_idx)
        self.check_device()
        with no_autocast(s_feats):
            # Autocast would refuse to stack the two half types.
            anchors = torch.stack([s_feats, t_feats])
        if self.cuda_graph and self.training:
            if negatives is not None or contrast_idx is not None:
                raise ValueError(
                    'cuda_graph=True draws the negatives in its graph, but negatives or '
                    'contrast_idx were given; leave cuda_graph out.'
                )
            if self.bank.has_z or self.objective == 'infonce':
                return self.loss_weight * self._replay(anchors, sample_idx)
        if negatives is None:
            negatives = self.draw(sample_idx, contrast_idx, s_feats.dtype)
        result, new_log_z = self._contrast(anchors, negatives)
        if self.training:
            self.bank.stage(sample_idx, s_feats, t_feats, new_log_z)
        self._critic = negatives.num_negatives, result.positive_loss
        return self.loss_weight * result.loss.sum()

    def check_device(self) -> None:
        """Raise a ValueError if ``kernel`` or ``cuda_graph`` cannot work on the bank's device."""
        if self.kernel != 'torch' or self.cuda_graph:
            check_fast_paths(self.kernel, self.cuda_graph, self.bank.labels.device)

    def _replay(self, anchors: Tensor, sample_idx: Tensor) -> Tensor:
        """Run :meth:`_whole_step`, captured where that pays."""
        bank = self.bank
        bank.stage(sample_idx, anchors[0], anchors[1], written=True)
        words = self.objective, self.negatives, self.exclude, self.kernel
        numbers = self.temperature, self.num_negatives, bank.momentum
        # Tensors that a graph reads or writes where they were when it was captured.
        fixed = (*bank.buffers(), bank.keys(self.exclude).key)
        settings = (*words, *numbers, *(tensor.data_ptr() for tensor in fixed))
        inputs = anchors.detach(), sample_idx
        loss, gradient, positive_loss = self._captured(self._whole_step, settings, *inputs)
        self._critic = self.num_negatives, positive_loss
        return KnownGradient.apply(anchors, loss, gradient)

    def _whole_step(self, anchors: Tensor, sample_idx: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Draw, contrast and write the rows; return loss, gradient and losses of the positives."""
        leaf = anchors.detach().requires_grad_()
        with torch.enable_grad(), no_autocast(leaf):
            result, _ = self._contrast(leaf, self.draw(sample_idx))
            loss = result.loss.sum()
            (gradient,) = torch.autograd.grad(loss, leaf)
        self.bank.write(PendingUpdate(sample_idx, anchors[0], anchors[1]))
        return loss.detach(), gradient, result.positive_loss

    def draw(
        self,
        sample_idx: Tensor,
        contrast_idx: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Negatives:
        """Draw the negatives of a batch, for one loss or several; with shards a collective."""
        self._check_ids(sample_idx, contrast_idx)
        bank = self.bank
        shards = bank.shards(sample_idx)
        if contrast_idx is not None:
            dtype = torch.float64 if dtype == torch.float64 else torch.float32
            given = shards.gather(contrast_idx[None])[0]
            return given_negatives(given, bank.num_samples, dtype, shards)
        ids, keys = shards.gather(sample_idx[None])[0], bank.keys(self.exclude)
        return draw_negatives(self.negatives, ids, keys, self.num_negatives, shards)

    def _contrast(
        self, anchors: Tensor, negatives: Negatives
    ) -> tuple[ContrastResult, Tensor | None]:
        """Both directions ``(2, B, D)``, and the log of Z if it has to be set."""
        bank = self.bank
        banks = (bank.teacher, bank.student)
        if self.objective == 'infonce':
            return info_nce(anchors, banks, negatives, self.temperature), None
        log_z, new_log_z = bank.log_z, None
        if not bank.has_z:
            log_z = new_log_z = self._estimate_log_z(anchors, negatives)
            if bool(log_z.isnan().any()):  # Z waits for a batch with negatives; the bound is 0.
                log_k = anchors.new_full(anchors.shape[:2], math.log(negatives.num_negatives))
                return ContrastResult(0 * full_precision(anchors).sum((1, 2)), log_k), None
        return nce(anchors, banks, negatives, log_z, self.temperature, self.kernel), new_log_z

    def _estimate_log_z(self, anchors: Tensor, negatives: Negatives) -> Tensor:
        """Partition constants of a batch over all ranks, ``(2,)``; NaN if it has no negative."""
        banks = (self.bank.teacher, self.bank.student)
        sums = torch.stack(partition_sums(anchors, banks, negatives, self.temperature))
        log_sums, numbers = torch.stack(all_gather(sums)).unbind(1)
        mean = log_sums.logsumexp(0) - numbers.sum(0).log()
        return mean + math.log(self.bank.num_samples)

    def _check_ids(self, sample_idx: Tensor | None, contrast_idx: Tensor | None) -> Tensor:
        """Check that the bank has rows, and that the ids are rows of it."""
        num_samples = self.bank.num_samples
        if num_samples == 0:
            raise RuntimeError(
                'CRDLoss has a memory bank without rows: MemoryBankHook is missing; add '
                "memory_bank=dict(type='crd_plugin.MemoryBankHook') to default_hooks (in a loop "
                'of your own, call bank.resize(num_samples, labels) before training).'
            )
        if sample_idx is None:
            raise ValueError(
                'sample_idx is None, but the memory bank needs the position of each sample in '
                'the training set; record it with crd_plugin.SampleField, or use '
                "negatives='batch'."
            )
        check_column('sample_idx', sample_idx)
        expected = (sample_idx.numel(), 1 + self.num_negatives)
        if contrast_idx is not None and (
            contrast_idx.dtype != torch.int64 or contrast_idx.shape != expected
        ):
            raise ValueError(
                f'contrast_idx is {contrast_idx.dtype} of shape {tuple(contrast_idx.shape)}, '
                f'expected int64 of shape {expected}: (B, 1 + K) with the positive first; set '
                'num_negatives to the K of the data set that draws them.'
            )
        if sample_idx.device.type != 'cpu':
            return sample_idx  # Looking at numbers would wait for the GPU.
        for name, ids in (('sample_idx', sample_idx), ('contrast_idx', contrast_idx)):
            if ids is not None:
                check_range(name, ids, num_samples)
        if contrast_idx is not None:
            check_positives(contrast_idx, sample_idx, self.bank.labels)
        return sample_idx


# Tools that check the arguments of a config read the signature, which `__new__` would hide.
_PARAMETERS = list(inspect.signature(CRDLoss.__init__).parameters.values())[1:]
CRDLoss.__signature__ = inspect.Signature(_PARAMETERS)  # type: ignore[attr-defined]
