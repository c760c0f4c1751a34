"""Models: algorithms, backbones, connectors, losses, recorders, the memory bank."""

from . import algorithms, backbones, connectors, data_preprocessors, losses, recorders
from .algorithms import *  # noqa: F403
from .backbones import *  # noqa: F403
from .connectors import *  # noqa: F403
from .data_preprocessors import *  # noqa: F403
from .key_queue import KeyQueue
from .losses import *  # noqa: F403
from .memory_bank import MemoryBank
from .recorders import *  # noqa: F403
from .sharded_bank import ShardedBank

__all__ = ['KeyQueue', 'MemoryBank', 'ShardedBank']
__all__ += algorithms.__all__
__all__ += backbones.__all__
__all__ += connectors.__all__
__all__ += data_preprocessors.__all__
__all__ += losses.__all__
__all__ += recorders.__all__
