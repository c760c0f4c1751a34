"""Hooks."""

from .checkpoint_hook import CheckpointHook
from .cocord_hook import CoCoRDHook
from .memory_bank_hook import MemoryBankHook
from .random_state_hook import RandomStateHook

__all__ = ['CheckpointHook', 'CoCoRDHook', 'MemoryBankHook', 'RandomStateHook']
