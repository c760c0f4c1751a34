"""Hooks."""

from .checkpoint_hook import CheckpointHook
from .cocord_hook import CoCoRDHook
from .finite_loss_hook import FiniteLossHook
from .live_view_hook import LiveViewHook
from .memory_bank_hook import MemoryBankHook
from .random_state_hook import RandomStateHook
from .strict_loading_hook import StrictLoadingHook

__all__ = [
    'CheckpointHook',
    'CoCoRDHook',
    'FiniteLossHook',
    'LiveViewHook',
    'MemoryBankHook',
    'RandomStateHook',
    'StrictLoadingHook',
]
