"""What runs around the models: hooks and loops."""

from .hooks import (
    CheckpointHook,
    CoCoRDHook,
    FiniteLossHook,
    MemoryBankHook,
    RandomStateHook,
    StrictLoadingHook,
)
from .loops import StagedTrainLoop

__all__ = [
    'CheckpointHook',
    'CoCoRDHook',
    'FiniteLossHook',
    'MemoryBankHook',
    'RandomStateHook',
    'StagedTrainLoop',
    'StrictLoadingHook',
]
