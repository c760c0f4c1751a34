"""Bases of the losses that compare features."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from crd_plugin.ops import no_autocast, pair_maps
from crd_plugin.ops.features import Features

from .._numbers import not_negative
from ..connectors.conv_regressor import Shape, check_shape

Pairs = Sequence[tuple[Tensor, Tensor]]
Widths = int | Sequence[int]
Shapes = tuple[Shape, ...]


class FeatureLoss(nn.Module):
    """Base of losses that compare features of the student with the teacher's, in full precision.

    A subclass defines :meth:`compare_layer`, or :meth:`compare` if layers depend on each other.

    Args:
        loss_weight (float): Factor of the loss. Defaults to 1.0.

    Attributes:
        pairing (Callable): ``pair_maps``, or ``pair_vectors`` or ``pair_logits`` of one feature.
        min_samples (int): Samples that it needs to compare them with each other.
        takes_stages (bool): It is meant for several stages; the dry run refuses one.
        before_activation (bool): It compares signs before the activation; the dry run refuses maps
            without a negative value.

    Raises:
        ValueError, TypeError: If ``loss_weight`` is negative, not finite or not a number.
    """

    pairing: Callable[..., Any] = staticmethod(pair_maps)
    min_samples = 1
    takes_stages = False
    before_activation = False

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = not_negative('loss_weight', loss_weight)

    def forward(self, s_feats: Features, t_feats: Features) -> Tensor:
        """Compute the loss of one batch; the shapes are those of the class's docstring.

        Args:
            s_feats (Tensor | Sequence[Tensor]): Student's features, one tensor or one per layer.
            t_feats (Tensor | Sequence[Tensor]): Teacher's, as many; no gradient reaches them.

        Returns:
            Tensor: Sum over the layers times ``loss_weight``, scalar float32 (float64 for float64).

        Raises:
            ValueError: If layers or shapes cannot be paired, or do not fit the loss.
        """
        pairs = self.pair(s_feats, t_feats)
        with no_autocast(pairs[0][0]):
            return self.loss_weight * self.compare(pairs)

    def pair(self, s_feats: Features, t_feats: Features) -> Pairs:
        """Return student's and teacher's features of each layer, float32, the latter detached."""
        found = self.pairing(s_feats, t_feats)
        pairs = found if isinstance(found, list) else [found]
        samples = len(pairs[0][0])
        if samples < self.min_samples:
            raise ValueError(
                f's_feats has {samples} sample, expected at least {self.min_samples}: '
                f'{type(self).__name__} compares samples with each other; set '
                'train_dataloader.drop_last=True, or another batch_size.'
            )
        return pairs

    def compare(self, pairs: Pairs) -> Tensor:
        """Compute the loss of all layers, without its factor."""
        return torch.stack([self.compare_layer(*pair) for pair in pairs]).sum()

    def compare_layer(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss of one layer, without its factor."""
        raise NotImplementedError


class SizedLoss(FeatureLoss):
    """Base of losses that are built for the sizes of student's and teacher's features.

    The sizes are two arguments of the subclass. Where the config leaves them out,
    ``FrozenTeacherDistill`` sends images through the networks and calls :meth:`infer_width`. A
    subclass ends its ``__init__`` with :meth:`set_sizes` and defines :meth:`build`. Under autocast
    its layers may run in half precision.

    Attributes:
        by_shape (bool): A size is channels, height and width of a map; otherwise channels alone.
        published_layer (str, optional): If the loss takes a single map, the one in the paper.
        needs_width (bool): Whether a size, and so the layers, are still missing.
        sizes (dict): The student's and the teacher's size by argument, layer by layer; None where
            unknown.
    """

    by_shape = False
    published_layer: str | None = None
    needs_width = True
    sizes: dict[str, tuple | None]

    def set_sizes(self, **sizes: Any) -> None:
        """Check and store the student's and the teacher's size; build if both are known."""
        single = self.published_layer is not None or self.pairing is not pair_maps
        check = _shapes if self.by_shape else _widths
        self.sizes = {
            name: None if size is None else check(name, size, single)
            for name, size in sizes.items()
        }
        self._build_if_known()

    def _build_if_known(self) -> None:
        (s_name, s_size), (t_name, t_size) = self.sizes.items()
        if s_size is None or t_size is None:
            return
        if len(s_size) != len(t_size):
            raise ValueError(
                f'{s_name} has {len(s_size)} layers and {t_name} {len(t_size)}, expected as many.'
            )
        self.build(s_size, t_size)
        self.needs_width = False

    def infer_width(self, s_feats: Features, t_feats: Features) -> None:
        """Build the layers for the sizes of a pair of features, as for :meth:`forward`."""
        found = self._measure(self.pair(s_feats, t_feats))
        for name, size in zip(self.sizes, found):
            check_given(name, self.sizes[name], size)
            self.sizes[name] = size
        if self.needs_width:
            self._build_if_known()

    def forward(self, s_feats: Features, t_feats: Features) -> Tensor:
        """As for :class:`FeatureLoss`, with autocast left to the layers."""
        pairs = self.pair(s_feats, t_feats)
        self.check(pairs)
        return self.loss_weight * self.compare(pairs)

    def pair(self, s_feats: Features, t_feats: Features) -> Pairs:
        """Return the features as the base class does; a loss of one layer takes no more."""
        pairs = super().pair(s_feats, t_feats)
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

    def check(self, pairs: Pairs) -> None:
        """Raise a ValueError unless the layers were built for features of these sizes."""
        check_built(self, *self.sizes)
        for (name, known), size in zip(self.sizes.items(), self._measure(pairs)):
            # Images may be larger than input_shape: then heights are compared behind the layers.
            if not (self.by_shape and _channels(known) == _channels(size)):
                check_given(name, known, size)

    def _measure(self, pairs: Pairs) -> list[tuple]:
        sides = zip(*pairs)
        if self.by_shape:
            return [tuple(tuple(x.shape[1:]) for x in side) for side in sides]
        return [tuple(x.size(1) for x in side) for side in sides]


def check_given(name: str, given: tuple | None, found: tuple | None) -> None:
    """Raise a ValueError if a size given in the config is not that of the features."""
    if given is not None and given != found:
        raise ValueError(
            f'{name} is {_short(given)}, but the recorded features have {_short(found)}; set '
            f'{name}={_short(found)}, or leave it out to infer it.'
        )


def check_built(loss: Any, *arguments: str) -> None:
    """Raise a ValueError if a loss has no layers yet, because these arguments are missing."""
    if loss.needs_width:
        raise ValueError(
            f'{" and ".join(arguments)} of {type(loss).__name__} are not known: give them in the '
            'config, or use crd_plugin.FrozenTeacherDistill, which infers them when the model is '
            'built.'
        )


def _widths(name: str, value: Any, single: bool) -> tuple[int, ...]:
    """Check one number of channels per layer, or exactly one."""
    several = tuple(value) if isinstance(value, Sequence) else (value,)
    if not several or not all(type(n) is int and n > 0 for n in several):
        raise ValueError(
            f'{name} is {value!r}, expected a positive number of channels, or a list with one for '
            'each layer.'
        )
    if single and len(several) > 1:
        raise ValueError(f'{name} is {value!r}, expected one width: the loss takes one layer.')
    return several


def _shapes(name: str, value: Any, single: bool) -> Shapes:
    """Check channels, height and width of each map, or of exactly one."""
    if single:
        return (check_shape(name, value),)
    if not isinstance(value, Sequence) or not value:
        raise ValueError(
            f'{name} is {value}, expected a list with channels, height and width of each layer.'
        )
    return tuple(check_shape(f'{name}[{i}]', shape) for i, shape in enumerate(value))


def _channels(shapes: tuple | None) -> list[int]:
    return [shape[0] for shape in shapes or ()]


def _short(size: tuple | None) -> Any:
    """Leave out the brackets of a single layer, for messages."""
    return size[0] if size and len(size) == 1 else size
