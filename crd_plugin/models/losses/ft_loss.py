"""Factors of the teacher's last map, paraphrased and translated."""

from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crd_plugin.ops import (
    absolute_power,
    attention_vector,
    full_precision,
    match_heights,
    pair_maps,
)
from crd_plugin.registry import MODELS

from ._common import check_given, finite, not_inferred, positive, widths


@MODELS.register_module()
class FTLoss(nn.Module):
    r"""Factor transfer.

    A paraphraser, an autoencoder of the teacher's last map, is trained first
    (:meth:`reconstruction`) and then frozen. Its code, the teacher's factor,
    is compared with that of a translator on the student's map, which is
    trained together with the student:

    .. math::
        L = \frac{1}{B H W} \sum \big| q_S - q_T \big|^{p_2}, \quad
        q = \frac{v}{\lVert v \rVert_2}, \quad
        v = \frac{1}{C} \sum_c |F_c|^{p_1}

    Factors of unequal height are reduced to the lower one by average pooling.

    Source: Kim et al., arXiv:1802.04977, section 3; numbers of
    HobbitLong/RepDistiller ``distiller_zoo/FT.py`` and ``models/util.py``,
    which collapse a factor to one map (q above) where the paper compares all
    its channels. ``mmrazor.FTLoss`` compares all channels, has no p_1 and
    p_2, and its paraphraser needs a run of its own.

    Args:
        s_channels (int, optional): Channels of the student's map. Defaults to
            None: inferred by ``FrozenTeacherDistill``.
        t_channels (int, optional): Those of the teacher's map. Defaults to
            None: inferred.
        rate (float): Channels of a factor, a fraction of the teacher's.
            Defaults to 0.5.
        p1 (float): Power of an activation. Defaults to 2.
        p2 (float): Power of the difference. Defaults to 1.
        reconstruction_weight (float): Factor of :meth:`reconstruction`.
            Defaults to 1.0, as published.
        loss_weight (float): Factor of the loss. Defaults to 1.0 (published:
            200).

    Shape:
        s_feats, t_feats: ``(B, C, H, W)``. Output: scalar float32 (float64
        for float64 maps).

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If one is no number where a number is expected.
    """

    def __init__(
        self,
        s_channels: Optional[int] = None,
        t_channels: Optional[int] = None,
        rate: float = 0.5,
        p1: float = 2,
        p2: float = 1,
        reconstruction_weight: float = 1.0,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.rate = positive('rate', rate, 0.5)
        self.p1 = positive('p1', p1, 2)
        self.p2 = positive('p2', p2, 1)
        self.reconstruction_weight = finite('reconstruction_weight', reconstruction_weight)
        self.loss_weight = finite('loss_weight', loss_weight)
        self.s_channels = _width('s_channels', s_channels)
        self.t_channels = _width('t_channels', t_channels)
        self.paraphraser: Optional[Paraphraser] = None
        self.translator: Optional[nn.Module] = None
        if self.s_channels and self.t_channels:
            self._build()

    @property
    def needs_width(self) -> bool:
        """bool: Both networks are still to be made from features."""
        return self.paraphraser is None

    def infer_width(self, s_feats: Tensor, t_feats: Tensor) -> None:
        """Take the channels from a pair of maps and make both networks.

        Args:
            s_feats (Tensor): As given to :meth:`forward`.
            t_feats (Tensor): Likewise.

        Raises:
            ValueError: If channels of the config differ.
        """
        student, teacher = _pair(s_feats, t_feats)
        self._check('s_channels', self.s_channels, student)
        self._check('t_channels', self.t_channels, teacher)
        self.s_channels, self.t_channels = student.size(1), teacher.size(1)
        self._build()

    def forward(self, s_feats: Tensor, t_feats: Tensor) -> Tensor:
        """Loss of one batch; no gradient reaches the paraphraser.

        Args:
            s_feats (Tensor): Student's map, ``(B, C_s, H, W)``.
            t_feats (Tensor): Teacher's map, ``(B, C_t, H, W)``.

        Returns:
            Tensor: Scalar, already multiplied by ``loss_weight``.

        Raises:
            ValueError: If the channels are not those of the networks.
        """
        student, teacher = _pair(s_feats, t_feats)
        if self.needs_width:
            raise not_inferred('FTLoss', 's_channels and t_channels')
        self._check('s_channels', self.s_channels, student)
        self._check('t_channels', self.t_channels, teacher)
        with torch.no_grad():
            factor_t = self.paraphraser.encoder(teacher)
        factor_s = self.translator.encoder(student)
        return self.loss_weight * factor_loss(factor_s, factor_t, self.p1, self.p2)

    def reconstruction(self, t_feats: Tensor) -> Tensor:
        """Mean squared error of the paraphraser, the loss of a first stage.

        Args:
            t_feats (Tensor): Teacher's map, ``(B, C_t, H, W)``.

        Returns:
            Tensor: Scalar, already multiplied by ``reconstruction_weight``.

        Raises:
            ValueError: If the channels are not those of the paraphraser.
        """
        _, teacher = _pair(t_feats, t_feats)
        if self.needs_width:
            raise not_inferred('FTLoss', 's_channels and t_channels')
        self._check('t_channels', self.t_channels, teacher)
        restored = full_precision(self.paraphraser(teacher))
        return self.reconstruction_weight * F.mse_loss(restored, teacher)

    def _build(self) -> None:
        """Make paraphraser and translator."""
        width = int(self.t_channels * self.rate)
        if width < 1:
            raise ValueError(
                f'rate is {self.rate}, of {self.t_channels} teacher channels '
                'it leaves none; take a larger one (published: 0.5).'
            )
        self.paraphraser = Paraphraser(self.t_channels, width)
        self.translator = Translator(self.s_channels, width)

    @staticmethod
    def _check(name: str, given: Optional[int], feature: Tensor) -> None:
        """Channels of the config, or of the networks, against a map's."""
        check_given(name, None if given is None else (given,), (feature.size(1),))


class Paraphraser(nn.Module):
    """Autoencoder of a map: three convolutions each way, no batch norm.

    Args:
        channels (int): Channels of the map.
        width (int): Channels of the code.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.encoder = _encoder(channels, width, batch_norm=False)
        layers = []
        for pair in ((width, width), (width, channels), (channels, channels)):
            layers += [nn.ConvTranspose2d(*pair, 3, padding=1), nn.Identity(), nn.LeakyReLU(0.1)]
        self.decoder = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct a map, ``(B, channels, H, W)``."""
        return self.decoder(self.encoder(x))


class Translator(nn.Module):
    """Encoder of the student's map, with batch norm.

    Args:
        channels (int): Channels of the map.
        width (int): Channels of the factor.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.encoder = _encoder(channels, width, batch_norm=True)

    def forward(self, x: Tensor) -> Tensor:
        """Factor ``(B, width, H, W)`` of a map ``(B, channels, H, W)``."""
        return self.encoder(x)


def factor_loss(factor_s: Tensor, factor_t: Tensor, p1: float = 2, p2: float = 1) -> Tensor:
    """Difference of two factors.

    Args:
        factor_s (Tensor): Student's factor, ``(B, C, H, W)``.
        factor_t (Tensor): Teacher's factor; channels and size may differ.
        p1 (float): Power of an activation. Defaults to 2.
        p2 (float): Power of the difference. Defaults to 1.

    Returns:
        Tensor: Mean over batch and positions, a scalar.
    """
    factor_s, factor_t = match_heights(full_precision(factor_s), full_precision(factor_t))
    gap = attention_vector(factor_s, p1) - attention_vector(factor_t, p1)
    return gap.abs().mean() if p2 == 1 else absolute_power(gap, p2).mean()


def _encoder(channels: int, width: int, batch_norm: bool) -> nn.Sequential:
    """Three 3x3 convolutions, the second of which changes the width.

    Without batch norm its place stays empty: the published keys count it.
    """
    layers = []
    for pair in ((channels, channels), (channels, width), (width, width)):
        layers += [
            nn.Conv2d(*pair, 3, padding=1),
            nn.BatchNorm2d(pair[1]) if batch_norm else nn.Identity(),
            nn.LeakyReLU(0.1),
        ]
    return nn.Sequential(*layers)


def _width(name: str, value: Optional[int]) -> Optional[int]:
    """One number of channels, or None."""
    several = widths(name, value)
    if several is not None and len(several) > 1:
        raise ValueError(
            f'{name} is {value}, expected one number of channels: factor transfer has one layer.'
        )
    return several and several[0]


def _pair(s_feats: Tensor, t_feats: Tensor) -> Tuple[Tensor, Tensor]:
    """The one map of each side."""
    pairs = pair_maps(s_feats, t_feats)
    if len(pairs) != 1:
        raise ValueError(
            f's_feats and t_feats have {len(pairs)} layers, FTLoss takes one '
            'map of each; choose it with data_idx in loss_forward_mappings '
            '(published: -1, the last map before pooling).'
        )
    return pairs[0]
