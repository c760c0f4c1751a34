"""Data preprocessors."""

from .multi_view_preprocessor import MultiViewPreprocessor
from .resident_data_preprocessor import ResidentDataPreprocessor

__all__ = ['MultiViewPreprocessor', 'ResidentDataPreprocessor']
