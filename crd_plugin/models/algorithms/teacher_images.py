"""The images that a teacher is given: normalised as those that it was trained on."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ['TeacherImages', 'check_student_images', 'teacher_images']


class Normalisation(NamedTuple):
    """What a data preprocessor does to the channels of an image."""

    mean: Tensor  # (C, 1, 1)
    std: Tensor
    flips: bool  # exchanges the first and the last of three channels


class TeacherImages(nn.Module):
    """Change the normalisation of images from the student's to the teacher's.

    One multiplication and one addition per pixel on the device; images keep their size.

    Args:
        student (Normalisation): What has been done to the images.
        teacher (Normalisation): What the teacher was trained with.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, student: Normalisation, teacher: Normalisation) -> None:
        super().__init__()
        self.flips = student.flips != teacher.flips
        mean, std = (x.flip(0) if self.flips else x for x in (student.mean, student.std))
        # Not part of a checkpoint: they follow from the config.
        self.register_buffer('scale', std / teacher.std, persistent=False)
        self.register_buffer('shift', (mean - teacher.mean) / teacher.std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Change images ``(B, C, H, W)``."""
        if self.flips:
            images = images.flip(1)
        return torch.addcmul(self.shift.to(images.dtype), images, self.scale.to(images.dtype))


def teacher_images(teacher: nn.Module, own: nn.Module) -> nn.Module:
    """Return what turns the images of ``own`` into those that the teacher was trained on.

    Args:
        teacher (nn.Module): The teacher; its ``data_preprocessor`` counts if it has a mean.
        own (nn.Module): Data preprocessor of the distillation.

    Returns:
        nn.Module: From images to images; ``nn.Identity`` if nothing is to be changed.

    Raises:
        ValueError: If the teacher asks for another number of channels.
    """
    asked = getattr(teacher, 'data_preprocessor', None)
    theirs, given = _normalisation(asked), _normalisation(own)
    if theirs is None or given is not None and _equal(theirs, given):
        return nn.Identity()
    if given is None:  # bare images
        given = Normalisation(
            torch.zeros_like(theirs.mean), torch.ones_like(theirs.std), _flips(own)
        )
    channels = {len(theirs.mean), len(given.mean)} - {1}  # one value counts for all
    if len(channels) > 1:
        raise ValueError(
            f'teacher.data_preprocessor has {len(theirs.mean)} channels, the data_preprocessor of '
            f'the distillation {len(given.mean)}; both networks see the same images, so give both '
            'as many.'
        )
    return TeacherImages(given, theirs)


def check_student_images(student: nn.Module, own: nn.Module) -> None:
    """Refuse a data preprocessor of the student that would have no effect.

    Args:
        student (nn.Module): The student.
        own (nn.Module): Data preprocessor of the distillation.

    Raises:
        ValueError: If the student's own one differs, or mixes images.
    """
    asked = getattr(student, 'data_preprocessor', None)
    if asked is own:  # MMRazor takes the student's where the config gives none
        return
    # Mixup and the like act in the preprocessor of the distillation only.
    if getattr(asked, 'batch_augments', None) is not None:
        raise ValueError(
            'architecture mixes images (train_cfg.augments or data_preprocessor.batch_augments), '
            'which has no effect in a distillation; remove it there and set '
            'data_preprocessor.batch_augments of the config.'
        )
    theirs, given = _normalisation(asked), _normalisation(own)
    if theirs is not None and (given is None or not _equal(theirs, given)):
        raise ValueError(
            'architecture.data_preprocessor has a mean and a std, which have no effect in a '
            'distillation; set them in data_preprocessor of the config.'
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
    """Whether two normalisations are the same."""
    return one.flips == other.flips and one.mean.equal(other.mean) and one.std.equal(other.std)
