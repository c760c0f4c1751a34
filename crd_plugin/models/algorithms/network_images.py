"""The images that each network is given: its view, normalised as it asks for."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from crd_plugin.registry import MODELS

__all__ = ['Renormalise', 'check_mixing', 'network_images']


class Normalisation(NamedTuple):
    """What a data preprocessor does to the channels of an image."""

    mean: Tensor  # (C, 1, 1)
    std: Tensor
    flips: bool  # exchanges the first and the last of three channels


class Renormalise(nn.Module):
    """Change the normalisation of images: one multiplication and one addition per pixel.

    Args:
        given (Normalisation): What has been done to the images.
        wanted (Normalisation): What should have been done.
    """

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
        """Change images.

        Args:
            images (Tensor): ``(B, C, H, W)``.

        Returns:
            Tensor: As many.

        Raises:
            ValueError: If they have another number of channels.
        """
        if images.size(1) != len(self.scale) != 1:
            raise ValueError(
                f'the images have {images.size(1)} channels, but mean and std of the '
                f'data_preprocessor {len(self.scale)} numbers; give one per channel.'
            )
        if self.flips:
            images = images.flip(1)
        return torch.addcmul(self.shift.to(images.dtype), images, self.scale.to(images.dtype))


def network_images(
    network: nn.Module,
    own: nn.Module,
    view: nn.Module | dict | None = None,
    role: str = 'teacher',
) -> nn.Module:
    """Return what turns the images of a distillation into those that a network is given.

    Without a view these are the images normalised as the network's own ``data_preprocessor`` says,
    if it has a mean. A view then picks from the bare pixels, and what it gives is normalised so.
    For a network without a mean of its own, it picks from the images as the distillation normalises
    them, unless it has an attribute ``takes_pixels``. A ``ViewPreprocessor`` of the network brings
    its own view, which follows.

    Args:
        network (nn.Module): Teacher or student.
        own (nn.Module): Data preprocessor of the distillation.
        view (nn.Module | dict, optional): From images to images, or its config. Defaults to None.
        role (str): ``'teacher'`` or ``'student'``, for messages. Defaults to ``'teacher'``.

    Returns:
        nn.Module: From images to images; ``nn.Identity`` if nothing is to be changed.

    Raises:
        ValueError: If the network asks for another number of channels and has no view.
    """
    preprocessor = getattr(network, 'data_preprocessor', None)
    theirs, given = _normalisation(preprocessor), _normalisation(own)
    views = [one for one in (view, getattr(preprocessor, 'view', None)) if one is not None]
    if views:
        steps = [MODELS.build(one) if isinstance(one, dict) else one for one in views]
        if given and (theirs or any(getattr(step, 'takes_pixels', False) for step in steps)):
            steps.insert(0, Renormalise(given, _bare(given)))
        if theirs:  # The order of the channels is the view's.
            steps.append(Renormalise(_bare(theirs), theirs))
        return nn.Sequential(*steps)
    if theirs is None or given is not None and _equal(theirs, given):
        return nn.Identity()
    given = given or _bare(theirs, _flips(own))
    channels = {len(theirs.mean), len(given.mean)} - {1}  # one value counts for all
    if len(channels) > 1:
        raise ValueError(
            f'data_preprocessor of the {role} has {len(theirs.mean)} channels, that of the '
            f'distillation {len(given.mean)}; give both as many, or pick those of the {role} by '
            f'model.{role}_view.'
        )
    return Renormalise(given, theirs)


def check_mixing(student: nn.Module, own: nn.Module) -> None:
    """Refuse a student that would mix images, which the distillation's preprocessor alone does.

    Args:
        student (nn.Module): The student.
        own (nn.Module): Data preprocessor of the distillation.

    Raises:
        ValueError: If the student's own data preprocessor mixes images.
    """
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


def _bare(like: Normalisation, flips: bool | None = None) -> Normalisation:
    """Pixels from 0 to 255 in as many channels, and in the same order if ``flips`` is left out."""
    flips = like.flips if flips is None else flips
    return Normalisation(torch.zeros_like(like.mean), torch.ones_like(like.std), flips)


def _flips(preprocessor: Any) -> bool:
    """Whether a data preprocessor exchanges red and blue, by its name in MMPretrain or MMEngine."""
    return bool(
        getattr(preprocessor, 'to_rgb', False) or getattr(preprocessor, '_channel_conversion', 0)
    )


def _equal(one: Normalisation, other: Normalisation) -> bool:
    """Whether two normalisations are the same."""
    return one.flips == other.flips and one.mean.equal(other.mean) and one.std.equal(other.std)
