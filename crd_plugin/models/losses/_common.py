"""Argument checks of the losses, and the base of those that are built for the features' sizes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from crd_plugin.models._numbers import count, finite, positive
from crd_plugin.ops import pair_maps
from crd_plugin.ops.features import Features

from ..connectors.conv_regressor import ConvRegressor, Shape, check_shape

__all__ = [
    'Shapes',
    'SizedLoss',
    'Widths',
    'channels_of',
    'check_given',
    'count',
    'finite',
    'not_inferred',
    'positive',
    'shapes',
    'shapes_of',
    'widths',
]

Widths = int | Sequence[int]
Shapes = tuple[Shape, ...]


def channels_of(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[tuple, tuple]:
    """Return the channels of student's and teacher's features, layer by layer."""
    return tuple(s.size(1) for s, _ in pairs), tuple(t.size(1) for _, t in pairs)


def shapes_of(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[tuple, tuple]:
    """Return channels, height and width of student's and teacher's maps, layer by layer."""
    return tuple(tuple(s.shape[1:]) for s, _ in pairs), tuple(tuple(t.shape[1:]) for _, t in pairs)


class SizedLoss(nn.Module):
    """Base of losses that are built for the sizes of student's and teacher's features.

    The sizes are two arguments of the subclass, one number or shape per layer. Where the config
    leaves them out, ``FrozenTeacherDistill`` sends images through the networks and calls
    :meth:`infer_width`. A subclass ends its ``__init__`` with :meth:`set_sizes` and defines
    :meth:`build`.

    Attributes:
        measure (Callable): The sizes of pairs of features: ``channels_of`` or ``shapes_of``.
        published_layer (str, optional): If the loss takes a single layer, the one in the paper.
        needs_width (bool): Whether a size, and so the layers, are still missing.
        sizes (dict): The student's and the teacher's size by argument; None where unknown.
    """

    measure = staticmethod(channels_of)
    published_layer: str | None = None

    def __init__(self) -> None:
        super().__init__()
        self.needs_width = True
        self.sizes: dict[str, tuple | None] = {}

    def set_sizes(self, **sizes: tuple | None) -> None:
        """Store the student's and the teacher's size; build the layers if both are known."""
        self.sizes = sizes
        if None not in sizes.values():
            self.build(*sizes.values())
            self.needs_width = False

    def infer_width(self, s_feats: Features, t_feats: Features) -> None:
        """Build the layers for the sizes of a pair of features.

        Args:
            s_feats (Tensor | Sequence[Tensor]): Student's features, as for ``forward``.
            t_feats (Tensor | Sequence[Tensor]): Teacher's features, as for ``forward``.

        Raises:
            ValueError: If a size given in the config differs.
        """
        found = dict(zip(self.sizes, self.measure(self.pair(s_feats, t_feats))))
        for name, size in found.items():
            check_given(name, self.sizes[name], size)
        self.set_sizes(**found)

    def pair(self, s_feats: Features, t_feats: Features) -> list[tuple[Tensor, Tensor]]:
        """Return student's and teacher's features of each layer, float32, the latter detached."""
        pairs = pair_maps(s_feats, t_feats)
        if self.published_layer and len(pairs) != 1:
            raise ValueError(
                f's_feats and t_feats have {len(pairs)} layers, {type(self).__name__} takes one '
                'map of each; choose it with data_idx in loss_forward_mappings (published: '
                f'{self.published_layer}).'
            )
        return pairs

    def build(self, s_size: Any, t_size: Any) -> None:
        """Make the layers."""
        raise NotImplementedError

    def check_sizes(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Raise a ValueError unless the layers were built for features of these sizes."""
        self._check_built()
        for (name, built), size in zip(self.sizes.items(), self.measure(pairs)):
            check_given(name, built, size)

    def check_fits(
        self, layers: Iterable[nn.Module], pairs: Sequence[tuple[Tensor, Tensor]]
    ) -> None:
        """Raise a ValueError unless each layer leads from the student's to the teacher's shape.

        The shapes may differ from those that the layers were built for if the same layers would be
        built for them: images may be larger than ``input_shape``.
        """
        self._check_built()
        layers = list(layers)
        s_shapes, t_shapes = shapes_of(pairs)
        fits = len(layers) == len(pairs) and all(
            layer.fits(s, t) if isinstance(layer, ConvRegressor) else s == t
            for layer, s, t in zip(layers, s_shapes, t_shapes)
        )
        if not fits:
            built_for = ' and '.join(f'{name}={_short(x)}' for name, x in self.sizes.items())
            raise ValueError(
                'Channels, heights and widths of s_feats and t_feats are '
                f'{_short(s_shapes)} and {_short(t_shapes)}, but the layers were made for '
                f'{built_for}; set model.input_shape to the size of the training images.'
            )

    def _check_built(self) -> None:
        """Raise a ValueError if there are no layers yet."""
        if self.needs_width:
            raise not_inferred(type(self).__name__, ' and '.join(self.sizes))


def check_given(name: str, given: tuple | None, found: tuple) -> None:
    """Raise a ValueError if a size given in the config is not that of the features."""
    if given is not None and given != found:
        raise ValueError(
            f'{name} is {_short(given)}, but the recorded features have {_short(found)}; set '
            f'{name}={_short(found)}, or leave it out to infer it.'
        )


def not_inferred(loss: str, arguments: str) -> ValueError:
    """Make the error for a loss whose layers were never built, as these arguments are missing."""
    return ValueError(
        f'{arguments} of {loss} are not known: give them in the config, or use '
        'crd_plugin.FrozenTeacherDistill, which infers them when the model is built.'
    )


def widths(name: str, value: Widths | None, single: bool = False) -> tuple[int, ...] | None:
    """Check one number of channels per layer, or exactly one; None stays None."""
    if value is None:
        return None
    several = tuple(value) if isinstance(value, Sequence) else (value,)
    if not several or not all(type(n) is int and n > 0 for n in several):
        raise ValueError(
            f'{name} is {value!r}, expected a positive number of channels, or a list with one for '
            'each layer.'
        )
    if single and len(several) > 1:
        raise ValueError(f'{name} is {value!r}, expected one width: the loss takes one layer.')
    return several


def shapes(name: str, value: Sequence[Sequence[int]] | None) -> Shapes | None:
    """Check channels, height and width of each map; None stays None."""
    if value is None:
        return None
    if not isinstance(value, Sequence) or not value:
        raise ValueError(
            f'{name} is {value}, expected a list with channels, height and width of each layer.'
        )
    return tuple(check_shape(f'{name}[{i}]', shape) for i, shape in enumerate(value))


def _short(size: tuple | None) -> Any:
    """Leave out the brackets of a single layer, for messages."""
    return size[0] if size and len(size) == 1 else size
