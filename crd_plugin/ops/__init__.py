"""Pure tensor functions of distillation. Needs torch alone."""

from .bank import initial_rows, last_occurrence, momentum_rows
from .contrast import ContrastResult, critic_loss, info_nce, log_partition, nce
from .diagnostics import alignment, gradient_norm, uniformity
from .features import (
    absolute_power,
    attention_vector,
    full_precision,
    match_heights,
    no_autocast,
    pair_logits,
    pair_maps,
    pair_vectors,
    prediction_distance,
    unit_vectors,
)
from .lab import rgb_to_lab
from .negatives import (
    Negatives,
    RowKeys,
    Shards,
    class_keys,
    draw_negatives,
    given_negatives,
    row_keys,
)
from .pairing import block_cosines, pad_channels, pool_flat, unit_over_batch
from .queue import enqueue, move_averages, queue_logits
from .singular_vectors import right_singular_vectors

__all__ = [
    'ContrastResult',
    'Negatives',
    'RowKeys',
    'Shards',
    'absolute_power',
    'alignment',
    'attention_vector',
    'block_cosines',
    'class_keys',
    'critic_loss',
    'draw_negatives',
    'enqueue',
    'full_precision',
    'given_negatives',
    'gradient_norm',
    'info_nce',
    'initial_rows',
    'last_occurrence',
    'log_partition',
    'match_heights',
    'momentum_rows',
    'move_averages',
    'nce',
    'no_autocast',
    'pad_channels',
    'pair_logits',
    'pair_maps',
    'pair_vectors',
    'pool_flat',
    'prediction_distance',
    'queue_logits',
    'rgb_to_lab',
    'right_singular_vectors',
    'row_keys',
    'uniformity',
    'unit_over_batch',
    'unit_vectors',
]
