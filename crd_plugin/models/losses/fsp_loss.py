"""The flow between layers: inner products of neighbouring maps."""

from typing import List, Optional, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from crd_plugin.ops import match_heights, no_autocast, pair_maps
from crd_plugin.registry import MODELS

from ._common import finite
from .ab_loss import Shapes, check_shapes, shapes_of


@MODELS.register_module()
class FSPLoss(nn.Module):
    r"""Flow of the solution procedure.

    The inner products of the channels of neighbouring maps, with the stem in
    front, shall be those of the teacher:

    .. math::
        L = \sum_i \operatorname{mean} (G^S_i - G^T_i)^2, \quad
        G_i[b, c, d] = \frac{1}{H W} \sum_x F_{i+1}[b, c, x] F_i[b, d, x]

    Of two neighbours, the higher map is reduced to the lower one by average
    pooling. Used alone, in a stage before the classifier is trained.

    Both networks need the same channels map by map. That leaves cells of the
    published tables empty ("n/a"); here such a pair is refused when the model
    is built.

    Source: Yim et al., CVPR 2017, eq. 1-2; numbers of HobbitLong/RepDistiller
    ``distiller_zoo/FSP.py``. MMRazor has no such loss.

    Args:
        s_shapes (Sequence[Sequence[int]], optional): Channels, height and
            width of each student map. Defaults to None: those of the first
            features, which ``FrozenTeacherDistill`` sends through.
        t_shapes (Sequence[Sequence[int]], optional): Those of the teacher's
            maps. Defaults to None, likewise.
        match_sizes (bool): Ask for equal heights and widths of student and
            teacher too, as the paper's layers have. RepDistiller does not
            (False): its products are means over different positions then.
            Defaults to True.
        loss_weight (float): Factor of the loss. Defaults to 1.0, as published
            for the first stage.

    Shape:
        s_feats, t_feats: sequences of L maps ``(B, C, H, W)``, stem to last
        stage. Output: scalar float32 (float64 for float64 maps).

    Raises:
        ValueError: If an argument is out of range, or the maps of student and
            teacher differ in number, channels or size.
        TypeError: If one is no number where a number is expected.
    """

    def __init__(
        self,
        s_shapes: Optional[Sequence[Sequence[int]]] = None,
        t_shapes: Optional[Sequence[Sequence[int]]] = None,
        match_sizes: bool = True,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.match_sizes = match_sizes
        self.loss_weight = finite('loss_weight', loss_weight)
        self.s_shapes = check_shapes('s_shapes', s_shapes)
        self.t_shapes = check_shapes('t_shapes', t_shapes)
        self.needs_width = not (self.s_shapes and self.t_shapes)
        if not self.needs_width:
            self._check(self.s_shapes, self.t_shapes)

    def infer_width(self, s_feats: Sequence[Tensor], t_feats: Sequence[Tensor]) -> None:
        """Refuse a pair that has no FSP; nothing is made.

        Args:
            s_feats (Sequence[Tensor]): As given to :meth:`forward`.
            t_feats (Sequence[Tensor]): Likewise.

        Raises:
            ValueError: If the maps differ, or a shape of the config does.
        """
        found = shapes_of(pair_maps(s_feats, t_feats))
        self._check(*found)
        for name, given, shapes in (
            ('s_shapes', self.s_shapes, found[0]),
            ('t_shapes', self.t_shapes, found[1]),
        ):
            if given not in (None, shapes):
                raise ValueError(
                    f'{name} is {given}, but the recorded maps have {shapes}; '
                    f'set {name} to that, or leave it out.'
                )
        self.needs_width = False

    def forward(self, s_feats: Sequence[Tensor], t_feats: Sequence[Tensor]) -> Tensor:
        """Loss of one batch.

        Args:
            s_feats (Sequence[Tensor]): Student's maps.
            t_feats (Sequence[Tensor]): Teacher's maps, as many.

        Returns:
            Tensor: Sum over pairs of neighbours, times ``loss_weight``.

        Raises:
            ValueError: If the maps differ in number, channels or size.
        """
        pairs = pair_maps(s_feats, t_feats)
        self._check(*shapes_of(pairs))
        students, teachers = zip(*pairs)
        with no_autocast(students[0]):
            losses = [
                F.mse_loss(s_flow, t_flow)
                for s_flow, t_flow in zip(flows(students), flows(teachers))
            ]
        return self.loss_weight * sum(losses)

    def _check(self, s_shapes: Shapes, t_shapes: Shapes) -> None:
        """What the difference of two flows asks for."""
        if len(s_shapes) != len(t_shapes) or len(s_shapes) < 2:
            raise ValueError(
                f'The student has {len(s_shapes)} maps and the teacher '
                f'{len(t_shapes)}; FSP takes as many of both, at least two.'
            )
        channels = [[shape[0] for shape in side] for side in (s_shapes, t_shapes)]
        if channels[0] != channels[1]:
            raise ValueError(
                'FSP compares inner products of channels, so both networks '
                'need equally many map by map; the student has '
                f'{channels[0]}, the teacher {channels[1]}. Such a pair has '
                'no FSP ("n/a" or left out in published tables); take another '
                'method.'
            )
        sizes = [[shape[1:] for shape in side] for side in (s_shapes, t_shapes)]
        if self.match_sizes and sizes[0] != sizes[1]:
            raise ValueError(
                'FSP takes inner products over positions, so both networks '
                'need maps of equal height and width; the student has '
                f'{sizes[0]}, the teacher {sizes[1]}. Such a pair has no FSP; '
                'take another method, or match_sizes=False, which compares '
                'means over different positions.'
            )


def flows(maps: Sequence[Tensor]) -> List[Tensor]:
    """Inner products of the channels of neighbouring maps.

    Args:
        maps (Sequence[Tensor]): L maps ``(B, C_i, H_i, W_i)``.

    Returns:
        list[Tensor]: L - 1 matrices ``(B, C_{i+1}, C_i)``, means over
        positions.
    """
    matrices = []
    for bottom, top in zip(maps, maps[1:]):
        bottom, top = (x.flatten(2) for x in match_heights(bottom, top))
        matrices.append(top @ bottom.mT / bottom.size(2))
    return matrices
