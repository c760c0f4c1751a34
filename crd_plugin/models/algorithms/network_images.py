"""The images that each network is given: its view, normalised as it asks for."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from crd_plugin.registry import MODELS


class Normalisation(NamedTuple):
    """What a data preprocessor does to the channels of an image."""

    mean: Tensor  # (C, 1, 1)
    std: Tensor
    flips: bool  # exchanges the first and the last of three channels

    def undone(self) -> 'Normalisation':
        """Return that of pixels from 0 to 255 in the same channels and order."""
        return Normalisation(torch.zeros_like(self.mean), torch.ones_like(self.std), self.flips)


class Renormalise(nn.Module):
    """Change the normalisation of images: one multiplication and one addition per pixel."""

    scale: Tensor
    shift: Tensor

    def __init__(self, given: Normalisation, wanted: Normalisation) -> None:
        super().__init__()
        self.flips = given.flips != wanted.flips
        mean, std = (x.flip(0) if self.flips else x for x in (given.mean, given.std))
        # Not part of a checkpoint: they follow from the config.
        self.register_buffer('scale', std / wanted.std, persistent=False)
        self.register_buffer('shift', (mean - wanted.mean) / wanted.std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Change images ``(B, C, H, W)``."""
        if images.size(1) != len(self.scale) != 1:
            raise ValueError(
                f'the images have {images.size(1)} channels, but mean and std of the '
                f'data_preprocessor {len(self.scale)} numbers; give one per channel.'
            )
        if self.flips:
            images = images.flip(1)
        return torch.addcmul(self.shift.to(images.dtype), images, self.scale.to(images.dtype))


def network_images(
    network: nn.Module, own: nn.Module, view: nn.Module | dict | None = None, role: str = 'teacher'
) -> nn.Module:
    """Return what turns images that ``own`` has preprocessed into those for a network."""
    preprocessor = getattr(network, 'data_preprocessor', None)
    theirs, given = _normalisation(preprocessor), _normalisation(own)
    # That of a ViewPreprocessor of the network comes second.
    views = [one for one in (view, getattr(preprocessor, 'view', None)) if one is not None]
    if views:
        steps = [MODELS.build(one) if isinstance(one, dict) else one for one in views]
        # A view sees images as they are, but for one of pixels or what is normalised behind it.
        if given and (theirs or any(getattr(step, 'takes_pixels', False) for step in steps)):
            steps.insert(0, Renormalise(given, given.undone()))
        if theirs:  # The order of the channels is the view's.
            steps.append(Renormalise(theirs.undone(), theirs))
        return nn.Sequential(*steps)
    if theirs is None or given is not None and _equal(theirs, given):
        return nn.Identity()
    given = given or theirs.undone()._replace(flips=_flips(own))
    channels = {len(theirs.mean), len(given.mean)} - {1}  # one value counts for all
    if len(channels) > 1:
        raise ValueError(
            f'data_preprocessor of the {role} has {len(theirs.mean)} channels, that of the '
            f'distillation {len(given.mean)}; give both as many, or pick those of the {role} by '
            f'model.{role}_view.'
        )
    return Renormalise(given, theirs)


def check_mixing(student: nn.Module, own: nn.Module) -> None:
    """Refuse a student that would mix images, which the distillation's preprocessor alone does."""
    asked = getattr(student, 'data_preprocessor', None)
    # MMRazor takes the student's where the config gives none.
    if asked is not own and getattr(asked, 'batch_augments', None) is not None:
        raise ValueError(
            'architecture mixes images (train_cfg.augments or data_preprocessor.batch_augments), '
            'which has no effect in a distillation; remove it there and set '
            'data_preprocessor.batch_augments of the config.'
        )


def _normalisation(preprocessor: Any) -> Normalisation | None:
    """Read the normalisation of a data preprocessor; None if it has none."""
    if not getattr(preprocessor, '_enable_normalize', False):
        return None
    mean, std = (getattr(preprocessor, name).detach().float() for name in ('mean', 'std'))
    return Normalisation(mean, std, _flips(preprocessor))


def _flips(preprocessor: Any) -> bool:
    """Whether a data preprocessor exchanges red and blue, by its name in MMPretrain or MMEngine."""
    return bool(
        getattr(preprocessor, 'to_rgb', False) or getattr(preprocessor, '_channel_conversion', 0)
    )


def _equal(one: Normalisation, other: Normalisation) -> bool:
    return one.flips == other.flips and one.mean.equal(other.mean) and one.std.equal(other.std)
