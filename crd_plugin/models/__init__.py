"""Models: algorithms, backbones, connectors, losses, recorders, the bank."""
from .algorithms import FrozenTeacherDistill
from .backbones import (CIFARVGG, CIFARFourStageResNet, CIFARMobileNetV2,
                        CIFARResNet, CIFARShuffleNetV1, CIFARShuffleNetV2,
                        CIFARWideResNet, ImageNetResNet)
from .connectors import EmbeddingConnector
from .losses import CRDLoss
from .memory_bank import MemoryBank
from .recorders import SampleFieldRecorder

__all__ = [
    'CIFARFourStageResNet', 'CIFARMobileNetV2', 'CIFARResNet',
    'CIFARShuffleNetV1', 'CIFARShuffleNetV2', 'CIFARVGG', 'CIFARWideResNet',
    'CRDLoss', 'EmbeddingConnector', 'FrozenTeacherDistill',
    'ImageNetResNet', 'MemoryBank', 'SampleFieldRecorder'
]
