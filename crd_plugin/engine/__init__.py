"""What runs around the models: hooks and loops."""

from .hooks import CheckpointHook, CoCoRDHook, MemoryBankHook, RandomStateHook
from .loops import StagedTrainLoop

__all__ = [
    'CheckpointHook',
    'CoCoRDHook',
    'MemoryBankHook',
    'RandomStateHook',
    'StagedTrainLoop',
]
