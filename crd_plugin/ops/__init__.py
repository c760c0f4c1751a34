"""Pure tensor functions of distillation. Needs torch alone."""

from .bank import (
    initial_pieces,
    initial_rows,
    last_occurrence,
    momentum_rows,
    pack_update,
    unpack_update,
)
from .batch_contrast import batch_info_nce, batch_log_total, batch_nce, batch_weights
from .contrast import ContrastResult, info_nce, log_partition, nce, scores
from .features import (
    absolute_power,
    attention_vector,
    full_precision,
    match_heights,
    no_autocast,
    pair_maps,
    pair_vectors,
    unit_vectors,
)
from .moving_average import move_averages
from .negatives import (
    LabelIndex,
    Negatives,
    all_negatives,
    build_label_index,
    draw_negatives,
    shared_negatives,
)
from .pairing import block_cosines, pad_channels, pool_flat, unit_over_batch
from .prediction import prediction_distance
from .queue import enqueue, queue_logits
from .shards import (
    Shard,
    ShardNegatives,
    build_shard,
    draw_shard,
    given_shard,
    info_nce_of_sums,
    log_partition_of_sums,
    merge_softmax,
    nce_of_sums,
    shard_nce,
    shard_size,
    shard_softmax,
)
from .singular_vectors import right_singular_vectors
from .tiles import prepare

__all__ = [
    'ContrastResult',
    'LabelIndex',
    'Negatives',
    'Shard',
    'ShardNegatives',
    'absolute_power',
    'all_negatives',
    'attention_vector',
    'batch_info_nce',
    'batch_log_total',
    'batch_nce',
    'batch_weights',
    'block_cosines',
    'build_label_index',
    'build_shard',
    'draw_negatives',
    'draw_shard',
    'enqueue',
    'full_precision',
    'given_shard',
    'info_nce',
    'info_nce_of_sums',
    'initial_pieces',
    'initial_rows',
    'last_occurrence',
    'log_partition',
    'log_partition_of_sums',
    'match_heights',
    'merge_softmax',
    'momentum_rows',
    'move_averages',
    'nce',
    'nce_of_sums',
    'no_autocast',
    'pack_update',
    'pad_channels',
    'pair_maps',
    'pair_vectors',
    'pool_flat',
    'prediction_distance',
    'prepare',
    'queue_logits',
    'right_singular_vectors',
    'scores',
    'shard_nce',
    'shard_size',
    'shard_softmax',
    'shared_negatives',
    'unit_over_batch',
    'unit_vectors',
    'unpack_update',
]
