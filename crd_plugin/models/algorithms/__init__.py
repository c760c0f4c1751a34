"""Distillation algorithms."""

from .cocord_distill import CoCoRDDistill
from .frozen_teacher_distill import FrozenTeacherDistill
from .online_ensemble_distill import OnlineEnsembleDistill
from .staged_distill import StagedDistill

__all__ = ['CoCoRDDistill', 'FrozenTeacherDistill', 'OnlineEnsembleDistill', 'StagedDistill']
