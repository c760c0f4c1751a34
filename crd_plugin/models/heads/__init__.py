"""Heads that mmpretrain lacks."""

from .segmentation_head import SegmentationHead

__all__ = ['SegmentationHead']
