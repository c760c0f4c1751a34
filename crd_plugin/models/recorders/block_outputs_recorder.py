"""Recorder of what each block of a backbone's stages returns."""

import functools
from typing import Any, Dict, Optional, Tuple

from mmrazor.models.task_modules.recorder.base_recorder import BaseRecorder
from torch import Tensor, nn

from crd_plugin.registry import TASK_UTILS


@TASK_UTILS.register_module()
class BlockOutputsRecorder(BaseRecorder):
    """Record the output of every block, stage by stage.

    A backbone names its blocks by a property ``block_names``: for each stage
    the modules whose last output in a forward pass is a block's. Ours have it
    where blocks are what kaiqi123/CKTF records: ``CIFARResNet`` and
    ``CIFARVGG`` after the ReLU, ``CIFARWideResNet`` the residual sum. Those
    of MMPretrain's ResNets are found without. In a distiller it is written
    ``dict(type='crd_plugin.BlockOutputs', source='backbone')``.

    Each call of the backbone leaves one record, a tuple with an entry a
    stage.

    Args:
        source (str): Name of the backbone in the model.
        blocks (str): ``'all'``: an entry is the tuple of the maps of all
            blocks; they are held until the next step. ``'last'``: an entry is
            the map of the last block alone, and no other is held. Defaults to
            ``'all'``.

    Raises:
        ValueError: If ``blocks`` is another word, there is no such backbone,
            or it has no blocks to be paired.
        RuntimeError: If the backbone passed a block over.
    """

    def __init__(self, source: str, blocks: str = 'all') -> None:
        super().__init__(source)
        if blocks not in ('all', 'last'):
            raise ValueError(f"blocks is {blocks!r}, expected 'all' or 'last'.")
        self.blocks = blocks
        self._names: Tuple[Tuple[str, ...], ...] = ()
        self._maps: Dict[str, Tensor] = {}
        self._recording = False

    def prepare_from_model(self, model: Optional[nn.Module] = None) -> None:
        """Look at each output of the backbone and of its blocks."""
        modules = dict(model.named_modules()) if model is not None else {}
        if self.source not in modules:
            raise ValueError(
                f"source='{self.source}' is not a module of the "
                f'{type(model).__name__}; expected the name of its backbone, '
                "such as 'backbone'."
            )
        backbone = modules[self.source]
        self._names = _block_names(backbone)
        if self.blocks == 'last':
            self._names = tuple(stage[-1:] for stage in self._names)
        for name in (name for stage in self._names for name in stage):
            # Not a closure: the model can be copied and pickled.
            hook = functools.partial(self._block_hook, name)
            backbone.get_submodule(name).register_forward_hook(hook)
        backbone.register_forward_hook(self._backbone_hook)

    def _block_hook(self, name: str, module: nn.Module, args: tuple, output: Tensor) -> None:
        """Keep the last map of one block."""
        if self._recording:
            self._maps[name] = output

    def _backbone_hook(self, module: nn.Module, args: tuple, output: Any) -> None:
        """Record the blocks of one call."""
        if not self._recording:
            return
        maps, self._maps = self._maps, {}
        missing = [name for stage in self._names for name in stage if name not in maps]
        if missing:
            raise RuntimeError(
                f'{type(module).__name__} did not call its block '
                f'{missing[0]}, so its output cannot be recorded; the last '
                'block of a stage is passed over with pre_activation=True: '
                'leave that out.'
            )
        stages = (tuple(maps[name] for name in stage) for stage in self._names)
        if self.blocks == 'last':
            stages = (stage[0] for stage in stages)
        self.data_buffer.append(tuple(stages))

    def __enter__(self) -> None:
        """Start recording."""
        super().__enter__()
        self._maps = {}
        self._recording = True

    def __exit__(self, exc_type, exc_value, traceback) -> None:
        """Stop recording."""
        super().__exit__(exc_type, exc_value, traceback)
        self._recording = False
        self._maps = {}


def _block_names(backbone: nn.Module) -> Tuple[Tuple[str, ...], ...]:
    """Names of the blocks within the backbone, stage by stage."""
    names = getattr(backbone, 'block_names', None)
    if names is None and hasattr(backbone, 'res_layers'):
        # MMPretrain's ResNet and its relatives.
        names = tuple(
            tuple(f'{stage}.{i}' for i in range(len(backbone.get_submodule(stage))))
            for stage in backbone.res_layers
        )
    if not names:
        raise ValueError(
            f'{type(backbone).__name__} has no blocks to pair: they are '
            'paired within ResNets, wide ResNets and VGGs, whose stages '
            'consist of blocks of one shape; the published code refuses '
            'MobileNet and ShuffleNet too. For a backbone of your own add a '
            'property block_names: for each stage a tuple of names of '
            'modules.'
        )
    return tuple(tuple(stage) for stage in names)
