"""``init_cfg=dict(type='Pretrained', ...)``, made strict."""

from mmengine.logging import MMLogger
from mmengine.model import weight_init
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from crd_plugin.compat import load_checkpoint

from .checkpoints import find_weights, fit_weights, load_strictly, shorten

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm)


class PretrainedInit(weight_init.PretrainedInit):
    """Refuse a checkpoint that fits in part, of which MMEngine only warns.

    Parts that the network does not have, such as a classifier or ``norm3`` of a backbone that
    returns other stages, are left out; norm layers that the checkpoint does not have stay as they
    are. The log names both.
    """

    def __call__(self, module: nn.Module) -> None:
        """Load the weights into a module."""
        source = f'init_cfg.checkpoint={self.checkpoint}'
        weights = find_weights(load_checkpoint(self.checkpoint, self.map_location), source)
        if self.prefix is not None:
            start = f'{self.prefix.rstrip(".")}.'
            parts = dict.fromkeys(name.partition('.')[0] for name in weights)
            weights = {n.removeprefix(start): v for n, v in weights.items() if n.startswith(start)}
            if not weights:
                raise ValueError(
                    f'{source} has nothing under prefix={self.prefix!r}; its names begin with '
                    f'{shorten(parts)}.'
                )
        weights, own = fit_weights(weights, module, source), module.state_dict()
        parts = dict.fromkeys(name.partition('.')[0] for name in own)
        left_out = [name for name in weights if name.partition('.')[0] not in parts]
        kept = [name for name in own if name not in weights and _is_norm(module, name)]
        if left_out or kept:
            weights = {name: weights[name] for name in weights if name not in left_out}
            weights.update({name: own[name] for name in kept})
            MMLogger.get_current_instance().info(
                f'{source}: left out {shorten(left_out)}; not in the file, so as they were: '
                f'{shorten(kept)}.'
            )
        load_strictly(
            module,
            weights,
            source,
            f'this {type(module).__name__}',
            "Give the config that it was saved from (depth, widths), or init_cfg.prefix='backbone' "
            'for the backbone of another network.',
        )
        if hasattr(module, '_params_init_info'):
            weight_init.update_init_info(module, init_info=self._get_init_info())


def use_pretrained_init() -> None:
    """Let MMEngine initialise with :class:`PretrainedInit` in this process; for tools."""
    WEIGHT_INITIALIZERS.register_module(name='Pretrained', module=PretrainedInit, force=True)


def _is_norm(module: nn.Module, name: str) -> bool:
    """Tell whether a parameter or buffer is that of a norm layer."""
    return isinstance(module.get_submodule(name.rpartition('.')[0]), _NORMS)
