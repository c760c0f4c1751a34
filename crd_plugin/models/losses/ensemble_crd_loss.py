"""CRD against several teachers, and what sums of CRD share."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from crd_plugin.registry import MODELS

from .._numbers import not_negative
from ..connectors import EmbeddingConnector
from ._common import check_built
from .crd_loss import CRDLoss


class SeveralCRD(nn.Module):
    """Hold a :class:`CRDLoss`, two connectors and a bank per pair; all share the negatives."""

    def __init__(
        self, first: str, embed_dim: int, head: str, loss_weight: float, **crd: Any
    ) -> None:
        super().__init__()
        if crd.get('cuda_graph'):
            raise ValueError(
                'cuda_graph=True draws the negatives of one CRDLoss, but those of '
                f'{type(self).__name__} share theirs; leave it out.'
            )
        self.embed_dim = embed_dim
        self.head = head
        self.loss_weight = not_negative('loss_weight', loss_weight)
        self._crd = dict(embed_dim=embed_dim, **crd)
        # Needs no widths, so a wrong setting is reported now.
        self.losses = nn.ModuleDict({first: CRDLoss(**self._crd)})
        EmbeddingConnector(None, embed_dim, head)  # Only checks its arguments.
        self.student_connectors = nn.ModuleDict()
        self.teacher_connectors = nn.ModuleDict()

    @property
    def needs_width(self) -> bool:
        """bool: The connectors still have to be built by :meth:`infer_width`."""
        return not self.student_connectors

    def build(self, name: str, student: int, teacher: int) -> None:
        """Make the connectors of a pair for two widths, and its loss."""
        self.student_connectors[name] = EmbeddingConnector(student, self.embed_dim, self.head)
        self.teacher_connectors[name] = EmbeddingConnector(teacher, self.embed_dim, self.head)
        if name not in self.losses:
            self.losses[name] = CRDLoss(**self._crd)

    def contrast(
        self,
        pairs: dict[str, tuple[Tensor, Tensor]],
        weights: dict[str, float],
        sample_idx: Tensor | None,
        labels: Tensor | None,
        contrast_idx: Tensor | None,
    ) -> Tensor:
        """Sum the losses of pairs of features, student's and teacher's, times their weights."""
        check_built(self, 'in_channels')
        if pairs.keys() != self.student_connectors.keys():
            raise ValueError(
                f'{type(self).__name__} is given features of {", ".join(pairs)}, but was made for '
                f'{", ".join(self.student_connectors)}; give in_channels of each, or leave it out; '
                "of an ensemble map record_idx='all'."
            )
        drawn, total = None, torch.zeros((), device=next(iter(pairs.values()))[0].device)
        for name, (student, teacher) in pairs.items():
            crd: Any = self.losses[name]
            student = self.student_connectors[name](student)
            teacher = self.teacher_connectors[name](teacher)
            if crd.bank is not None and drawn is None:
                # Once, as CKTF's published data loader hands the same ids to all levels.
                drawn = crd.draw(sample_idx, contrast_idx, student.dtype)
            value = crd(student, teacher, sample_idx, labels, contrast_idx, drawn)
            total = total + value * weights[name]
        return self.loss_weight * total


@MODELS.register_module()
class EnsembleCRDLoss(SeveralCRD):
    """Sum of CRD over an ensemble of teachers.

    A :class:`CRDLoss` with its own two connectors and its own memory bank per teacher. All banks
    share the labels and, in a step, the drawn negatives, as in :class:`CKTFLoss`.

    Source: Tian et al., arXiv:1910.10699, figure 4. No code of it was published.

    Args:
        embed_dim (int): Width D of all embeddings. Defaults to 128.
        head (str): Head of the connectors, ``'linear'``, ``'mlp'`` or ``'pad'``. Defaults to
            ``'linear'``.
        in_channels (tuple[int, Sequence[int]], optional): Width of the student's feature, and
            widths of the teachers'. Defaults to None: inferred by ``FrozenTeacherDistill``.
        loss_weight (float): beta, the factor of every term. Defaults to 1.0.
        **kwargs: Further arguments of every :class:`CRDLoss` but ``cuda_graph``.

    Shape:
        s_feats: ``(B, C)`` float. t_feats: one ``(B, C_m)`` float per teacher, in order; in a
        mapping ``record_idx='all'``. The others are those of :class:`CRDLoss`, the same for all
        teachers. Output: scalar float32 (float64 for float64 features).

    Raises:
        ValueError, TypeError: As :class:`CRDLoss`.
    """

    def __init__(
        self,
        embed_dim: int = 128,
        head: str = 'linear',
        in_channels: tuple[int, Sequence[int]] | None = None,
        loss_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__('0', embed_dim, head, loss_weight, **kwargs)
        if in_channels is not None:
            self._build(*in_channels)

    def infer_width(self, s_feats: Tensor, t_feats: Tensor | Sequence[Tensor], **ids: Any) -> None:
        """Build connectors and losses for the widths of features, as for :meth:`forward`."""
        self._build(s_feats.size(1), [feats.size(1) for feats in _listed(t_feats)])

    def forward(
        self,
        s_feats: Tensor,
        t_feats: Tensor | Sequence[Tensor],
        sample_idx: Tensor | None = None,
        labels: Tensor | None = None,
        contrast_idx: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of one batch; in training mode, stage an update in each bank."""
        pairs = {str(i): (s_feats, teacher) for i, teacher in enumerate(_listed(t_feats))}
        return self.contrast(pairs, dict.fromkeys(pairs, 1.0), sample_idx, labels, contrast_idx)

    def _build(self, student: int, teachers: Sequence[int]) -> None:
        for number, width in enumerate(teachers):
            self.build(str(number), student, width)


def _listed(feats: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return [feats] if isinstance(feats, Tensor) else feats
