"""Necks: what a head is given of the outputs of a backbone."""

from .layer_feature import LayerFeature

__all__ = ['LayerFeature']
