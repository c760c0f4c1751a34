"""What runs around the models: hooks, loops and metrics."""

from .hooks.checkpoint_hook import CheckpointHook
from .hooks.cocord_hook import CoCoRDHook
from .hooks.finite_loss_hook import FiniteLossHook
from .hooks.live_view_hook import LiveViewHook
from .hooks.memory_bank_hook import MemoryBankHook
from .hooks.named_samples_hook import NamedSamplesHook
from .hooks.random_state_hook import RandomStateHook
from .hooks.strict_loading_hook import StrictLoadingHook
from .loops.staged_train_loop import StagedTrainLoop
from .metrics.segmentation_metric import SegmentationMetric

__all__ = [
    'CheckpointHook',
    'CoCoRDHook',
    'FiniteLossHook',
    'LiveViewHook',
    'MemoryBankHook',
    'NamedSamplesHook',
    'RandomStateHook',
    'SegmentationMetric',
    'StagedTrainLoop',
    'StrictLoadingHook',
]
