"""Losses that compare samples with each other."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crd_plugin.ops import full_precision, no_autocast, pair_vectors, unit_vectors
from crd_plugin.registry import MODELS

from .._numbers import count, not_negative, positive
from ..key_queue import KeyQueue
from ._common import FeatureLoss, SizedLoss


@MODELS.register_module()
class CCLoss(SizedLoss):
    """Correlation congruence, as RepDistiller trains it.

    ``L = mean over i of <d_i, d_{i+1}>``, d the absolute gap of both embeddings of a sample. Both
    linear heads are trained. The loss depends on the order of the batch.

    Source: Peng et al., arXiv:1904.01802; numbers of HobbitLong/RepDistiller
    ``distiller_zoo/CC.py``: products of neighbouring samples' gaps, not the paper's kernel
    correlation.

    Args:
        s_channels, t_channels (int, optional): Widths of the vectors. Defaults to None: inferred by
            ``FrozenTeacherDistill``.
        embed_dim (int): Width D of the embeddings. Defaults to 128.
        loss_weight (float): Factor of the loss. Defaults to 1.0 (published: 0.02).

    Shape:
        One vector per sample, ``(B, s_channels)`` and ``(B, t_channels)``, B at least 2; maps are
        flattened.

    Raises:
        ValueError, TypeError: If an argument is out of range or not a number.
    """

    pairing = staticmethod(pair_vectors)
    min_samples = 2

    def __init__(
        self,
        s_channels: int | None = None,
        t_channels: int | None = None,
        embed_dim: int = 128,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(loss_weight)
        self.embed_dim = count('embed_dim', embed_dim)
        self.set_sizes(s_channels=s_channels, t_channels=t_channels)

    def compare_layer(self, student: Tensor, teacher: Tensor) -> Tensor:
        """As for :class:`FeatureLoss`."""
        gap = (full_precision(self.embed_s(student)) - full_precision(self.embed_t(teacher))).abs()
        return (gap[:-1] * gap[1:]).sum(1).mean()

    def build(self, s_size: tuple[int], t_size: tuple[int]) -> None:
        """Make the two heads."""
        self.embed_s = nn.Linear(*s_size, self.embed_dim)
        self.embed_t = nn.Linear(*t_size, self.embed_dim)


# The value of HobbitLong/RepDistiller; it changes the numbers in float32.
_EPS = 1e-7


@MODELS.register_module()
class PKTLoss(FeatureLoss):
    """Probabilistic knowledge transfer: which samples are neighbours.

    ``L = mean over i, j of p_t log ((p_t + eps) / (p_s + eps))``, p the rows of ``1 + cos(x_i,
    x_j)`` divided by their sum.

    Source: Passalis and Tefas, ECCV 2018, arXiv:1803.10837, section 3; numbers of
    HobbitLong/RepDistiller ``distiller_zoo/PKT.py``, except that a zero vector has a finite
    gradient instead of NaN.

    Args:
        loss_weight (float): Factor of the loss. Defaults to 1.0 (published: 30000).

    Shape:
        One vector per sample, ``(B, D_s)`` and ``(B, D_t)``; maps are flattened.
    """

    pairing = staticmethod(pair_vectors)
    min_samples = 2

    def compare_layer(self, student: Tensor, teacher: Tensor) -> Tensor:
        """As for :class:`FeatureLoss`."""
        p_s, p_t = _neighbours(student), _neighbours(teacher)
        return (p_t * ((p_t + _EPS) / (p_s + _EPS)).log()).mean()


def _neighbours(x: Tensor) -> Tensor:
    """Turn cosine similarities into probabilities, row by row, ``(B, B)``."""
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    # A zero vector is not divided, so that its gradient is of the size of the others'.
    unit = x / (norm + _EPS).masked_fill(norm == 0, 1)
    similarity = (unit @ unit.mT + 1) / 2
    return similarity / similarity.sum(1, keepdim=True)


@MODELS.register_module()
class RKDLoss(FeatureLoss):
    """Relational distillation: distances and angles between samples.

    ``L = w_d mean l(D_s, D_t) + w_a mean l(A_s, A_t)`` with l the smooth L1 loss, D the Euclidean
    distances divided by their mean, and A the cosines of the angles at sample i between j and k.

    Source: Park et al., arXiv:1904.05068, section 3.2; numbers of HobbitLong/RepDistiller
    ``distiller_zoo/RKD.py``, except that a sample that a batch holds twice has a gradient of the
    size of the others'.

    Args:
        distance_weight (float): Factor w_d. Defaults to 25.0.
        angle_weight (float): Factor w_a. Defaults to 50.0.
        loss_weight (float): Factor of the sum. Defaults to 1.0, as published.

    Shape:
        One vector per sample, ``(B, D_s)`` and ``(B, D_t)``, B at least 2 (of two samples, the loss
        is always 0); maps are flattened.

    Raises:
        ValueError, TypeError: If a weight is out of range or not a number, or both parts have 0.
    """

    pairing = staticmethod(pair_vectors)
    min_samples = 2

    def __init__(
        self, distance_weight: float = 25.0, angle_weight: float = 50.0, loss_weight: float = 1.0
    ) -> None:
        super().__init__(loss_weight)
        self.distance_weight = not_negative('distance_weight', distance_weight)
        self.angle_weight = not_negative('angle_weight', angle_weight)
        if distance_weight == angle_weight == 0:
            raise ValueError(
                'distance_weight and angle_weight are both 0, so nothing is left of the loss; '
                'expected at least one of them (published: 25 and 50).'
            )

    def compare_layer(self, student: Tensor, teacher: Tensor) -> Tensor:
        """As for :class:`FeatureLoss`; a part of weight 0 is left out."""
        parts = ((self.distance_weight, _distances), (self.angle_weight, _angles))
        losses = [
            weight * F.smooth_l1_loss(relation(student), relation(teacher))
            for weight, relation in parts
            if weight
        ]
        return torch.stack(losses).sum()


def _distances(x: Tensor) -> Tensor:
    """Compute the distances of all pairs divided by their mean, ``(B, B)``."""
    squares = x.square().sum(1)
    distance = (squares[:, None] + squares - 2 * x @ x.mT).clamp(min=1e-12).sqrt()
    batch = len(x)
    distance = distance.masked_fill(torch.eye(batch, dtype=torch.bool, device=x.device), 0)
    # The clamp leaves all but the diagonal positive, so this is the mean of the positive ones.
    return distance * (batch * (batch - 1) / distance.sum())


def _angles(x: Tensor) -> Tensor:
    """Compute the cosine of the angle at sample i between j and k, ``(B, B, B)``."""
    unit = unit_vectors(x - x[:, None], dim=2)
    return unit @ unit.mT


@MODELS.register_module()
class SPLoss(FeatureLoss):
    """Similarity-preserving distillation: which samples resemble each other.

    ``L = sum over layers of mean (G_s - G_t)^2``, ``G = F F^T`` of the flattened maps, each row
    divided by its norm.

    Source: Tung and Mori, arXiv:1907.09682, section 3; numbers of HobbitLong/RepDistiller
    ``distiller_zoo/SP.py``, except that the gradient of a sample whose map is zero is not 1e12
    times too large.

    Args:
        loss_weight (float): Factor of the loss. Defaults to 1.0 (published: 3000).

    Shape:
        Maps ``(B, C, H, W)`` of each layer; channels, heights and widths may differ.
    """

    min_samples = 2

    def compare_layer(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss of one layer."""
        return (_similarity(student) - _similarity(teacher)).square().mean()


def _similarity(feature_map: Tensor) -> Tensor:
    """Compute the row-normalised products of all pairs of samples, ``(B, B)``."""
    flat = feature_map.flatten(1)
    return unit_vectors(flat @ flat.mT, dim=1)


@MODELS.register_module()
class RRDLoss(SizedLoss):
    """Relational representation distillation: which of many samples is near.

    ``L = mean over b of KL(softmax_k(t_b . q_k / tau_t) || softmax_k(s_b . q_k / tau_s))`` with
    unit embeddings s, t and rows q of a queue of the teacher's latest embeddings. In training mode
    the batch of all ranks enters the queue first, so that each sample is compared with itself too.
    The student's linear layer is trained; the teacher's is random and constant. Neither ids, labels
    nor a hook are needed.

    Source: Giakoumoglou and Stathaki, arXiv:2407.12073; behaviour matched: giakoumoglou/distillers
    ``cifar/distillers/RRD.py`` @ a2ee80b, with the temperatures of its training scripts. Differs:
    the entropy of the teacher's distribution, a constant, is subtracted; the first rows of the
    queue have unit norm; a batch may be of any size.

    Args:
        s_channels, t_channels (int, optional): Widths of the vectors. Defaults to None: inferred by
            ``FrozenTeacherDistill``.
        embed_dim (int): Width D of the embeddings. Defaults to 128.
        queue_size (int): Rows K of the queue. Defaults to 16384.
        s_temperature, t_temperature (float): tau_s and tau_t. Defaults to 0.1 and 0.02.
        loss_weight (float): Factor of the loss. Defaults to 1.0.

    Shape:
        One vector per sample, ``(B, s_channels)`` and ``(B, t_channels)``; maps are flattened.

    State in checkpoints: both layers; ``queue.keys`` ``(K, D)`` and ``queue.pointer``.

    Raises:
        ValueError, TypeError: If an argument is out of range or not a number.
    """

    pairing = staticmethod(pair_vectors)

    def __init__(
        self,
        s_channels: int | None = None,
        t_channels: int | None = None,
        embed_dim: int = 128,
        queue_size: int = 16384,
        s_temperature: float = 0.1,
        t_temperature: float = 0.02,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(loss_weight)
        self.embed_dim = count('embed_dim', embed_dim, ' (published: 128)')
        count('queue_size', queue_size, ' (published: 16384)')
        self.s_temperature = positive('s_temperature', s_temperature, 0.1)
        self.t_temperature = positive('t_temperature', t_temperature, 0.02)
        self.queue = KeyQueue(embed_dim, queue_size)
        self.set_sizes(s_channels=s_channels, t_channels=t_channels)

    def compare_layer(self, student: Tensor, teacher: Tensor) -> Tensor:
        """As for :class:`FeatureLoss`; in training mode, renew the queue first."""
        with no_autocast(student):
            student = unit_vectors(self.embed_s(student), dim=1)
            teacher = unit_vectors(self.embed_t(teacher), dim=1)
            if self.training:
                self.queue.stage(teacher)
                self.queue.commit()
            # A copy: the next batch changes the queue, maybe before the backward pass.
            rows = self.queue.keys.to(student.dtype, copy=True)
            found = (student @ rows.mT / self.s_temperature).log_softmax(1)
            target = (teacher @ rows.mT / self.t_temperature).log_softmax(1)
            return F.kl_div(found, target, reduction='batchmean', log_target=True)

    def build(self, s_size: tuple[int], t_size: tuple[int]) -> None:
        """Make the two layers."""
        self.embed_s = nn.Linear(*s_size, self.embed_dim)
        self.embed_t = nn.Linear(*t_size, self.embed_dim).requires_grad_(False)
