"""Data preprocessors."""

from .multi_view_preprocessor import MultiViewPreprocessor
from .resident_data_preprocessor import ResidentDataPreprocessor
from .view_preprocessor import ViewPreprocessor

__all__ = ['MultiViewPreprocessor', 'ResidentDataPreprocessor', 'ViewPreprocessor']
