"""Recorder of a backbone's stages, one map each."""

from typing import Any, List, Optional

from mmrazor.models.task_modules.recorder.base_recorder import BaseRecorder
from torch import Tensor, nn

from crd_plugin.registry import TASK_UTILS


@TASK_UTILS.register_module()
class StageOutputsRecorder(BaseRecorder):
    """Record one map for each stage that a backbone returns.

    What a backbone returns is nearly that, but some append the map that the
    head reads, when it is no stage (``CIFARWideResNet``, ``CIFARMobileNetV2``,
    ``CIFARShuffleNetV2``, and any of ours with ``pre_activation=True``). This
    recorder leaves it out, so that index -1 is the last stage everywhere and
    teacher and student can be paired stage by stage:
    ``dict(type='crd_plugin.StageOutputs', source='backbone')``.

    Each call of the backbone leaves one record, a tuple of tensors.

    Args:
        source (str): Name of the backbone in the model. Its ``out_indices``
            tell how many stages there are.
        stem (bool): Put the map before the first stage in front: the output
            of the module that the backbone calls ``stem_name``, else of
            ``relu``. Defaults to False.

    Raises:
        ValueError: If there is no such backbone or stem.
        TypeError: If the backbone does not return a tuple of maps.
    """

    def __init__(self, source: str, stem: bool = False) -> None:
        super().__init__(source)
        self.stem = stem
        self._stem_maps: List[Tensor] = []
        self._recording = False

    def prepare_from_model(self, model: Optional[nn.Module] = None) -> None:
        """Look at each output of the backbone and of its stem."""
        modules = dict(model.named_modules()) if model is not None else {}
        if self.source not in modules:
            raise ValueError(
                f"source='{self.source}' is not a module of the "
                f'{type(model).__name__}; expected the name of its backbone, '
                "such as 'backbone'."
            )
        backbone = modules[self.source]
        backbone.register_forward_hook(self._stages_hook)
        if self.stem:
            name = getattr(backbone, 'stem_name', 'relu')
            stem = modules.get(f'{self.source}.{name}')
            if stem is None:
                raise ValueError(
                    f'stem=True, but {type(backbone).__name__} has no module '
                    f"'{name}'; give the class an attribute stem_name, the "
                    "name of the module whose output is the first stage's "
                    'input.'
                )
            stem.register_forward_hook(self._stem_hook)

    def _stem_hook(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        """Keep the stem's map until the backbone is done."""
        if self._recording:
            self._stem_maps.append(output)

    def _stages_hook(self, module: nn.Module, args: tuple, output: Any) -> None:
        """Record the stages of one call."""
        if not self._recording:
            return
        if not isinstance(output, (tuple, list)):
            raise TypeError(
                f'{type(module).__name__} returns {type(output).__name__}, '
                'expected a tuple with one map a stage; set its out_indices.'
            )
        stages = len(getattr(module, 'out_indices', output))
        record = (*self._stem_maps, *output[:stages])
        self._stem_maps = []
        self.data_buffer.append(record)

    def __enter__(self) -> None:
        """Start recording."""
        super().__enter__()
        self._stem_maps = []
        self._recording = True

    def __exit__(self, exc_type, exc_value, traceback) -> None:
        """Stop recording."""
        super().__exit__(exc_type, exc_value, traceback)
        self._recording = False
