"""Correlation congruence."""

from typing import Optional, Tuple

from torch import Tensor, nn

from crd_plugin.ops import full_precision, no_autocast, pair_vectors
from crd_plugin.ops.features import Features
from crd_plugin.registry import MODELS

from ._common import check_given, count, finite, not_inferred, widths


@MODELS.register_module()
class CCLoss(nn.Module):
    r"""Correlation congruence, as RepDistiller trains it.

    .. math::
        L = \frac{1}{B - 1} \sum_{i=1}^{B-1} \sum_k d_{ik} d_{i+1,k}, \quad
        d = |W_s x_s + b_s - W_t x_t - b_t|

    Both linear heads are trained. It depends on the order of the batch.

    Source: Peng et al., arXiv:1904.01802; numbers of HobbitLong/RepDistiller
    ``distiller_zoo/CC.py``: products of neighbouring samples' gaps, not the
    paper's kernel correlation. MMRazor has no such loss.

    Args:
        s_channels (int, optional): Width of the student's vector. Defaults to
            None: inferred by ``FrozenTeacherDistill``.
        t_channels (int, optional): Width of the teacher's vector. Defaults to
            None: inferred.
        embed_dim (int): Width D of the embeddings. Defaults to 128.
        loss_weight (float): Factor of the loss. Defaults to 1.0 (published:
            0.02).

    Shape:
        s_feats: ``(B, s_channels)``, t_feats: ``(B, t_channels)``, B at least
        2; maps are flattened. Output: scalar float32 (float64 for float64
        vectors).

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If one is no number where a number is expected.
    """

    def __init__(
        self,
        s_channels: Optional[int] = None,
        t_channels: Optional[int] = None,
        embed_dim: int = 128,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.loss_weight = finite('loss_weight', loss_weight)
        self.embed_dim = count('embed_dim', embed_dim)
        self._s_given = _one('s_channels', s_channels)
        self._t_given = _one('t_channels', t_channels)
        self.embed_s: Optional[nn.Linear] = None
        self.embed_t: Optional[nn.Linear] = None
        if self._s_given and self._t_given:
            self._build(*self._s_given, *self._t_given)

    @property
    def needs_width(self) -> bool:
        """bool: The heads are still to be made from features."""
        return self.embed_s is None

    def infer_width(self, s_feats: Features, t_feats: Features) -> None:
        """Take the widths from a pair of vectors and make the heads.

        Args:
            s_feats (Tensor | Sequence[Tensor]): As given to :meth:`forward`.
            t_feats (Tensor | Sequence[Tensor]): Likewise.

        Raises:
            ValueError: If a width of the config differs.
        """
        student, teacher = pair_vectors(s_feats, t_feats)
        check_given('s_channels', self._s_given, (student.size(1),))
        check_given('t_channels', self._t_given, (teacher.size(1),))
        self._build(student.size(1), teacher.size(1))

    def forward(self, s_feats: Features, t_feats: Features) -> Tensor:
        """Loss of one batch.

        Args:
            s_feats (Tensor | Sequence[Tensor]): Student's vectors,
                ``(B, s_channels)``, or a sequence of one such tensor.
            t_feats (Tensor | Sequence[Tensor]): Teacher's vectors, likewise.

        Returns:
            Tensor: Scalar, already multiplied by ``loss_weight``.

        Raises:
            ValueError: If shapes do not fit or B is below 2.
        """
        student, teacher = pair_vectors(s_feats, t_feats, min_batch=2)
        if self.needs_width:
            raise not_inferred('CCLoss', 's_channels and t_channels')
        for name, x, head in (('s', student, self.embed_s), ('t', teacher, self.embed_t)):
            check_given(f'{name}_channels', (head.in_features,), (x.size(1),))
        gap = full_precision(self.embed_s(student)) - full_precision(self.embed_t(teacher))
        with no_autocast(gap):
            gap = gap.abs()
            loss = (gap[:-1] * gap[1:]).sum(1).mean()
        return self.loss_weight * loss

    def _build(self, s_channels: int, t_channels: int) -> None:
        """Make the two heads."""
        self.embed_s = nn.Linear(s_channels, self.embed_dim)
        self.embed_t = nn.Linear(t_channels, self.embed_dim)


def _one(name: str, value: Optional[int]) -> Optional[Tuple[int, ...]]:
    """A single width, or none."""
    several = widths(name, value)
    if several is not None and len(several) != 1:
        raise ValueError(f'{name} is {value}, expected one width.')
    return several
