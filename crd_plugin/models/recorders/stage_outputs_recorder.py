"""Recorder of a backbone's stages, one map each."""

from __future__ import annotations

from typing import Any

from mmrazor.models.task_modules import ModuleOutputsRecorder
from torch import Tensor, nn

from crd_plugin.registry import TASK_UTILS


@TASK_UTILS.register_module()
class StageOutputsRecorder(ModuleOutputsRecorder):
    """Record one map for each stage that a backbone returns.

    Some backbones append the map that the head reads, which is not a stage (``CIFARWideResNet``,
    ``CIFARMobileNetV2``, ``CIFARShuffleNetV2``, and any of ours with ``pre_activation=True``).
    This recorder leaves it out, so that index -1 is the last stage everywhere and teacher and
    student can be paired stage by stage. In a distiller:
    ``dict(type='crd_plugin.StageOutputs', source='backbone')``.

    Each call of the backbone leaves one record, a tuple of tensors.

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
        self._stem_map: tuple[Tensor, ...] = ()

    def prepare_from_model(self, model: Any = None) -> None:
        """Register hooks on the backbone and its stem."""
        backbone = find_backbone(model, self.source)
        backbone.register_forward_hook(self.forward_hook)
        if self.stem:
            name = getattr(backbone, 'stem_name', 'relu')
            stem = getattr(backbone, name, None)
            if stem is None:
                raise ValueError(
                    f"stem=True, but {type(backbone).__name__} has no module '{name}'; give the "
                    'class an attribute stem_name, the name of the module whose output is the '
                    "first stage's input."
                )
            stem.register_forward_hook(self._keep_stem)

    def forward_hook(self, module: nn.Module, inputs: tuple, outputs: Any) -> None:
        """Record the stages of one call."""
        if not self.recording:
            return
        if not isinstance(outputs, (tuple, list)):
            raise TypeError(
                f'{type(module).__name__} returns {type(outputs).__name__}, expected a tuple with '
                'one map per stage; set its out_indices.'
            )
        stages = outputs[: len(getattr(module, 'out_indices', outputs))]
        self.data_buffer.append((*self._stem_map, *stages))
        self._stem_map = ()

    def _keep_stem(self, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        """Keep the stem's map until the backbone returns."""
        if self.recording:
            self._stem_map = (output,)


def find_backbone(model: nn.Module, source: str) -> nn.Module:
    """Return the module of that name, or raise a ValueError that says what is expected."""
    modules = dict(model.named_modules())
    if source not in modules:
        raise ValueError(
            f"source='{source}' is not a module of the {type(model).__name__}; expected the name "
            "of its backbone, such as 'backbone'."
        )
    return modules[source]
