"""Contrastive transfer at the penultimate layer and between blocks."""

from typing import Any, Dict, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from crd_plugin.ops import pool_flat
from crd_plugin.registry import MODELS

from ..connectors import EmbeddingConnector
from ._common import count, finite, not_inferred
from .block_pairing import BlockPairing, Blocks
from .crd_loss import CRDLoss

_STEM, _PENULTIMATE = 'stem', 'penultimate'

# Student's and teacher's feature of each level.
Features = Dict[str, Tuple[Tensor, Tensor]]


@MODELS.register_module()
class CKTFLoss(nn.Module):
    r"""Contrastive Knowledge Transfer Framework.

    A :class:`CRDLoss` with two connectors and a memory bank of its own at
    every level: the stem, each group of blocks, and the penultimate vector.

    .. math::
        L = \beta L_{pen} + \theta \Big( L_{stem} + \sum_g L_g \Big)

    Which block of the teacher meets the last one of the student in group g
    is the choice of :class:`BlockPairing`. All levels share the negatives of
    a step and the labels; rows of the banks cannot be shared, since each
    level's teacher connector is trained.

    Source: Zhao et al., arXiv:2303.07599 (ICASSP 2023); numbers of
    kaiqi123/CKTF ``helper/loops.py`` @ b2bba29. Differs: stems of two widths
    are possible; where the published code adds CKTF to another method it
    leaves out a fourth group, here all count unless ``num_groups=3``.

    Args:
        embed_dim (int): Width D of all embeddings. Defaults to 128.
        temperature (float): tau. Defaults to 0.1, as scripted for CIFAR-100;
            0.07 on Tiny-ImageNet and STL-10.
        method (str): ``'last'``, ``'smallest'``, ``'largest'``, ``'first'``
            or ``'random'``, see :class:`BlockPairing`. Defaults to
            ``'last'``.
        pool (str): ``'auto'``, ``'avg8'`` or ``'global'``, see
            :class:`BlockPairing`. Defaults to ``'auto'``.
        head (str): Of the connectors: ``'linear'``, ``'mlp'`` or ``'pad'``.
            Defaults to ``'linear'``.
        beta (float): Weight of the penultimate level; 0 leaves it out.
            Defaults to 0.8.
        theta (float): Weight of stem and groups, each; 0 leaves them out.
            Defaults to 0.1.
        num_groups (int, optional): Only the first so many groups. Defaults to
            None: all.
        in_channels (Sequence[tuple[int, int]], optional): Width of student's
            and teacher's feature at the stem, the groups and the penultimate
            level, after pooling, without levels that are left out. Defaults
            to None: inferred by ``FrozenTeacherDistill``.
        loss_weight (float): Factor of the loss. Defaults to 1.0.
        **kwargs: Of every :class:`CRDLoss`: ``num_negatives``, ``momentum``,
            ``objective``, ``negatives``, ``exclude``, ``num_samples``,
            ``sharded``, ``bank_dtype``.

    Shape:
        See :meth:`forward`. Output: scalar float32 (float64 for float64
        features).

    Raises:
        ValueError: If an argument is out of range or not one of its words.
        TypeError: If one is no number where a number is expected.
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
        num_groups: Optional[int] = None,
        in_channels: Optional[Sequence[Tuple[int, int]]] = None,
        loss_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if num_groups is not None:
            count('num_groups', num_groups, ', or None for all groups')
        self.beta = finite('beta', beta)
        self.theta = finite('theta', theta)
        self.loss_weight = finite('loss_weight', loss_weight)
        self.embed_dim = embed_dim
        self.head = head
        self.num_groups = num_groups
        self.pairing = BlockPairing(method, pool)
        self._crd = dict(embed_dim=embed_dim, temperature=temperature, **kwargs)
        if beta == 0 == theta:
            raise ValueError(
                'beta and theta are both 0, so no level is left; '
                'give one a weight (published: 0.8 and 0.1).'
            )
        # It needs no width: a wrong setting is told at once.
        self.losses = nn.ModuleDict({_PENULTIMATE if beta else _STEM: CRDLoss(**self._crd)})
        self.student_connectors = nn.ModuleDict()
        self.teacher_connectors = nn.ModuleDict()
        EmbeddingConnector(None, embed_dim, head)  # Checks them, no more.
        if in_channels is not None:
            self._build(in_channels)

    @property
    def needs_width(self) -> bool:
        """bool: The connectors are still to be made from features."""
        return not self.student_connectors

    @torch.no_grad()
    def infer_width(
        self,
        s_stem: Tensor,
        t_stem: Tensor,
        s_blocks: Sequence[Blocks],
        t_blocks: Sequence[Blocks],
        s_feats: Tensor,
        t_feats: Tensor,
    ) -> None:
        """Make connectors and losses for features such as these.

        Args:
            s_stem (Tensor): As given to :meth:`forward`, and so the others.
        """
        pairs = self.features(s_stem, t_stem, s_blocks, t_blocks, s_feats, t_feats)
        self._build(list(_widths(pairs).values()))

    def forward(
        self,
        s_stem: Tensor,
        t_stem: Tensor,
        s_blocks: Sequence[Blocks],
        t_blocks: Sequence[Blocks],
        s_feats: Tensor,
        t_feats: Tensor,
        sample_idx: Optional[Tensor] = None,
        labels: Optional[Tensor] = None,
        contrast_idx: Optional[Tensor] = None,
    ) -> Tensor:
        """Loss of one batch; in training mode each bank is left an update.

        Args:
            s_stem (Tensor): Output of the student's stem, ``(B, C, H, W)``,
                or pooled and flattened already, ``(B, values)``.
            t_stem (Tensor): The teacher's.
            s_blocks (Sequence): Maps of the student's blocks, group by group,
                or the last one of each group.
            t_blocks (Sequence): The teacher's; all blocks unless ``method``
                is ``'last'``.
            s_feats (Tensor): Student's penultimate vector, ``(B, C)``.
            t_feats (Tensor): The teacher's.
            sample_idx (Tensor, optional): Position of each sample in the
                training set, ``(B,)`` int64; left out only where
                :class:`CRDLoss` does without.
            labels (Tensor, optional): As for :class:`CRDLoss`.
            contrast_idx (Tensor, optional): As for :class:`CRDLoss`; the same
                for all levels, as in the published code.

        Returns:
            Tensor: Scalar, already multiplied by ``loss_weight``.

        Raises:
            ValueError: If features do not fit each other or the connectors.
        """
        if self.needs_width:
            raise not_inferred('CKTFLoss', 'in_channels')
        pairs = self.features(s_stem, t_stem, s_blocks, t_blocks, s_feats, t_feats)
        self._check_widths(pairs)
        embedded = {
            level: (
                self.student_connectors[level](student),
                self.teacher_connectors[level](teacher),
            )
            for level, (student, teacher) in pairs.items()
        }
        level, (student, _) = next(iter(embedded.items()))
        drawn = None
        if self.losses[level].bank is not None:
            # Once, as the published data loader hands the same ids to all.
            drawn = self.losses[level].draw(sample_idx, contrast_idx, student.dtype)
        total = 0.0
        for level, (student, teacher) in embedded.items():
            total = total + self._weight(level) * self.losses[level](
                student, teacher, sample_idx, labels, contrast_idx, drawn
            )
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
        """What the connectors of each level are given.

        Args:
            s_stem (Tensor): As given to :meth:`forward`, and so the others.

        Returns:
            dict[str, tuple[Tensor, Tensor]]: Student's and teacher's feature
            of the levels ``stem``, ``group1`` ..., ``penultimate``, of those
            that have a weight.
        """
        if not self.theta:
            return {_PENULTIMATE: (s_feats, t_feats)}
        pool = self.pairing.pool_of(len(s_blocks))
        stems = tuple(
            pool_flat(stem, pool) if stem.dim() == 4 else stem for stem in (s_stem, t_stem)
        )
        groups = self.pairing(s_blocks, t_blocks)[: self.num_groups]
        pairs = {_STEM: stems}
        for i, pair in enumerate(groups, start=1):
            pairs[f'group{i}'] = pair
        if self.beta:
            pairs[_PENULTIMATE] = (s_feats, t_feats)
        return pairs

    def _weight(self, level: str) -> float:
        """Factor of a level."""
        return self.beta if level == _PENULTIMATE else self.theta

    def _check_widths(self, pairs: Features) -> None:
        """The features are those that the connectors were made for."""
        found, made = (
            _widths(pairs),
            {
                level: (connector.in_channels, self.teacher_connectors[level].in_channels)
                for level, connector in self.student_connectors.items()
            },
        )
        if found != made:
            raise ValueError(
                'The pooled features of student and teacher have the widths '
                f'{found}, the connectors were made for {made}; set '
                'model.input_shape to the size of the training images, or '
                f'in_channels={list(found.values())}.'
            )

    def _build(self, in_channels: Sequence[Tuple[int, int]]) -> None:
        """Connectors and losses of all levels, of given widths."""
        pairs = in_channels if isinstance(in_channels, Sequence) else ()
        top = [_PENULTIMATE] if self.beta else []
        names = top
        if self.theta:
            groups = range(1, len(pairs) - len(top))
            names = [_STEM, *(f'group{i}' for i in groups), *top]
        fewest = len(top) + 2 * bool(self.theta)
        if not fewest <= len(pairs) == len(names) or any(
            not isinstance(pair, Sequence) or len(pair) != 2 for pair in pairs
        ):
            raise ValueError(
                f'in_channels is {in_channels}, expected a pair of widths '
                '(student, teacher) for the stem, each group and the '
                'penultimate level, of those that beta and theta leave.'
            )
        for level, (student, teacher) in zip(names, pairs):
            self.student_connectors[level] = EmbeddingConnector(student, self.embed_dim, self.head)
            self.teacher_connectors[level] = EmbeddingConnector(teacher, self.embed_dim, self.head)
            if level not in self.losses:
                self.losses[level] = CRDLoss(**self._crd)

    def extra_repr(self) -> str:
        """Weights."""
        return f'beta={self.beta}, theta={self.theta}, loss_weight={self.loss_weight}'


def _widths(pairs: Features) -> Dict[str, Tuple[int, int]]:
    """Values a sample of student's and teacher's feature at each level."""
    return {
        level: (student[0].numel(), teacher[0].numel())
        for level, (student, teacher) in pairs.items()
    }
