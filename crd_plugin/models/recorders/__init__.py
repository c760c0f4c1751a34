"""Recorders for MMRazor's distillers."""
from .sample_field_recorder import SampleFieldRecorder
from .stage_outputs_recorder import StageOutputsRecorder

__all__ = ['SampleFieldRecorder', 'StageOutputsRecorder']
