"""Pure tensor functions of contrastive distillation. Needs torch alone."""
from .bank import (initial_rows, last_occurrence, momentum_rows, pack_update,
                   unpack_update)
from .contrast import (ContrastResult, info_nce, log_partition, nce, prepare,
                       scores)
from .negatives import (LabelIndex, Negatives, all_negatives,
                        build_label_index, draw_negatives, shared_negatives)

__all__ = [
    'ContrastResult', 'LabelIndex', 'Negatives', 'all_negatives',
    'build_label_index', 'draw_negatives', 'info_nce', 'initial_rows',
    'last_occurrence', 'log_partition', 'momentum_rows', 'nce',
    'pack_update', 'prepare', 'scores', 'shared_negatives', 'unpack_update'
]
