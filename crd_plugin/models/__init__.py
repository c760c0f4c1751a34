"""Models: algorithms, backbones, heads, necks, connectors, losses, recorders, the memory bank.

A class is imported when it is first asked for. Losses, connectors, bank and queue come first: they
need torch and MMEngine alone, so that a loop of one's own imports neither MMPretrain nor MMRazor.
"""

from typing import TYPE_CHECKING

from crd_plugin._lazy import lazy_names

if TYPE_CHECKING:
    from .algorithms import *  # noqa: F403
    from .backbones import *  # noqa: F403
    from .connectors import *  # noqa: F403
    from .data_preprocessors import *  # noqa: F403
    from .heads import *  # noqa: F403
    from .key_queue import KeyQueue  # noqa: F401
    from .losses import *  # noqa: F403
    from .memory_bank import MemoryBank  # noqa: F401
    from .necks import *  # noqa: F403
    from .recorders import *  # noqa: F403
    from .sharded_bank import ShardedBank  # noqa: F401
    from .views import *  # noqa: F403

MODULES = tuple(
    f'{__name__}.{module}'
    for module in (
        'losses',
        'connectors',
        'memory_bank',
        'sharded_bank',
        'key_queue',
        'recorders',
        'data_preprocessors',
        'views',
        'backbones',
        'heads',
        'necks',
        'algorithms',
    )
)

__getattr__, __dir__ = lazy_names(__name__, MODULES)
