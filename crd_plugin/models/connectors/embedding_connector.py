"""Projection of a feature, or of that at each location, to a unit embedding."""

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from crd_plugin.models._numbers import count, one_of
from crd_plugin.ops.features import Features, full_precision, single, unit_vectors
from crd_plugin.registry import MODELS


@MODELS.register_module()
class EmbeddingConnector(BaseModule):
    """Project a feature to D dimensions and normalise it to unit length.

    Source: Tian et al., arXiv:1910.10699, section 3.1 (linear head); behaviour matched:
    HobbitLong/RepDistiller ``crd/criterion.py`` and, for the other heads, kaiqi123/CKTF. Differs: a
    zero feature gives a zero embedding with a gradient of ordinary size instead of NaN.

    Args:
        in_channels (int, optional): Values per sample after flattening. Defaults to None:
            inferred by ``FrozenTeacherDistill``.
        embed_dim (int): Width D of the embedding. Defaults to 128.
        head (str): ``'linear'``: one linear layer; ``'mlp'``: two linear layers with a ReLU
            between them, the inner width being the input's; ``'pad'``: no parameters, zeros added
            (or values cut off) on both sides.
        init_cfg (dict, optional): Initialisation config.

    Shape:
        Input: ``(B, in_channels)`` or ``(B, C, H, W)``, flattened in that order; a tuple of one
        such tensor, as necks return, is accepted. Output: ``(B, D)`` with unit L2 norm, float32, or
        float64 from float64 layers.

    Raises:
        ValueError: If an argument or a feature does not fit, or its width is not known.
    """

    def __init__(
        self,
        in_channels: int | None = None,
        embed_dim: int = 128,
        head: str = 'linear',
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.embed_dim = count('embed_dim', embed_dim, ' (published: 128)')
        self.head = one_of('head', head, ('linear', 'mlp', 'pad'))
        self.in_channels: int | None = None
        if in_channels is not None:
            self._build(count('in_channels', in_channels))

    @property
    def needs_width(self) -> bool:
        """bool: Whether ``in_channels`` is still to be taken from a feature."""
        return self.in_channels is None

    @torch.no_grad()
    def infer_width(self, feature: Features) -> None:
        """Take ``in_channels`` from a feature, as given to ``forward``, and build the layers."""
        self._build(_flatten(feature).size(1))

    def forward(self, feature: Features) -> Tensor:
        """Embed a batch of features, cast to the type of the layers."""
        x = _flatten(feature)
        if self.in_channels is None:
            raise ValueError(
                'in_channels of EmbeddingConnector is not known: give it in the config, or use '
                'crd_plugin.FrozenTeacherDistill, which infers it when the model is built.'
            )
        if x.size(1) != self.in_channels:
            raise ValueError(
                f'The feature has {x.size(1)} values per sample, EmbeddingConnector has '
                f'in_channels={self.in_channels}; set in_channels={x.size(1)}, or leave it out '
                'and set model.input_shape to the size of the training images.'
            )
        if self.head == 'linear':
            x = self.linear(x.to(self.linear.weight.dtype))
        elif self.head == 'mlp':
            x = self.linear2(F.relu(self.linear1(x.to(self.linear1.weight.dtype))))
        else:
            # Negative padding cuts values off.
            side = (self.embed_dim - self.in_channels) // 2
            x = F.pad(x, (side, side))
        # In float16 the sum of squares of a large feature overflows.
        return unit_vectors(full_precision(x), dim=1)

    def _build(self, width: int) -> None:
        if self.head == 'linear':
            self.linear = nn.Linear(width, self.embed_dim)
        elif self.head == 'mlp':
            self.linear1 = nn.Linear(width, width)
            self.linear2 = nn.Linear(width, self.embed_dim)
        elif (self.embed_dim - width) % 2:
            raise ValueError(
                f"head='pad' cannot bring {width} values to embed_dim={self.embed_dim}: the "
                f"difference must be even; use embed_dim={self.embed_dim + 1} or head='linear'."
            )
        self.in_channels = width


@MODELS.register_module()
class DenseEmbeddingConnector(EmbeddingConnector):
    """Project the feature at each location of a map, or each token, as EmbeddingConnector does.

    All locations share the layers, as in a 1x1 convolution. For
    :class:`~crd_plugin.models.losses.DenseCRDLoss`.

    Args:
        *args, **kwargs: Arguments of :class:`EmbeddingConnector`; ``in_channels`` is C.

    Shape:
        Input: a map ``(B, C, H, W)`` or tokens ``(B, N, C)``; a tuple of one such tensor is
        accepted. Output: ``(B, D, H, W)`` or ``(B, N, D)``, float32, with unit L2 norm over D.

    Raises:
        ValueError: If an argument, the width or the shape of a feature does not fit.
    """

    def infer_width(self, feature: Features) -> None:
        """Take ``in_channels`` from a feature, as given to ``forward``, and build the layers."""
        self._build(_channels_last(feature).size(-1))

    def forward(self, feature: Features) -> Tensor:
        """Embed every location of a batch of features."""
        x = _channels_last(feature)
        embedding = super().forward(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
        return embedding.movedim(-1, 1) if x.dim() == 4 else embedding


def _flatten(feature: Features) -> Tensor:
    feature = single('The recorded feature', feature)
    if feature.dim() not in (2, 4):
        raise ValueError(
            f'The feature has shape {tuple(feature.shape)}, expected (B, channels) or '
            "(B, C, H, W); of a transformer's tokens take one or their mean, as "
            'crd_plugin.PenultimateFeature does.'
        )
    return feature.flatten(1)


def _channels_last(feature: Features) -> Tensor:
    """Return ``(B, H, W, C)`` of a map, ``(B, N, C)`` of tokens."""
    feature = single('The recorded feature', feature)
    if feature.dim() not in (3, 4):
        raise ValueError(
            f'The feature has shape {tuple(feature.shape)}, expected a map (B, C, H, W) or the '
            'tokens (B, N, C) of a transformer; use crd_plugin.EmbeddingConnector for a feature '
            '(B, C) of the whole image.'
        )
    return feature.movedim(1, -1) if feature.dim() == 4 else feature
