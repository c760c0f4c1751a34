"""Layers between a recorded feature and a loss."""

from .conv_regressor import ConvRegressor
from .dense_embedding_connector import DenseEmbeddingConnector
from .embedding_connector import EmbeddingConnector

__all__ = ['ConvRegressor', 'DenseEmbeddingConnector', 'EmbeddingConnector']
