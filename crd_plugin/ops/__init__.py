"""Pure tensor functions of distillation. Needs torch alone."""

from .bank import initial_rows, last_occurrence, momentum_rows
from .contrast import ContrastResult, critic_loss, info_nce, nce, partition_sums
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
    check_classes,
    class_keys,
    draw_negatives,
    given_negatives,
    row_keys,
)
from .pairing import block_cosines, pad_channels, pool_flat, unit_over_batch
from .queue import enqueue, move_averages, queue_logits
from .singular_vectors import right_singular_vectors

# What is imported above.
__all__ = sorted(
    name
    for name, value in list(globals().items())
    if getattr(value, '__module__', '').startswith(f'{__name__}.')
)
