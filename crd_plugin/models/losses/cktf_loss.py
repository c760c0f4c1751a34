"""Contrastive transfer at the penultimate layer and between blocks."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from crd_plugin.ops import full_precision
from crd_plugin.ops.pairing import METHODS, POOLS, Blocks, pair_blocks, pool_flat, resolve_pool
from crd_plugin.registry import MODELS

from .._numbers import count, not_negative, one_of
from .ensemble_crd_loss import SeveralCRD

_STEM, _PENULTIMATE = 'stem', 'penultimate'

# Features of student and teacher for each level.
Features = dict[str, tuple[Tensor, Tensor]]


@MODELS.register_module()
class CKTFLoss(SeveralCRD):
    """Contrastive Knowledge Transfer Framework.

    ``L = beta L_pen + theta (L_stem + sum over g of L_g)``: a :class:`CRDLoss` with its own two
    connectors and its own memory bank at every level, the penultimate vector, the stem and each
    group of blocks.

    All levels share the negatives of a step and the labels.

    Source: Zhao et al., arXiv:2303.07599 (ICASSP 2023); numbers of kaiqi123/CKTF
    ``helper/loops.py`` @ b2bba29. Differs: the stems may have different widths; beside another
    method all groups count unless ``num_groups=3``, as there.

    Args:
        embed_dim (int): Width D of all embeddings. Defaults to 128.
        temperature (float): tau. Defaults to 0.1, as scripted for CIFAR-100; 0.07 on
            Tiny-ImageNet and STL-10.
        method (str): The teacher's block that is compared with the student's last one, in each
            group: ``'last'``, ``'first'``, ``'random'``, or that of the ``'smallest'`` or
            ``'largest'`` cosine similarity. Defaults to ``'last'``.
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
        **kwargs: Further arguments of every :class:`CRDLoss` but ``cuda_graph``.

    Raises:
        ValueError, TypeError: If an argument is out of range, not one of the allowed values or not
            a number.
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
        one_of('method', method, METHODS)
        one_of('pool', pool, POOLS)
        if num_groups is not None:
            count('num_groups', num_groups, ', or None for all groups')
        if not_negative('beta', beta) + not_negative('theta', theta) == 0:
            raise ValueError(
                'beta and theta are both 0, so no level is left; give one a weight '
                '(published: 0.8 and 0.1).'
            )
        first = _PENULTIMATE if beta else _STEM
        super().__init__(first, embed_dim, head, loss_weight, temperature=temperature, **kwargs)
        self.beta = beta
        self.theta = theta
        self.num_groups = num_groups
        self.method = method
        self.pool = pool
        if in_channels is not None:
            self._build(in_channels)

    @torch.no_grad()
    def infer_width(self, **features: Any) -> None:
        """Build connectors and losses for the widths of the six features of :meth:`forward`."""
        pairs = self.features(**features).values()
        self._build([(student[0].numel(), teacher[0].numel()) for student, teacher in pairs])

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
            t_stem (Tensor): The same of the teacher.
            s_blocks (Sequence): Maps of the student's blocks, group by group, or the last map of
                each group.
            t_blocks (Sequence): The same of the teacher; all blocks unless ``method`` is
                ``'last'``.
            s_feats (Tensor): Student's penultimate vector, ``(B, C)`` float.
            t_feats (Tensor): The same of the teacher.
            sample_idx (Tensor, optional): As for :class:`CRDLoss`, the same for all levels.
            labels (Tensor, optional): Likewise.
            contrast_idx (Tensor, optional): Likewise.

        Returns:
            Tensor: Scalar float32 (float64 for float64 features), times ``loss_weight``.

        Raises:
            ValueError: If features do not fit each other or the connectors, which may be missing.
        """
        pairs = self.features(s_stem, t_stem, s_blocks, t_blocks, s_feats, t_feats)
        weights = {level: self.beta if level == _PENULTIMATE else self.theta for level in pairs}
        return self.contrast(pairs, weights, sample_idx, labels, contrast_idx)

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

    def _build(self, in_channels: Sequence[tuple[int, int]]) -> None:
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
        for level, pair in zip(levels, widths):
            self.build(level, *pair)
