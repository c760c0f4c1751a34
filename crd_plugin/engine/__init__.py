"""What runs around the models: hooks, loops and metrics."""

from .hooks import (
    CheckpointHook,
    CoCoRDHook,
    FiniteLossHook,
    LiveViewHook,
    MemoryBankHook,
    RandomStateHook,
    StrictLoadingHook,
)
from .loops import StagedTrainLoop
from .metrics import SegmentationMetric

__all__ = [
    'CheckpointHook',
    'CoCoRDHook',
    'FiniteLossHook',
    'LiveViewHook',
    'MemoryBankHook',
    'RandomStateHook',
    'SegmentationMetric',
    'StagedTrainLoop',
    'StrictLoadingHook',
]
