"""Data set wrappers, and data sets that mmpretrain lacks."""

from .digits import Digits
from .fashion_mnist import FashionMNIST
from .files_to_rgb import FilesToRGB
from .multi_view_pipeline import MultiViewPipeline
from .nyu_depth_v2 import NYUDepthV2
from .resident import ResidentDataset, whole_batch
from .sample_index import SampleIndexDataset
from .stl10 import STL10
from .tiny_imagenet import TinyImageNet200

__all__ = [
    'Digits',
    'FashionMNIST',
    'FilesToRGB',
    'MultiViewPipeline',
    'NYUDepthV2',
    'ResidentDataset',
    'STL10',
    'SampleIndexDataset',
    'TinyImageNet200',
    'whole_batch',
]
