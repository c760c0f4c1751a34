"""Projection of a feature to a unit embedding."""

from typing import Optional, Sequence, Union

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from crd_plugin.models._numbers import count
from crd_plugin.registry import MODELS


@MODELS.register_module()
class EmbeddingConnector(BaseModule):
    """Project a feature to D dimensions and normalise it to unit length.

    Source: Tian et al., arXiv:1910.10699, section 3.1 (linear head);
    behaviour matched: HobbitLong/RepDistiller ``crd/criterion.py`` and, for
    the other heads, kaiqi123/CKTF. Both sides have one and both are trained.
    Differs: the norm is bounded by 1e-12 from below, so a zero feature gives
    a zero embedding instead of NaN.

    Args:
        in_channels (int, optional): Values a sample, after flattening.
            Defaults to None: inferred by ``FrozenTeacherDistill`` when the
            model is built.
        embed_dim (int): Width D of the embedding. Defaults to 128.
        head (str): ``'linear'``: one linear layer; ``'mlp'``: two with a ReLU
            between and the input's width inside; ``'pad'``: no parameters,
            zeros on both sides (or values cut off on both sides).
        init_cfg (dict, optional): Initialisation config.

    Shape:
        Input: ``(B, in_channels)`` or ``(B, C, H, W)``, flattened in that
        order; a tuple of one such tensor, as necks return, is accepted.
        Output: ``(B, D)`` float32 with unit L2 norm.

    Raises:
        ValueError: If an argument or the width of a feature does not fit.
    """

    def __init__(
        self,
        in_channels: Optional[int] = None,
        embed_dim: int = 128,
        head: str = 'linear',
        init_cfg: Optional[dict] = None,
    ) -> None:
        super().__init__(init_cfg)
        count('embed_dim', embed_dim, ' (published: 128)')
        if in_channels is not None:
            count('in_channels', in_channels)
        self.in_channels = in_channels
        self.embed_dim = embed_dim
        self.head = head
        if head == 'linear':
            self.linear = _linear(in_channels, embed_dim)
        elif head == 'mlp':
            if in_channels is None:
                # The hidden width is the input's; known with it.
                self.linear1 = self.linear2 = None
            else:
                self._build_mlp(in_channels)
        elif head == 'pad':
            self._check_pad(in_channels)
        else:
            raise ValueError(f"head is {head!r}, expected 'linear', 'mlp' or 'pad'.")

    @property
    def needs_width(self) -> bool:
        """bool: ``in_channels`` is still to be taken from a feature."""
        return self.in_channels is None

    @torch.no_grad()
    def infer_width(self, feature: Union[Tensor, Sequence[Tensor]]) -> None:
        """Take ``in_channels`` from a feature and make the layers.

        Args:
            feature (Tensor): As given to :meth:`forward`.
        """
        width = _flatten(feature).size(1)
        self.in_channels = width
        if self.head == 'linear':
            self.linear = _linear(width, self.embed_dim)
        elif self.head == 'mlp':
            self._build_mlp(width)
        else:
            self._check_pad(width)

    def forward(self, feature: Union[Tensor, Sequence[Tensor]]) -> Tensor:
        """Embed a batch of features.

        Args:
            feature (Tensor): ``(B, in_channels)`` or ``(B, C, H, W)``.

        Returns:
            Tensor: ``(B, D)`` float32 (float64 for float64 input), unit norm.
        """
        x = _flatten(feature)
        if self.needs_width:
            raise ValueError(
                'in_channels of EmbeddingConnector is not known: give it in '
                'the config, or use crd_plugin.FrozenTeacherDistill, which '
                'infers it when the model is built.'
            )
        if x.size(1) != self.in_channels:
            raise ValueError(
                f'The feature has {x.size(1)} values a sample, '
                f'EmbeddingConnector has in_channels={self.in_channels}; set '
                f'in_channels={x.size(1)}, or leave it out to infer it.'
            )
        if self.head == 'linear':
            x = self.linear(x)
        elif self.head == 'mlp':
            x = self.linear2(F.relu(self.linear1(x)))
        else:
            side = _pad_width(self.in_channels, self.embed_dim)
            x = F.pad(x, (side, side))
        # In float16 the sum of squares of a large feature overflows.
        x = x if x.dtype == torch.float64 else x.float()
        return F.normalize(x, dim=1)

    def _build_mlp(self, width: int) -> None:
        """Make the two layers of the ``'mlp'`` head."""
        self.linear1 = _linear(width, width)
        self.linear2 = _linear(width, self.embed_dim)

    def _check_pad(self, width: Optional[int]) -> None:
        """Equal padding on both sides needs an even difference."""
        if width is not None and (self.embed_dim - width) % 2:
            raise ValueError(
                f"head='pad' cannot bring {width} values to embed_dim="
                f'{self.embed_dim}: the difference must be even; use '
                f"embed_dim={self.embed_dim + 1} or head='linear'."
            )


def _linear(in_features: Optional[int], out_features: int) -> nn.Module:
    """A linear layer, or none while its input width is unknown."""
    return None if in_features is None else nn.Linear(in_features, out_features)


def _pad_width(width: int, embed_dim: int) -> int:
    """Zeros on each side; negative where values are cut off."""
    return (embed_dim - width) // 2


def _flatten(feature: Union[Tensor, Sequence[Tensor]]) -> Tensor:
    """Bring a feature to ``(B, values)``."""
    if isinstance(feature, (tuple, list)):
        if len(feature) != 1:
            raise ValueError(
                f'The recorded feature is a sequence of {len(feature)} '
                'tensors, EmbeddingConnector takes one; choose it with '
                'data_idx in loss_forward_mappings.'
            )
        feature = feature[0]
    if feature.dim() < 2:
        raise ValueError(
            f'The feature has shape {tuple(feature.shape)}, expected (B, channels) or (B, C, H, W).'
        )
    return feature.flatten(1)
