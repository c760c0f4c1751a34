"""Flow of the solution procedure."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from crd_plugin.ops import match_heights, no_autocast
from crd_plugin.registry import MODELS

from ._common import Pairs, Shapes, SizedLoss


@MODELS.register_module()
class FSPLoss(SizedLoss):
    """Flow of the solution procedure.

    ``L = sum over i of mean (G_s - G_t)^2`` with ``G[b, c, d]`` the mean over positions of channel
    c of map i + 1 times channel d of map i, the higher map pooled to the lower one. Used alone, in
    a stage before the classifier is trained. A pair whose channels differ map by map, "n/a" in
    published tables, is refused when the model is built.

    Source: Yim et al., CVPR 2017, eq. 1-2; numbers of HobbitLong/RepDistiller
    ``distiller_zoo/FSP.py``.

    Args:
        s_shapes (Sequence[Sequence[int]], optional): Channels, height and width of each student
            map. Defaults to None: inferred by ``FrozenTeacherDistill``.
        t_shapes (Sequence[Sequence[int]], optional): The same of the teacher.
        match_sizes (bool): Require equal heights and widths of student and teacher too, as in the
            paper. RepDistiller does not (False): it compares means over different positions.
            Defaults to True.
        loss_weight (float): Factor of the loss. Defaults to 1.0, as published for the first stage.

    Shape:
        Maps ``(B, C, H, W)``, stem to last stage, at least two.

    Raises:
        ValueError: If an argument is out of range, or the maps of student and teacher differ in
            number, channels or size.
        TypeError: If ``loss_weight`` is not a number.
    """

    takes_stages = True
    by_shape = True

    def __init__(
        self,
        s_shapes: Sequence[Sequence[int]] | None = None,
        t_shapes: Sequence[Sequence[int]] | None = None,
        match_sizes: bool = True,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(loss_weight)
        self.match_sizes = match_sizes
        self.set_sizes(s_shapes=s_shapes, t_shapes=t_shapes)

    def check(self, pairs: Pairs) -> None:
        """Raise a ValueError for maps that cannot be compared."""
        self.build(*self._measure(pairs))

    def compare(self, pairs: Pairs) -> Tensor:
        """Compute the loss of all neighbours, without its factor."""
        students, teachers = zip(*pairs)
        with no_autocast(students[0]):
            losses = [F.mse_loss(*pair) for pair in zip(flows(students), flows(teachers))]
        return torch.stack(losses).sum()

    def build(self, s_size: Shapes, t_size: Shapes) -> None:
        """Check that the two networks can be compared; there are no layers."""
        if len(s_size) < 2:
            raise ValueError(
                f'FSP compares neighbouring maps, at least two, but got {len(s_size)}.'
            )
        s_channels, t_channels = ([shape[0] for shape in side] for side in (s_size, t_size))
        if s_channels != t_channels:
            raise ValueError(
                'FSP compares inner products of channels, so both networks need equally many map '
                f'by map; the student has {s_channels}, the teacher {t_channels}. Such a pair has '
                'no FSP ("n/a" or left out in published tables); take another method.'
            )
        s_sizes, t_sizes = ([shape[1:] for shape in side] for side in (s_size, t_size))
        if self.match_sizes and s_sizes != t_sizes:
            raise ValueError(
                'FSP takes inner products over positions, so both networks need maps of equal '
                f'height and width; the student has {s_sizes}, the teacher {t_sizes}. Such a pair '
                'has no FSP; take another method, or match_sizes=False, which compares means over '
                'different positions.'
            )


def flows(maps: Sequence[Tensor]) -> list[Tensor]:
    """Return ``(B, C_{i+1}, C_i)``, means over positions, for each pair of neighbouring maps."""
    matrices = []
    for pair in zip(maps, maps[1:]):
        bottom, top = (x.flatten(2) for x in match_heights(*pair))
        matrices.append(top @ bottom.mT / bottom.size(2))
    return matrices
