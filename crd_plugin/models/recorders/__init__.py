"""Recorders for MMRazor's distillers."""

from .block_outputs_recorder import BlockOutputsRecorder
from .sample_field_recorder import SampleFieldRecorder
from .stage_outputs_recorder import StageOutputsRecorder

__all__ = ['BlockOutputsRecorder', 'SampleFieldRecorder', 'StageOutputsRecorder']
