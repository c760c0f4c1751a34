"""Correlation congruence."""

from torch import Tensor, nn

from crd_plugin.ops import full_precision, pair_vectors
from crd_plugin.registry import MODELS

from .._numbers import count
from ._common import SizedLoss


@MODELS.register_module()
class CCLoss(SizedLoss):
    """Correlation congruence, as RepDistiller trains it.

    ``L = mean over i of <d_i, d_{i+1}>``, d the absolute gap of both embeddings of a sample. Both
    linear heads are trained. The loss depends on the order of the batch.

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
        """Compute the loss, without its factor."""
        gap = (full_precision(self.embed_s(student)) - full_precision(self.embed_t(teacher))).abs()
        return (gap[:-1] * gap[1:]).sum(1).mean()

    def build(self, s_size: tuple[int], t_size: tuple[int]) -> None:
        """Make the two heads."""
        self.embed_s = nn.Linear(*s_size, self.embed_dim)
        self.embed_t = nn.Linear(*t_size, self.embed_dim)
