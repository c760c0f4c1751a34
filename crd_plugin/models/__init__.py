"""Models: algorithms, backbones, connectors, losses, recorders, the bank."""

from .algorithms import CoCoRDDistill, FrozenTeacherDistill, OnlineEnsembleDistill, StagedDistill
from .backbones import (
    CIFARVGG,
    CIFARFourStageResNet,
    CIFARMobileNetV2,
    CIFARResNet,
    CIFARShuffleNetV1,
    CIFARShuffleNetV2,
    CIFARWideResNet,
    ImageNetResNet,
)
from .connectors import EmbeddingConnector
from .data_preprocessors import ResidentDataPreprocessor
from .key_queue import KeyQueue
from .losses import CKTFLoss, CoCoRDLoss, CRDLoss
from .memory_bank import MemoryBank
from .recorders import SampleFieldRecorder
from .sharded_bank import ShardedBank

__all__ = [
    'CIFARFourStageResNet',
    'CIFARMobileNetV2',
    'CIFARResNet',
    'CIFARShuffleNetV1',
    'CIFARShuffleNetV2',
    'CIFARVGG',
    'CIFARWideResNet',
    'CKTFLoss',
    'CRDLoss',
    'CoCoRDDistill',
    'CoCoRDLoss',
    'EmbeddingConnector',
    'FrozenTeacherDistill',
    'ImageNetResNet',
    'KeyQueue',
    'MemoryBank',
    'OnlineEnsembleDistill',
    'ResidentDataPreprocessor',
    'SampleFieldRecorder',
    'ShardedBank',
    'StagedDistill',
]
