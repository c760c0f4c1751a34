"""Recorders for MMRazor's distillers."""

from .backbone_recorders import BlockOutputsRecorder, StageOutputsRecorder
from .classifier_recorders import LogitsRecorder, PenultimateFeatureRecorder
from .sample_field_recorder import SampleFieldRecorder

__all__ = [
    'BlockOutputsRecorder',
    'LogitsRecorder',
    'PenultimateFeatureRecorder',
    'SampleFieldRecorder',
    'StageOutputsRecorder',
]
