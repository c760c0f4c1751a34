"""Base of losses that sum CRD over several pairs of features."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from .._numbers import not_negative
from ..connectors import EmbeddingConnector
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
        sample_idx: Tensor | None,
        labels: Tensor | None,
        contrast_idx: Tensor | None,
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the loss of each pair of features, student's and teacher's, with its name."""
        drawn = None
        for name, (student, teacher) in pairs.items():
            crd: Any = self.losses[name]
            student = self.student_connectors[name](student)
            teacher = self.teacher_connectors[name](teacher)
            if crd.bank is not None and drawn is None:
                # Once, as CKTF's published data loader hands the same ids to all levels.
                drawn = crd.draw(sample_idx, contrast_idx, student.dtype)
            yield name, crd(student, teacher, sample_idx, labels, contrast_idx, drawn)
