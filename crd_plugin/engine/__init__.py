"""What runs around the models: hooks."""
from .hooks import MemoryBankHook, RandomStateHook

__all__ = ['MemoryBankHook', 'RandomStateHook']
