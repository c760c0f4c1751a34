"""CRD against several teachers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from crd_plugin.registry import MODELS

from ._common import check_built
from ._several_crd import SeveralCRD


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
        ValueError: If an argument is out of range or not one of the allowed values.
        TypeError: If an argument is not a number where a number is expected.
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
        teachers = _listed(t_feats)
        check_built(self, 'in_channels')
        if len(teachers) != len(self.losses):
            raise ValueError(
                f't_feats has the features of {len(teachers)} teachers, the loss was made for '
                f"{len(self.losses)}; map record_idx='all' of a recorder of the whole ensemble, or "
                'give as many widths in in_channels.'
            )
        pairs = {str(number): (s_feats, teacher) for number, teacher in enumerate(teachers)}
        total = torch.zeros((), device=s_feats.device)
        for _, value in self.contrast(pairs, sample_idx, labels, contrast_idx):
            total = total + value
        return self.loss_weight * total

    def _build(self, student: int, teachers: Sequence[int]) -> None:
        """Build connectors and losses of all teachers."""
        for number, width in enumerate(teachers):
            self.build(str(number), student, width)


def _listed(feats: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the feature of one teacher, or those of several, as a sequence."""
    return [feats] if isinstance(feats, Tensor) else feats
