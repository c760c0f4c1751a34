"""Recorder of what each block of a backbone's stages returns."""

from __future__ import annotations

from functools import partial
from typing import Any

from mmrazor.models.task_modules import ModuleOutputsRecorder
from torch import Tensor, nn

from crd_plugin.registry import TASK_UTILS

from .stage_outputs_recorder import find_backbone


@TASK_UTILS.register_module()
class BlockOutputsRecorder(ModuleOutputsRecorder):
    """Record the output of every block, stage by stage.

    A backbone names its blocks by a property ``block_names``: for each stage the modules whose
    last output in a forward pass is a block's. Ours have it where blocks are what kaiqi123/CKTF
    records: ``CIFARResNet`` and ``CIFARVGG`` after the ReLU, ``CIFARWideResNet`` the residual
    sum. MMPretrain's ResNets need no such property. In a distiller:
    ``dict(type='crd_plugin.BlockOutputs', source='backbone')``.

    Each call of the backbone leaves one record, a tuple with one entry per stage.

    Args:
        source (str): Name of the backbone in the model.
        blocks (str): ``'all'``: an entry is the tuple of the maps of all blocks, which are held
            until the next step. ``'last'``: an entry is the map of the last block, the only one
            that is held. Defaults to ``'all'``.

    Raises:
        ValueError: If ``blocks`` is not one of the allowed values, the model has no such
            backbone, or the backbone has no blocks to pair.
        RuntimeError: If the backbone did not call one of its blocks.
    """

    def __init__(self, source: str, blocks: str = 'all') -> None:
        super().__init__(source)
        if blocks not in ('all', 'last'):
            raise ValueError(f"blocks is {blocks!r}, expected 'all' or 'last'.")
        self.blocks = blocks
        self._names: tuple[tuple[str, ...], ...] = ()
        self._maps: dict[str, Tensor] = {}

    def prepare_from_model(self, model: Any = None) -> None:
        """Register hooks on the backbone and its blocks."""
        backbone = find_backbone(model, self.source)
        self._names = _block_names(backbone)
        if self.blocks == 'last':
            self._names = tuple(stage[-1:] for stage in self._names)
        for stage in self._names:
            for name in stage:
                # Not a closure: a copy of the model gets a copy of this hook.
                hook = partial(self._keep_block, name)
                backbone.get_submodule(name).register_forward_hook(hook)
        backbone.register_forward_hook(self.forward_hook)

    def forward_hook(self, module: nn.Module, inputs: tuple, outputs: Any) -> None:
        """Record the blocks of one call."""
        if not self.recording:
            return
        maps, self._maps = self._maps, {}
        missing = [name for stage in self._names for name in stage if name not in maps]
        if missing:
            raise RuntimeError(
                f'{type(module).__name__} did not call its block {missing[0]}, so its output '
                'cannot be recorded; with pre_activation=True the last block of a stage is not '
                'called as a whole: leave that out.'
            )
        stages = tuple(tuple(maps[name] for name in stage) for stage in self._names)
        last_only = self.blocks == 'last'
        self.data_buffer.append(tuple(stage[0] for stage in stages) if last_only else stages)

    def _keep_block(self, name: str, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        """Keep the last map of a block until the backbone returns."""
        if self.recording:
            self._maps[name] = output

    def __exit__(self, exc_type, exc_value, traceback) -> None:
        """Stop recording and drop the maps of an unfinished call."""
        super().__exit__(exc_type, exc_value, traceback)
        self._maps = {}


def _block_names(backbone: nn.Module) -> tuple[tuple[str, ...], ...]:
    """Return the names of the blocks within the backbone, stage by stage."""
    names = getattr(backbone, 'block_names', None) or [
        [f'{stage}.{name}' for name, _ in backbone.get_submodule(stage).named_children()]
        for stage in getattr(backbone, 'res_layers', ())  # MMPretrain's ResNets have these.
    ]
    if not names:
        raise ValueError(
            f'{type(backbone).__name__} has no blocks to pair: they are paired within ResNets, '
            'wide ResNets and VGGs, whose stages consist of blocks of one shape; the published '
            'code refuses MobileNet and ShuffleNet too. For a backbone of your own add a property '
            'block_names: for each stage a tuple of names of modules.'
        )
    return tuple(tuple(stage) for stage in names)
