"""Layers between a recorded feature and a loss."""

from .conv_regressor import ConvRegressor
from .embedding_connector import DenseEmbeddingConnector, EmbeddingConnector

__all__ = ['ConvRegressor', 'DenseEmbeddingConnector', 'EmbeddingConnector']
