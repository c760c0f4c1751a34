"""Recorder of a field of the data samples, such as ids and labels, as a tensor."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmrazor.models.task_modules import ModuleOutputsRecorder
from torch import Tensor, nn

from crd_plugin.registry import TASK_UTILS


@TASK_UTILS.register_module()
class SampleFieldRecorder(ModuleOutputsRecorder):
    """Record a field of the batch's data samples as one tensor.

    It reads them from the arguments of the model's call. In a distiller it is written without the
    suffix: ``dict(type='crd_plugin.SampleField', source='sample_idx')``.

    Args:
        source (str): ``'sample_idx'`` gives ``(B,)`` int64, ``'contrast_idx'`` ``(B, 1 + K)``
            int64; any other numeric field is stacked. ``'gt_label'`` gives ``(B,)`` int64, or None
            if a sample of the batch has no label or several: a loss that needs them says so, the
            others train.

    Raises:
        ValueError: In training, if a sample has no such field, labels excepted.
    """

    def prepare_from_model(self, model: Any = None) -> None:
        """Register a hook on the calls of the model."""
        model.register_forward_pre_hook(self._record, with_kwargs=True)

    def _record(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Stack the field of all samples, on the device of the images."""
        inputs = args[0] if args else kwargs['inputs']
        samples = args[1] if len(args) > 1 else kwargs.get('data_samples')
        # Widths are inferred by a forward pass without samples.
        if self.recording and samples is not None:
            first_view = inputs if isinstance(inputs, Tensor) else inputs[0]
            self.data_buffer.append(stack_field(samples, self.source, first_view.device))


def stack_field(samples: Sequence[Any], field: str, device: torch.device) -> Tensor | None:
    """Stack a field of data samples: ``(B,)`` for scalars and one-element tensors."""
    values: list[Any] = [getattr(sample, field, None) for sample in samples]
    if field == 'gt_label' and not all(map(_is_single, values)):
        return None
    if any(value is None for value in values):
        hint = (
            'wrap the training data set in crd_plugin.SampleIndexDataset'
            if field in ('sample_idx', 'contrast_idx')
            else f'give PackInputs algorithm_keys=({field!r},) at the end of the pipeline'
        )
        raise ValueError(f'The data samples have no field "{field}", which is asked for; {hint}.')
    if isinstance(values[0], np.ndarray):  # such as label maps
        values = [torch.from_numpy(np.ascontiguousarray(value)) for value in values]
    is_tensor = isinstance(values[0], Tensor)
    stacked = torch.stack(values) if is_tensor else torch.as_tensor(values)
    if is_tensor and stacked.shape[1:] == (1,):
        stacked = stacked.squeeze(1)
    if device.type == 'cuda' and stacked.device.type == 'cpu':
        # From pinned memory the copy does not wait for the GPU.
        stacked = stacked.pin_memory()
    return stacked.to(device, non_blocking=True)


def _is_single(label: Any) -> bool:
    """Return whether a label is there, and is one number."""
    return label.numel() == 1 if isinstance(label, Tensor) else isinstance(label, (int, float))
