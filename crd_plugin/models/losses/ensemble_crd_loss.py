"""CRD against several teachers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from crd_plugin.registry import MODELS

from ..connectors import EmbeddingConnector
from ._common import not_inferred, not_negative
from .crd_checks import check_own_draw
from .crd_loss import CRDLoss


@MODELS.register_module()
class EnsembleCRDLoss(nn.Module):
    r"""Sum of CRD over an ensemble of teachers.

    A :class:`CRDLoss` with its own two connectors and its own memory bank per teacher:

    .. math::
        L = \beta \sum_m L_{CRD}(g_m(S), v_m(T_m))

    Each bank holds embeddings of one teacher and of the student's connector for it. All banks share
    the labels and, in a step, the drawn negatives.

    Source: Tian et al., arXiv:1910.10699, figure 4. No code of it was published;
    negatives are shared as in :class:`CKTFLoss`.

    Args:
        embed_dim (int): Width D of all embeddings. Defaults to 128.
        head (str): Head of the connectors, ``'linear'``, ``'mlp'`` or ``'pad'``. Defaults to
            ``'linear'``.
        in_channels (tuple[int, Sequence[int]], optional): Width of the student's feature, and
            widths of the teachers'. Defaults to None: inferred by ``FrozenTeacherDistill``.
        loss_weight (float): beta, the factor of every term. Defaults to 1.0.
        **kwargs: Further arguments of every :class:`CRDLoss` but ``cuda_graph``.

    Shape:
        s_feats: ``(B, C)`` float. t_feats: one ``(B, C_m)`` float per teacher, in order.
        Output: scalar float32 (float64 for float64 features).

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
        super().__init__()
        self.embed_dim = embed_dim
        self.head = head
        self.loss_weight = not_negative('loss_weight', loss_weight)
        self._crd = dict(embed_dim=embed_dim, **kwargs)
        check_own_draw('EnsembleCRDLoss', **kwargs)
        # Needs no widths, so a wrong setting is reported now.
        self.losses = nn.ModuleList([CRDLoss(**self._crd)])
        EmbeddingConnector(None, embed_dim, head)  # Only checks its arguments.
        self.student_connectors = nn.ModuleList()
        self.teacher_connectors = nn.ModuleList()
        if in_channels is not None:
            self._build(*in_channels)

    @property
    def needs_width(self) -> bool:
        """bool: The connectors still have to be built by :meth:`infer_width`."""
        return not self.student_connectors

    def infer_width(self, s_feats: Tensor, t_feats: Tensor | Sequence[Tensor], **ids: Any) -> None:
        """Build connectors and losses for the widths of given features.

        Args:
            s_feats (Tensor): As for :meth:`forward`.
            t_feats (Sequence[Tensor]): As for :meth:`forward`.
            **ids: Other arguments of :meth:`forward`; not needed.
        """
        self._build(s_feats.size(1), [feats.size(1) for feats in _listed(t_feats)])

    def forward(
        self,
        s_feats: Tensor,
        t_feats: Tensor | Sequence[Tensor],
        sample_idx: Tensor | None = None,
        labels: Tensor | None = None,
        contrast_idx: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of one batch; in training mode, stage an update in each bank.

        Args:
            s_feats (Tensor): Feature of the student, ``(B, C)``.
            t_feats (Sequence[Tensor]): Feature of each teacher, ``(B, C_m)``; in a mapping
                ``record_idx='all'``.
            sample_idx (Tensor, optional): As for :class:`CRDLoss`.
            labels (Tensor, optional): As for :class:`CRDLoss`.
            contrast_idx (Tensor, optional): As for :class:`CRDLoss`; the same for all teachers.

        Returns:
            Tensor: Scalar, already multiplied by ``loss_weight``.

        Raises:
            ValueError: If the number of features is not that of the teachers, or features do not
                fit the connectors, which may be missing.
        """
        teachers = _listed(t_feats)
        self._check_number(teachers)
        drawn, total = None, torch.zeros((), device=s_feats.device)
        for number, teacher in enumerate(teachers):
            crd: Any = self.losses[number]
            s_embedding = self.student_connectors[number](s_feats)
            t_embedding = self.teacher_connectors[number](teacher)
            if crd.bank is not None and drawn is None:
                drawn = crd.draw(sample_idx, contrast_idx, s_embedding.dtype)
            total = total + crd(s_embedding, t_embedding, sample_idx, labels, contrast_idx, drawn)
        return self.loss_weight * total

    def _check_number(self, teachers: Sequence[Tensor]) -> None:
        """Require one feature per teacher that connectors were built for."""
        if self.needs_width:
            raise not_inferred('EnsembleCRDLoss', 'in_channels')
        if len(teachers) != len(self.losses):
            raise ValueError(
                f't_feats has the features of {len(teachers)} teachers, the loss was made for '
                f"{len(self.losses)}; map record_idx='all' of a recorder of the whole ensemble, or "
                'give as many widths in in_channels.'
            )

    def _build(self, student: int, teachers: Sequence[int]) -> None:
        """Build connectors and losses of all teachers."""
        for number, width in enumerate(teachers):
            self.student_connectors.append(EmbeddingConnector(student, self.embed_dim, self.head))
            self.teacher_connectors.append(EmbeddingConnector(width, self.embed_dim, self.head))
            if number == len(self.losses):
                self.losses.append(CRDLoss(**self._crd))


def _listed(feats: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the feature of one teacher, or those of several, as a sequence."""
    return [feats] if isinstance(feats, Tensor) else feats
