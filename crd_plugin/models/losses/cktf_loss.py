"""Contrastive transfer at the penultimate layer and between blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from crd_plugin.ops import full_precision
from crd_plugin.ops.pairing import METHODS, POOLS, Blocks, pair_blocks, pool_flat, resolve_pool
from crd_plugin.registry import MODELS

from ..connectors import EmbeddingConnector
from ._common import count, not_inferred, not_negative
from .crd_checks import check_own_draw
from .crd_loss import CRDLoss

_STEM, _PENULTIMATE = 'stem', 'penultimate'

# Features of student and teacher for each level.
Features = dict[str, tuple[Tensor, Tensor]]


@MODELS.register_module()
class CKTFLoss(nn.Module):
    r"""Contrastive Knowledge Transfer Framework.

    A :class:`CRDLoss` with its own two connectors and its own memory bank at every level: the
    stem, each group of blocks, and the penultimate vector.

    .. math::
        L = \beta L_{pen} + \theta \Big( L_{stem} + \sum_g L_g \Big)

    :func:`~crd_plugin.ops.pairing.pair_blocks` chooses which block of the teacher is compared
    with the last block of the student in group g. All levels share the negatives of a step and
    the labels. They cannot share the rows of a bank, because each level trains its own teacher
    connector.

    Source: Zhao et al., arXiv:2303.07599 (ICASSP 2023); numbers of kaiqi123/CKTF
    ``helper/loops.py`` @ b2bba29. Differs: the stems may have different widths; where the
    published code adds CKTF to another method it leaves out a fourth group, here all groups
    count unless ``num_groups=3``.

    Args:
        embed_dim (int): Width D of all embeddings. Defaults to 128.
        temperature (float): tau. Defaults to 0.1, as scripted for CIFAR-100; 0.07 on
            Tiny-ImageNet and STL-10.
        method (str): Choice of the teacher's block: ``'last'``, ``'first'``, ``'random'``, or
            the block with the ``'smallest'`` or ``'largest'`` cosine similarity to the student's.
            Defaults to ``'last'``.
        pool (str): ``'avg8'``: the mean of each 8x8 window; ``'global'``: the mean of the map;
            ``'auto'``: ``'avg8'`` for three groups, else ``'global'``. Defaults to ``'auto'``.
        head (str): Head of the connectors, ``'linear'``, ``'mlp'`` or ``'pad'``. Defaults to
            ``'linear'``.
        beta (float): Weight of the penultimate level; 0 removes it. Defaults to 0.8.
        theta (float): Weight of the stem and of each group; 0 removes them. Defaults to 0.1.
        num_groups (int, optional): Number of groups used, counted from the first. Defaults to
            None: all.
        in_channels (Sequence[tuple[int, int]], optional): Widths of the student's and the
            teacher's feature at the stem, the groups and the penultimate level, after pooling,
            without removed levels. Defaults to None: inferred by ``FrozenTeacherDistill``.
        loss_weight (float): Factor of the loss. Defaults to 1.0.
        **kwargs: Arguments of every :class:`CRDLoss`: ``num_negatives``, ``momentum``,
            ``objective``, ``negatives``, ``exclude``, ``num_samples``, ``sharded``,
            ``bank_dtype``, ``kernel``.

    Shape:
        See :meth:`forward`. Output: scalar float32 (float64 for float64 features).

    Raises:
        ValueError: If an argument is out of range or not one of the allowed values.
        TypeError: If an argument is not a number where a number is expected.
    """

    def __init__(
        self,
        embed_dim: int = 128,
        temperature: float = 0.1,
        method: str = 'last',
        pool: str = 'auto',
        head: str = 'linear',
        beta: float = 0.8,
        theta: float = 0.1,
        num_groups: int | None = None,
        in_channels: Sequence[tuple[int, int]] | None = None,
        loss_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        for name, value, allowed in (('method', method, METHODS), ('pool', pool, POOLS)):
            if value not in allowed:
                raise ValueError(f'{name} is {value!r}, expected one of {allowed}.')
        if num_groups is not None:
            count('num_groups', num_groups, ', or None for all groups')
        self.beta = not_negative('beta', beta)
        self.theta = not_negative('theta', theta)
        self.loss_weight = not_negative('loss_weight', loss_weight)
        if beta == 0 == theta:
            raise ValueError(
                'beta and theta are both 0, so no level is left; give one a weight '
                '(published: 0.8 and 0.1).'
            )
        self.embed_dim = embed_dim
        self.head = head
        self.num_groups = num_groups
        self.method = method
        self.pool = pool
        self._crd = dict(embed_dim=embed_dim, temperature=temperature, **kwargs)
        check_own_draw('CKTFLoss', **kwargs)
        # Needs no widths, so a wrong setting is reported now.
        self.losses = nn.ModuleDict({_PENULTIMATE if beta else _STEM: CRDLoss(**self._crd)})
        self.student_connectors = nn.ModuleDict()
        self.teacher_connectors = nn.ModuleDict()
        EmbeddingConnector(None, embed_dim, head)  # Only checks its arguments.
        if in_channels is not None:
            self._build(in_channels)

    @property
    def needs_width(self) -> bool:
        """bool: The connectors still have to be built by :meth:`infer_width`."""
        return not self.student_connectors

    @torch.no_grad()
    def infer_width(self, **features: Any) -> None:
        """Build connectors and losses for the widths of given features.

        Args:
            **features: The six features that :meth:`forward` takes.
        """
        self._build(list(_widths(self.features(**features)).values()))

    def forward(
        self,
        s_stem: Tensor,
        t_stem: Tensor,
        s_blocks: Sequence[Blocks],
        t_blocks: Sequence[Blocks],
        s_feats: Tensor,
        t_feats: Tensor,
        sample_idx: Tensor | None = None,
        labels: Tensor | None = None,
        contrast_idx: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of one batch; in training mode, stage an update in each bank.

        Args:
            s_stem (Tensor): Output of the student's stem, ``(B, C, H, W)`` float, or pooled and
                flattened already, ``(B, values)``.
            t_stem (Tensor): Output of the teacher's stem, likewise.
            s_blocks (Sequence): Maps of the student's blocks, group by group, or the last map of
                each group.
            t_blocks (Sequence): Maps of the teacher's blocks; all blocks unless ``method`` is
                ``'last'``.
            s_feats (Tensor): Student's penultimate vector, ``(B, C)`` float.
            t_feats (Tensor): Teacher's penultimate vector, ``(B, C)`` float.
            sample_idx (Tensor, optional): Position of each sample in the training set, ``(B,)``
                int64; may be left out where :class:`CRDLoss` does not need it.
            labels (Tensor, optional): As for :class:`CRDLoss`.
            contrast_idx (Tensor, optional): As for :class:`CRDLoss`; the same for all levels, as
                in the published code.

        Returns:
            Tensor: Scalar, already multiplied by ``loss_weight``.

        Raises:
            ValueError: If features do not fit each other or the connectors, which may be missing.
        """
        pairs = self.features(s_stem, t_stem, s_blocks, t_blocks, s_feats, t_feats)
        self._check_widths(pairs)
        drawn, total = None, torch.zeros((), device=s_feats.device)
        for level, (student, teacher) in pairs.items():
            crd: Any = self.losses[level]
            student = self.student_connectors[level](student)
            teacher = self.teacher_connectors[level](teacher)
            if crd.bank is not None and drawn is None:
                # Once, as the published data loader hands the same ids to all levels.
                drawn = crd.draw(sample_idx, contrast_idx, student.dtype)
            value = crd(student, teacher, sample_idx, labels, contrast_idx, drawn)
            total = total + value * (self.beta if level == _PENULTIMATE else self.theta)
        return self.loss_weight * total

    def features(
        self,
        s_stem: Tensor,
        t_stem: Tensor,
        s_blocks: Sequence[Blocks],
        t_blocks: Sequence[Blocks],
        s_feats: Tensor,
        t_feats: Tensor,
    ) -> Features:
        """Return student's and teacher's feature by level; arguments as for :meth:`forward`."""
        pairs: Features = {}
        if self.theta:
            pool = resolve_pool(self.pool, len(s_blocks))
            student, teacher = (
                pool_flat(stem, pool) if stem.dim() == 4 else stem
                for stem in (full_precision(s_stem), full_precision(t_stem))
            )
            pairs[_STEM] = (student, teacher)
            groups = pair_blocks(s_blocks, t_blocks, self.method, pool)[: self.num_groups]
            pairs.update({f'group{i}': pair for i, pair in enumerate(groups, start=1)})
        if self.beta:
            pairs[_PENULTIMATE] = (full_precision(s_feats), full_precision(t_feats))
        return pairs

    def _check_widths(self, pairs: Features) -> None:
        """Check that the features have the widths that the connectors were built for."""
        if self.needs_width:
            raise not_inferred('CKTFLoss', 'in_channels')
        found = _widths(pairs)
        expected = {
            level: (connector.in_channels, self.teacher_connectors[level].in_channels)
            for level, connector in self.student_connectors.items()
        }
        if found != expected:
            raise ValueError(
                f'The pooled features of student and teacher have the widths {found}, the '
                f'connectors were made for {expected}; set model.input_shape to the size of the '
                f'training images, or in_channels={list(found.values())}.'
            )

    def _build(self, in_channels: Sequence[tuple[int, int]]) -> None:
        """Build the connectors and losses of all levels."""
        widths = in_channels if isinstance(in_channels, Sequence) else ()
        top = [_PENULTIMATE] if self.beta else []
        groups = [f'group{i}' for i in range(1, len(widths) - len(top))]
        levels = [_STEM, *groups, *top] if self.theta else top
        if (
            len(widths) != len(levels)
            or (self.theta and not groups)
            or any(not isinstance(pair, Sequence) or len(pair) != 2 for pair in widths)
        ):
            raise ValueError(
                f'in_channels is {in_channels}, expected a pair of widths (student, teacher) for '
                'the stem, each group and the penultimate level, of those that beta and theta '
                'leave.'
            )
        for level, (student, teacher) in zip(levels, widths):
            self.student_connectors[level] = EmbeddingConnector(student, self.embed_dim, self.head)
            self.teacher_connectors[level] = EmbeddingConnector(teacher, self.embed_dim, self.head)
            if level not in self.losses:
                self.losses[level] = CRDLoss(**self._crd)


def _widths(pairs: Features) -> dict[str, tuple[int, int]]:
    """Return the number of values per sample of both features of each level."""
    return {
        level: (student[0].numel(), teacher[0].numel())
        for level, (student, teacher) in pairs.items()
    }
