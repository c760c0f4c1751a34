"""Factor transfer."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crd_plugin.ops import absolute_power, attention_vector, full_precision, match_heights
from crd_plugin.ops.features import Features
from crd_plugin.registry import MODELS

from .._numbers import not_negative, positive
from ._common import SizedLoss, check_built, check_given


@MODELS.register_module()
class FTLoss(SizedLoss):
    """Factor transfer.

    A paraphraser, an autoencoder of the teacher's last map, is trained first
    (:meth:`reconstruction`) and then frozen. Its code, the teacher's factor, is compared with the
    output of a translator of the student's map, which is trained together with the student:
    ``L = mean |q_s - q_t|^p2``, q the unit vector of ``mean over c of |F|^p1``, the higher factor
    pooled to the lower one.

    Source: Kim et al., arXiv:1802.04977, section 3; numbers of HobbitLong/RepDistiller
    ``distiller_zoo/FT.py`` and ``models/util.py``. The paper compares all channels of a factor.

    Args:
        s_channels (int, optional): Channels of the student's map. Defaults to None: inferred by
            ``FrozenTeacherDistill``.
        t_channels (int, optional): Channels of the teacher's map. Defaults to None: inferred.
        rate (float): Channels of a factor, as a fraction of the teacher's. Defaults to 0.5.
        p1 (float): Power of an activation. Defaults to 2.
        p2 (float): Power of the difference. Defaults to 1.
        reconstruction_weight (float): Factor of :meth:`reconstruction`. Defaults to 1.0, as
            published.
        loss_weight (float): Factor of the loss. Defaults to 1.0 (published: 200).

    Shape:
        One map each, ``(B, C_s, H, W)`` and ``(B, C_t, H, W)``.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If an argument is not a number where one is expected.
    """

    published_layer = '-1, the last map before pooling'

    def __init__(
        self,
        s_channels: int | None = None,
        t_channels: int | None = None,
        rate: float = 0.5,
        p1: float = 2,
        p2: float = 1,
        reconstruction_weight: float = 1.0,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(loss_weight)
        self.rate = positive('rate', rate, 0.5)
        self.p1 = positive('p1', p1, 2)
        self.p2 = positive('p2', p2, 1)
        self.reconstruction_weight = not_negative('reconstruction_weight', reconstruction_weight)
        self.set_sizes(s_channels=s_channels, t_channels=t_channels)

    def compare_layer(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss, without its factor; no gradient reaches the paraphraser."""
        with torch.no_grad():
            factor_t = self.paraphraser.get_submodule('encoder')(teacher)
        return factor_loss(self.translator(student), factor_t, self.p1, self.p2)

    def reconstruction(self, t_feats: Features) -> Tensor:
        """Compute the paraphraser's mean squared error, the loss of the first stage.

        Args:
            t_feats (Tensor | Sequence[Tensor]): Teacher's map, ``(B, C_t, H, W)``, or a sequence of
                one such map.

        Returns:
            Tensor: Scalar, multiplied by ``reconstruction_weight``.

        Raises:
            ValueError: If the channels are not those of the paraphraser.
        """
        check_built(self, *self.sizes)
        ((_, teacher),) = self.pair(t_feats, t_feats)
        check_given('t_channels', self.sizes['t_channels'], (teacher.size(1),))
        restored = full_precision(self.paraphraser(teacher))
        return self.reconstruction_weight * F.mse_loss(restored, teacher)

    def build(self, s_size: tuple[int], t_size: tuple[int]) -> None:
        """Make paraphraser and translator."""
        channels, width = t_size[0], int(t_size[0] * self.rate)
        if width < 1:
            raise ValueError(
                f'rate is {self.rate}, of {channels} teacher channels it leaves none; take a '
                'larger one (published: 0.5).'
            )
        encoder = _convolutions(nn.Conv2d, channels, channels, width, width)
        decoder = _convolutions(nn.ConvTranspose2d, width, width, channels, channels)
        self.paraphraser = nn.Sequential(OrderedDict(encoder=encoder, decoder=decoder))
        encoder = _convolutions(nn.Conv2d, *s_size, *s_size, width, width, batch_norm=True)
        self.translator = nn.Sequential(OrderedDict(encoder=encoder))


def factor_loss(factor_s: Tensor, factor_t: Tensor, p1: float, p2: float) -> Tensor:
    """Compare two factors ``(B, C, H, W)`` of any channels and sizes by their attention."""
    factor_s, factor_t = match_heights(full_precision(factor_s), full_precision(factor_t))
    gap = attention_vector(factor_s, p1) - attention_vector(factor_t, p1)
    return absolute_power(gap, p2).mean()


def _convolutions(
    convolution: type[nn.Module], *widths: int, batch_norm: bool = False
) -> nn.Sequential:
    """Make 3x3 convolutions from each width to the next."""
    layers: list[nn.Module] = []
    for pair in zip(widths, widths[1:]):
        # An identity stands in for a missing batch norm, as the published keys count it.
        norm = nn.BatchNorm2d(pair[1]) if batch_norm else nn.Identity()
        layers += [convolution(*pair, 3, padding=1), norm, nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers)
