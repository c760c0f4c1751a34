"""Recorders that know an ensemble of teachers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mmrazor.models.task_modules import ModuleOutputsRecorder
from torch import nn


def members_of(model: Any) -> Iterable[Any]:
    """Return the members of an ensemble, or any other model as its only member."""
    members = getattr(model, 'members', None)
    return members if isinstance(members, nn.ModuleList) else [model]


class MemberRecorder(ModuleOutputsRecorder):
    """Record each member of an ensemble: ``record_idx`` is its index, ``'all'`` a list of all."""

    def get_record_data(self, record_idx: int | str = 0, data_idx: int | None = None) -> Any:
        """Return the record of one member, or a list of the records of all members."""
        if record_idx == 'all':
            return list(self.data_buffer)
        return super().get_record_data(record_idx, data_idx)
