"""Models: algorithms, backbones, connectors, losses, recorders, the bank."""
from .algorithms import FrozenTeacherDistill
from .backbones import CIFARResNet
from .connectors import EmbeddingConnector
from .losses import CRDLoss
from .memory_bank import MemoryBank
from .recorders import SampleFieldRecorder

__all__ = [
    'CIFARResNet', 'CRDLoss', 'EmbeddingConnector', 'FrozenTeacherDistill',
    'MemoryBank', 'SampleFieldRecorder'
]
