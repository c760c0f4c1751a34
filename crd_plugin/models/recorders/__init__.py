"""Recorders for MMRazor's distillers."""

from .block_outputs_recorder import BlockOutputsRecorder
from .logits_recorder import LogitsRecorder
from .penultimate_feature_recorder import PenultimateFeatureRecorder
from .sample_field_recorder import SampleFieldRecorder
from .stage_outputs_recorder import StageOutputsRecorder

__all__ = [
    'BlockOutputsRecorder',
    'LogitsRecorder',
    'PenultimateFeatureRecorder',
    'SampleFieldRecorder',
    'StageOutputsRecorder',
]
