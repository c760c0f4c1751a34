"""Several teachers as one."""

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from mmengine.model import BaseModel, ModuleList
from mmrazor.registry import MODELS as RAZOR_MODELS
from torch import nn

from ..recorders.classifier_recorders import MemberRecorder
from .checkpoints import load_pretrained
from .network_images import network_images

Member: TypeAlias = BaseModel | Mapping[str, Any]


class TeacherEnsemble(BaseModel):
    """Run several frozen teachers, one after the other, on the same images.

    ``FrozenTeacherDistill`` builds it of its arguments. A recorder finds the modules of member i
    under ``members.i``; ``crd_plugin.PenultimateFeature`` and ``crd_plugin.Logits`` record all.
    """

    def __init__(
        self,
        teacher: Member | Sequence[Member],
        checkpoints: str | Sequence[str | None] | None = None,
    ) -> None:
        super().__init__()
        several = isinstance(teacher, Sequence)
        checkpoints = [checkpoints] if isinstance(checkpoints, str) else checkpoints
        members: list[Any] = list(teacher) if several else [teacher] * len(checkpoints or ())
        if not members:
            raise ValueError(
                f'{"teacher" if several else "teacher_ckpt"} is an empty list, so the ensemble has '
                'no member; give one checkpoint per member.'
            )
        _check_checkpoints(members, checkpoints)
        self.members = ModuleList(
            RAZOR_MODELS.build(member) if isinstance(member, Mapping) else copy.deepcopy(member)
            for member in members
        )
        for number, (member, checkpoint) in enumerate(zip(self.members, checkpoints or ())):
            if checkpoint:
                try:
                    load_pretrained(member, checkpoint, 'teacher')
                except ValueError as error:
                    raise ValueError(f'Member {number} of the ensemble: {error}') from error

    def prepare(self, distiller: Any, own: nn.Module, view: nn.Module | dict | None) -> None:
        """Adapt images to each member; refuse a loss that would be given the first one alone."""
        self.images = nn.ModuleList(network_images(member, own, view) for member in self.members)
        number = len(self.members)
        for loss, mapping in distiller.loss_forward_mappings.items() if number > 1 else ():
            for key, record in mapping.items():
                if record['from_student'] or 'record_idx' in record:
                    continue
                if isinstance(find_recorder(distiller, record), MemberRecorder):
                    raise ValueError(
                        f'loss_forward_mappings.{loss}.{key} does not say which of the {number} '
                        "teachers it takes; set record_idx='all' for a loss of ensembles, such as "
                        f'EnsembleCRDLoss, or an index from 0 to {number - 1}.'
                    )

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = 'tensor') -> list[Any]:
        """Return what each member returns for images ``(B, C, H, W)``."""
        return [
            member(images(inputs), data_samples, mode=mode)
            for member, images in zip(self.members, self.images)
        ]


def find_recorder(distiller: Any, record: Mapping[str, Any]) -> Any:
    """Return the recorder that a record of a loss names."""
    side = 'student' if record['from_student'] else 'teacher'
    return getattr(distiller, f'{side}_recorders').get_recorder(record['recorder'])


def _check_checkpoints(members: list[Any], checkpoints: Sequence[str | None] | None) -> None:
    """Require one checkpoint per member, each another file, or none at all."""
    if checkpoints is None:
        return
    if len(checkpoints) != len(members):
        raise ValueError(
            f'teacher has {len(members)} members, teacher_ckpt {len(checkpoints)} checkpoints '
            f'({list(checkpoints)}); give one per member, in their order.'
        )
    known: dict[str, int] = {}
    for number, (member, checkpoint) in enumerate(zip(members, checkpoints)):
        if checkpoint:
            path = checkpoint if '://' in checkpoint else os.path.realpath(checkpoint)
            if known.setdefault(path, number) != number:
                raise ValueError(
                    f'teacher_ckpt[{known[path]}] and teacher_ckpt[{number}] are the same file, '
                    f'{checkpoint}; give each member its own, for example of another seed.'
                )
            continue
        brings = member.get('init_cfg') if isinstance(member, Mapping) else member.init_cfg
        if any(checkpoints) and not brings:
            raise ValueError(
                f'teacher_ckpt[{number}] is {checkpoint!r}, so member {number} of the ensemble '
                'has no checkpoint; give its file, or leave the member out.'
            )
