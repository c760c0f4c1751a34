"""What runs around the models: hooks and loops."""

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

__all__ = [
    'CheckpointHook',
    'CoCoRDHook',
    'FiniteLossHook',
    'LiveViewHook',
    'MemoryBankHook',
    'RandomStateHook',
    'StagedTrainLoop',
    'StrictLoadingHook',
]
