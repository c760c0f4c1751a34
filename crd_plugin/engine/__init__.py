"""What runs around the models: hooks and loops."""

from .hooks import CoCoRDHook, MemoryBankHook, RandomStateHook
from .loops import StagedTrainLoop

__all__ = ['CoCoRDHook', 'MemoryBankHook', 'RandomStateHook', 'StagedTrainLoop']
