"""Projection of the feature at each location to a unit embedding."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from crd_plugin.registry import MODELS

from .embedding_connector import EmbeddingConnector


@MODELS.register_module()
class DenseEmbeddingConnector(EmbeddingConnector):
    """Project the feature at each location of a map, or each token, as EmbeddingConnector does.

    All locations share the layers, as in a 1x1 convolution. For
    :class:`~crd_plugin.models.losses.DenseCRDLoss`.

    Args:
        in_channels (int, optional): Channels C. Defaults to None: inferred by
            ``FrozenTeacherDistill`` when the model is built.
        embed_dim (int): Width D of the embedding. Defaults to 128.
        head (str): As for :class:`EmbeddingConnector`. Defaults to ``'linear'``.
        init_cfg (dict, optional): Initialisation config.

    Shape:
        Input: a map ``(B, C, H, W)`` or tokens ``(B, N, C)``; a tuple of one such tensor is
        accepted. Output: ``(B, D, H, W)`` or ``(B, N, D)``, float32, with unit L2 norm over D.

    Raises:
        ValueError: If an argument, the width or the shape of a feature does not fit.
    """

    def infer_width(self, feature: Tensor | Sequence[Tensor]) -> None:
        """Take ``in_channels`` from a feature, as given to ``forward``, and build the layers."""
        self._build(_channels_last(feature).size(-1))

    def forward(self, feature: Tensor | Sequence[Tensor]) -> Tensor:
        """Embed every location of a batch of features.

        Args:
            feature (Tensor): ``(B, C, H, W)`` or ``(B, N, C)``.

        Returns:
            Tensor: ``(B, D, H, W)`` or ``(B, N, D)``.

        Raises:
            ValueError: If the feature has another shape or number of channels.
        """
        x = _channels_last(feature)
        embedding = super().forward(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
        return embedding.movedim(-1, 1) if x.dim() == 4 else embedding


def _channels_last(feature: Tensor | Sequence[Tensor]) -> Tensor:
    """Return ``(B, H, W, C)`` of a map, ``(B, N, C)`` of tokens."""
    features = [feature] if isinstance(feature, Tensor) else feature
    if len(features) != 1 or features[0].dim() not in (3, 4):
        raise ValueError(
            f'The feature has shape {", ".join(str(tuple(one.shape)) for one in features)}, '
            'expected one map (B, C, H, W) or the tokens (B, N, C) of a transformer; choose one '
            'with data_idx in loss_forward_mappings, or use crd_plugin.EmbeddingConnector for a '
            'feature (B, C) of the whole image.'
        )
    return features[0].movedim(1, -1) if features[0].dim() == 4 else features[0]
