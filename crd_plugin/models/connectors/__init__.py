"""Layers between a recorded feature and a loss."""
from .embedding_connector import EmbeddingConnector

__all__ = ['EmbeddingConnector']
