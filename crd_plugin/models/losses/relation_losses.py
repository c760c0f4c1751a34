"""Losses that compare relations between the samples of a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crd_plugin.ops import full_precision, pair_vectors, unit_vectors
from crd_plugin.ops.features import Features
from crd_plugin.registry import MODELS

from ._common import FeatureLoss, Pairs, SizedLoss, count, finite, widths


@MODELS.register_module()
class CCLoss(SizedLoss):
    r"""Correlation congruence, as RepDistiller trains it.

    .. math::
        L = \frac{1}{B - 1} \sum_{i=1}^{B-1} \sum_k d_{ik} d_{i+1,k}, \quad
        d = |W_s x_s + b_s - W_t x_t - b_t|

    Both linear heads are trained. The loss depends on the order of the batch.

    Source: Peng et al., arXiv:1904.01802; numbers of HobbitLong/RepDistiller
    ``distiller_zoo/CC.py``: products of neighbouring samples' gaps, not the paper's kernel
    correlation.

    Args:
        s_channels (int, optional): Width of the student's vector. Defaults to None: inferred by
            ``FrozenTeacherDistill``.
        t_channels (int, optional): Width of the teacher's vector. Defaults to None: inferred.
        embed_dim (int): Width D of the embeddings. Defaults to 128.
        loss_weight (float): Factor of the loss. Defaults to 1.0 (published: 0.02).

    Shape:
        One vector per sample, ``(B, s_channels)`` and ``(B, t_channels)``, B at least 2; maps are
        flattened.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If ``loss_weight`` is not a number.
    """

    def __init__(
        self,
        s_channels: int | None = None,
        t_channels: int | None = None,
        embed_dim: int = 128,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(loss_weight)
        self.embed_dim = count('embed_dim', embed_dim)
        self.set_sizes(
            s_channels=widths('s_channels', s_channels, single=True),
            t_channels=widths('t_channels', t_channels, single=True),
        )

    def pair(self, s_feats: Features, t_feats: Features) -> Pairs:
        """Return the flattened features."""
        return [pair_vectors(s_feats, t_feats, min_batch=2)]

    def compare_layer(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss, without its factor."""
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
    r"""Probabilistic knowledge transfer: which samples are neighbours.

    .. math::
        L = \frac{1}{B^2} \sum_{ij} p^t_{ij}
            \log \frac{p^t_{ij} + \epsilon}{p^s_{ij} + \epsilon}, \quad
        p_{ij} = \frac{1 + \cos(x_i, x_j)}{\sum_k (1 + \cos(x_i, x_k))}

    The mean over all pairs, diagonal included, is small; hence the large published weight. The loss
    of a batch of one sample is zero.

    Source: Passalis and Tefas, ECCV 2018, arXiv:1803.10837, section 3; numbers of
    HobbitLong/RepDistiller ``distiller_zoo/PKT.py``, except that a zero vector has a finite
    gradient instead of NaN.

    Args:
        loss_weight (float): Factor of the loss. Defaults to 1.0 (published: 30000).

    Shape:
        One vector per sample, ``(B, D_s)`` and ``(B, D_t)``; maps are flattened.
    """

    def pair(self, s_feats: Features, t_feats: Features) -> Pairs:
        """Return the flattened features."""
        return [pair_vectors(s_feats, t_feats)]

    def compare_layer(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss, without its factor."""
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
    r"""Relational distillation: distances and angles between samples.

    .. math::
        L = w_d \operatorname{mean}_{ij} \ell(D^s_{ij}, D^t_{ij})
          + w_a \operatorname{mean}_{ijk} \ell(A^s_{ijk}, A^t_{ijk})

    with l the smooth L1 loss, D the Euclidean distances divided by their mean, and A the cosine of
    the angle at sample i between samples j and k.

    Source: Park et al., arXiv:1904.05068, section 3.2; numbers of HobbitLong/RepDistiller
    ``distiller_zoo/RKD.py``. In float32 it is the sum of ``mmrazor.DistanceWiseRKD`` and
    ``mmrazor.AngleWiseRKD``, both with ``with_l2_norm=False``. Those overflow under autocast to
    float16, return NaN for a batch of one sample, and give a sample that a batch holds twice a
    gradient 1e12 times too large; here the loss is computed in float32, one sample is an error, and
    the gradient is of the size of the others'.

    Args:
        distance_weight (float): Factor w_d. Defaults to 25.0.
        angle_weight (float): Factor w_a. Defaults to 50.0.
        loss_weight (float): Factor of the sum. Defaults to 1.0, as published.

    Shape:
        One vector per sample, ``(B, D_s)`` and ``(B, D_t)``, B at least 2 (of two samples, the loss
        is always 0); maps are flattened.

    Raises:
        ValueError: If a weight is not finite, or both parts have weight 0.
        TypeError: If a weight is not a number.
    """

    def __init__(
        self, distance_weight: float = 25.0, angle_weight: float = 50.0, loss_weight: float = 1.0
    ) -> None:
        super().__init__(loss_weight)
        self.distance_weight = finite('distance_weight', distance_weight)
        self.angle_weight = finite('angle_weight', angle_weight)
        if distance_weight == angle_weight == 0:
            raise ValueError(
                'distance_weight and angle_weight are both 0, so nothing is left of the loss; '
                'expected at least one of them (published: 25 and 50).'
            )

    def pair(self, s_feats: Features, t_feats: Features) -> Pairs:
        """Return the flattened features."""
        return [pair_vectors(s_feats, t_feats, min_batch=2)]

    def compare_layer(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss, without its factor; a part of weight 0 is left out."""
        losses = []
        for weight, relation in (
            (self.distance_weight, _distances),
            (self.angle_weight, _angles),
        ):
            if weight:
                losses.append(weight * F.smooth_l1_loss(relation(student), relation(teacher)))
        return torch.stack(losses).sum()


def _distances(x: Tensor) -> Tensor:
    """Compute the distances of all pairs divided by their mean, ``(B, B)``."""
    squares = x.square().sum(1)
    distance = squares[:, None] + squares - 2 * x @ x.mT
    distance = distance.clamp(min=1e-12).sqrt()
    batch = x.size(0)
    own = torch.eye(batch, dtype=torch.bool, device=x.device)
    distance = distance.masked_fill(own, 0)
    # The clamp leaves all but the diagonal positive, so this is the mean of the positive ones.
    return distance * (batch * (batch - 1) / distance.sum())


def _angles(x: Tensor) -> Tensor:
    """Compute the cosine of the angle at sample i between j and k, ``(B, B, B)``."""
    unit = unit_vectors(x - x[:, None], dim=2)
    return unit @ unit.mT


@MODELS.register_module()
class SPLoss(FeatureLoss):
    r"""Similarity-preserving distillation: which samples resemble each other.

    .. math::
        L = \sum_l \frac{1}{B^2} \lVert \hat G_s^l - \hat G_t^l \rVert_F^2,
        \quad G = F F^\top

    with F the flattened maps of the batch and each row of G divided by its norm. The loss of a
    batch of one sample is zero.

    Source: Tung and Mori, arXiv:1907.09682, section 3; numbers of HobbitLong/RepDistiller
    ``distiller_zoo/SP.py``, except that the gradient of a sample whose map is zero is not 1e12
    times too large.

    Args:
        loss_weight (float): Factor of the loss. Defaults to 1.0 (published: 3000).

    Shape:
        Maps ``(B, C, H, W)`` of each layer; channels, heights and widths may differ.
    """

    def compare_layer(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss of one layer."""
        return (_similarity(student) - _similarity(teacher)).square().mean()


def _similarity(feature_map: Tensor) -> Tensor:
    """Compute the row-normalised products of all pairs of samples, ``(B, B)``."""
    flat = feature_map.flatten(1)
    return unit_vectors(flat @ flat.mT, dim=1)
