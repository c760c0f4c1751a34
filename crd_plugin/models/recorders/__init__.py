"""Recorders for MMRazor's distillers."""
from .sample_field_recorder import SampleFieldRecorder

__all__ = ['SampleFieldRecorder']
