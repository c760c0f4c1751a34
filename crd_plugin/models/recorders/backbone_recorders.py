"""Recorders of the maps inside a backbone: one per stage, or one per block."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any

from mmrazor.models.task_modules import ModuleOutputsRecorder
from torch import Tensor, nn

from crd_plugin.models._numbers import one_of
from crd_plugin.registry import TASK_UTILS


def find_module(model: nn.Module, source: str) -> nn.Module:
    """Return the module of that name, or raise a ValueError that names the source."""
    modules = dict(model.named_modules())
    if source not in modules:
        raise ValueError(
            f"source='{source}' is not a module of the {type(model).__name__}; expected a name "
            f'such as {", ".join(name for name, _ in model.named_children()) or "backbone"}.'
        )
    return modules[source]


class InnerMapsRecorder(ModuleOutputsRecorder):
    """Record, per call of a backbone, what its modules returned meanwhile.

    A subclass names them by ``inner_names(backbone)`` and makes a record of their maps by
    ``collect(backbone, outputs, maps)``.
    """

    inner_names: Callable[[nn.Module], Sequence[str]]
    collect: Callable[[nn.Module, Any, dict[str, Tensor]], Any]

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self._maps: dict[str, Tensor] = {}

    def prepare_from_model(self, model: Any = None) -> None:
        """Register hooks on the backbone and its modules."""
        backbone = find_module(model, self.source)
        for name in self.inner_names(backbone):
            # Not a closure: a copy of the model gets a copy of this hook.
            backbone.get_submodule(name).register_forward_hook(partial(self._keep, name))
        backbone.register_forward_hook(self.forward_hook)

    def forward_hook(self, module: nn.Module, inputs: tuple, outputs: Any) -> None:
        """Record one call."""
        if self.recording:
            maps, self._maps = self._maps, {}
            self.data_buffer.append(self.collect(module, outputs, maps))

    def _keep(self, name: str, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        """Keep the last map of a module until the backbone returns."""
        if self.recording:
            self._maps[name] = output

    def __exit__(self, exc_type, exc_value, traceback) -> None:
        """Stop recording and drop the maps of an unfinished call."""
        super().__exit__(exc_type, exc_value, traceback)
        self._maps = {}


@TASK_UTILS.register_module()
class StageOutputsRecorder(InnerMapsRecorder):
    """Record one map for each stage that a backbone returns, a tuple per call.

    The map that the head reads, which some backbones append, is no stage and left out, so that
    index -1 is the last stage everywhere. In a distiller:
    ``dict(type='crd_plugin.StageOutputs', source='backbone')``.

    Args:
        source (str): Name of the backbone in the model. Its ``out_indices`` tell how many stages
            it returns.
        stem (bool): Put the map before the first stage in front: the output of the module that
            the backbone calls ``stem_name``, else of ``relu``. Defaults to False.

    Raises:
        ValueError: If the model has no such backbone, or the backbone no stem.
        TypeError: If the backbone does not return a tuple of maps.
    """

    def __init__(self, source: str, stem: bool = False) -> None:
        super().__init__(source)
        self.stem = stem

    def inner_names(self, backbone: nn.Module) -> list[str]:
        """Return the name of the stem, if wanted."""
        name = getattr(backbone, 'stem_name', 'relu')
        if self.stem and not hasattr(backbone, name):
            raise ValueError(
                f"stem=True, but {type(backbone).__name__} has no module '{name}'; give the class "
                'an attribute stem_name, the name of the module whose output is the first '
                "stage's input."
            )
        return [name] if self.stem else []

    def collect(
        self, backbone: nn.Module, outputs: Any, maps: dict[str, Tensor]
    ) -> tuple[Tensor, ...]:
        """Return the stem's map, if wanted, and those of the stages."""
        if not isinstance(outputs, (tuple, list)):
            raise TypeError(
                f'{type(backbone).__name__} returns {type(outputs).__name__}, expected a tuple '
                'with one map per stage; set its out_indices.'
            )
        stages = outputs[: len(getattr(backbone, 'out_indices', outputs))]
        return (*maps.values(), *stages)


@TASK_UTILS.register_module()
class BlockOutputsRecorder(InnerMapsRecorder):
    """Record the output of every block, a tuple with one entry per stage and call.

    A backbone names its blocks by a property ``block_names``: for each stage the modules whose
    last output in a forward pass is a block's, as kaiqi123/CKTF records them: ``CIFARResNet`` and
    ``CIFARVGG`` after the ReLU, ``CIFARWideResNet`` the residual sum. MMPretrain's ResNets need no
    such property. In a distiller: ``dict(type='crd_plugin.BlockOutputs', source='backbone')``.

    Args:
        source (str): Name of the backbone in the model.
        blocks (str): ``'all'``: an entry is the tuple of the maps of all blocks; ``'last'``: the
            map of the last one. Defaults to ``'all'``.

    Raises:
        ValueError: If ``blocks`` is not one of the allowed values, the model has no such
            backbone, or the backbone has no blocks to pair.
        RuntimeError: If the backbone did not call one of its blocks.
    """

    def __init__(self, source: str, blocks: str = 'all') -> None:
        super().__init__(source)
        self.blocks = one_of('blocks', blocks, ('all', 'last'))

    def inner_names(self, backbone: nn.Module) -> list[str]:
        """Return the names of the blocks, and keep them stage by stage."""
        last = slice(-1, None) if self.blocks == 'last' else slice(None)
        self._names = tuple(tuple(stage)[last] for stage in _block_names(backbone))
        return list(chain(*self._names))

    def collect(self, backbone: nn.Module, outputs: Any, maps: dict[str, Tensor]) -> tuple:
        """Return the maps stage by stage."""
        missing = [name for name in chain(*self._names) if name not in maps]
        if missing:
            raise RuntimeError(
                f'{type(backbone).__name__} did not call its block {missing[0]}; with '
                'pre_activation=True the last block of a stage is not called as a whole: leave '
                'that out.'
            )
        if self.blocks == 'last':
            return tuple(maps[name] for (name,) in self._names)
        return tuple(tuple(maps[name] for name in stage) for stage in self._names)


def _block_names(backbone: nn.Module) -> Any:
    """Return the names of the blocks within the backbone, stage by stage."""
    names = getattr(backbone, 'block_names', None) or [
        [f'{stage}.{name}' for name, _ in backbone.get_submodule(stage).named_children()]
        for stage in getattr(backbone, 'res_layers', ())  # MMPretrain's ResNets have these.
    ]
    if not names:
        raise ValueError(
            f'{type(backbone).__name__} has no blocks to pair, as ResNets, wide ResNets and VGGs '
            'have (the published code refuses MobileNet and ShuffleNet too); give a backbone of '
            'your own a property block_names: for each stage a tuple of names of modules.'
        )
    return names
