"""Distillation algorithms."""

from .cocord_distill import CoCoRDDistill
from .frozen_teacher_distill import FrozenTeacherDistill
from .linear_probe import LinearProbe
from .online_ensemble_distill import OnlineEnsembleDistill
from .staged_distill import StagedDistill

__all__ = [
    'CoCoRDDistill',
    'FrozenTeacherDistill',
    'LinearProbe',
    'OnlineEnsembleDistill',
    'StagedDistill',
]
