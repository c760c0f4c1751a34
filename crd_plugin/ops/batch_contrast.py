"""Contrastive objectives of a batch against itself, without a bank.

Here the keys are embeddings of the same step, so anchors and keys both carry
gradient and autograd does the rest; a batch is small enough to keep its
scores. Give scores of float32 or float64, outside autocast.
"""

import math
from typing import Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .contrast import _SOFTPLUS_LINEAR, EPS

__all__ = ['batch_info_nce', 'batch_log_total', 'batch_nce', 'batch_weights']


def batch_weights(anchor_key: Tensor, key: Tensor, dtype: torch.dtype) -> Tensor:
    """How often each sample of the batch counts as negative of each anchor.

    Samples of the anchor's own key (its class, its id or its position) are
    left out, what remains is weighted to count as K = B - 1 negatives. An
    anchor whose key all samples share has no negative.

    Args:
        anchor_key (Tensor): Key of each anchor, ``(A,)`` int64.
        key (Tensor): Key of each sample of the batch, ``(B,)`` int64.
        dtype (torch.dtype): Of the result.

    Returns:
        Tensor: ``(A, B)``, 0 where a sample is left out.
    """
    other = (anchor_key[:, None] != key).to(dtype)
    remaining = other.sum(1, keepdim=True).clamp_min_(1)
    return other * ((key.numel() - 1) / remaining)


def batch_nce(
    score: Tensor, positive: Tensor, weight: Tensor, log_mean: Tensor, eps: float = EPS
) -> Tuple[Tensor, Tensor]:
    r"""Noise-contrastive objective of CRD with the batch for a bank.

    That of :func:`crd_plugin.ops.nce` with N = B rows, K = B - 1 negatives and
    :math:`Z = B \cdot` mean exp(score). N cancels out but for ``eps``:
    :math:`h = e^s / (e^s + K \cdot` mean exp(score)).

    Args:
        score (Tensor): Anchors against the batch, ``(A, B)`` float, divided
            by the temperature; B at least 2.
        positive (Tensor): Column of each anchor's positive, ``(A,)`` int64.
        weight (Tensor): From :func:`batch_weights`, ``(A, B)``.
        log_mean (Tensor): Logarithm of Z / N, scalar.
        eps (float): Added to K / N. Defaults to 1e-7, as published.

    Returns:
        tuple[Tensor, Tensor]: Loss of each anchor, ``(A,)``, and the log of
        the critic at its positive, ``(A,)`` without gradient.
    """
    num_rows = score.size(1)
    num_negatives = num_rows - 1
    noise = num_negatives / num_rows
    shift = log_mean + math.log(num_rows) + math.log(noise + eps)
    x = score - shift.to(score.dtype)
    positive_loss = F.softplus(
        -x.gather(1, positive[:, None]).squeeze(1), threshold=_SOFTPLUS_LINEAR
    )
    negative = F.softplus(x, threshold=_SOFTPLUS_LINEAR)
    negative_loss = (negative * weight).sum(1)
    # c / (c + eps), from the numerator of the negative term.
    constant = num_negatives * math.log1p(eps / noise)
    return positive_loss + negative_loss + constant, -positive_loss.detach()


def batch_info_nce(score: Tensor, positive: Tensor, weight: Tensor) -> Tuple[Tensor, Tensor]:
    """Softmax cross-entropy of the positive against the rest of the batch.

    Weights multiply the exponentials.

    Args:
        score (Tensor): Anchors against the batch, ``(A, B)`` float, divided
            by the temperature.
        positive (Tensor): Column of each anchor's positive, ``(A,)`` int64.
        weight (Tensor): From :func:`batch_weights`, ``(A, B)``.

    Returns:
        tuple[Tensor, Tensor]: Loss of each anchor, ``(A,)``, and the
        log-probability of its positive, ``(A,)`` without gradient.
    """
    x, total = _positive_and_total(score, positive, weight)
    loss = total - x
    return loss, -loss.detach()


@torch.no_grad()
def batch_log_total(score: Tensor, positive: Tensor, weight: Tensor) -> Tensor:
    """Log of the sum of exp(score) over positives and weighted negatives.

    Minus ``log(A * B)`` it is the log of Z / N, as
    :func:`crd_plugin.ops.log_partition` has it for a bank; as a sum, that of
    several ranks can be added.

    Args:
        score (Tensor): Anchors against the batch, ``(A, B)`` float.
        positive (Tensor): Column of each anchor's positive, ``(A,)`` int64.
        weight (Tensor): From :func:`batch_weights`, ``(A, B)``.

    Returns:
        Tensor: Scalar float64.
    """
    _, total = _positive_and_total(score, positive, weight)
    return total.double().logsumexp(0)


def _positive_and_total(score: Tensor, positive: Tensor, weight: Tensor) -> Tuple[Tensor, Tensor]:
    """Score of the positive and log of the sum of it and the negatives."""
    column = positive[:, None]
    total = torch.logsumexp(score + weight.scatter(1, column, 1).log(), 1)
    return score.gather(1, column).squeeze(1), total
