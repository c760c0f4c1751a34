"""Data set wrappers, and data sets that mmpretrain lacks."""
from .digits import Digits
from .sample_index import SampleIndexDataset
from .stl10 import STL10
from .tiny_imagenet import TinyImageNet200

__all__ = ['Digits', 'STL10', 'SampleIndexDataset', 'TinyImageNet200']
