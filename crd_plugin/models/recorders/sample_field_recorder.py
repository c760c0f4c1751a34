"""Recorder of a field of the data samples, such as ids and labels, as a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmrazor.models.task_modules.recorder.base_recorder import BaseRecorder
from torch import Tensor, nn

from crd_plugin.registry import TASK_UTILS


@TASK_UTILS.register_module()
class SampleFieldRecorder(BaseRecorder):
    """Record a field of the batch's data samples as one tensor.

    MMRazor's recorders see modules and functions, not the data samples that the model is called
    with; this one reads them from the arguments of that call. In a distiller it is written
    without the suffix: ``dict(type='crd_plugin.SampleField', source='sample_idx')``.

    Args:
        source (str): ``'sample_idx'`` gives ``(B,)`` int64, ``'gt_label'`` ``(B,)`` int64,
            ``'contrast_idx'`` ``(B, 1 + K)`` int64; any other numeric field is stacked.

    Raises:
        ValueError: In training, if a sample has no such field.
    """

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self._recording = False

    def prepare_from_model(self, model: nn.Module | None = None) -> None:
        """Register a hook on the calls of the model."""
        if model is None:
            raise ValueError(
                'model is None, expected the module whose call receives the data samples.'
            )
        model.register_forward_pre_hook(self._record, with_kwargs=True)

    def _record(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Stack the field of all samples, on the device of the images."""
        inputs = args[0] if args else kwargs.get('inputs')
        samples = args[1] if len(args) > 1 else kwargs.get('data_samples')
        # Widths are inferred by a forward pass without samples.
        if self._recording and samples is not None:
            self.data_buffer.append(stack_field(samples, self.source, _device_of(inputs)))

    def __enter__(self) -> None:
        """Start recording."""
        super().__enter__()
        self._recording = True

    def __exit__(self, exc_type, exc_value, traceback) -> None:
        """Stop recording."""
        super().__exit__(exc_type, exc_value, traceback)
        self._recording = False


def stack_field(samples: Sequence[Any], field: str, device: torch.device) -> Tensor:
    """Stack one field of data samples.

    Args:
        samples (Sequence): Data samples of a batch.
        field (str): Name of the field.
        device (torch.device): Device of the result.

    Returns:
        Tensor: ``(B,)`` for scalars and one-element tensors, else ``(B, ...)``.

    Raises:
        ValueError: If a sample has no such field.
    """
    values: list[Any] = [getattr(sample, field, None) for sample in samples]
    if any(value is None for value in values):
        hint = (
            'wrap the training data set in crd_plugin.SampleIndexDataset'
            if field in ('sample_idx', 'contrast_idx')
            else 'check that the data set has labels and that the pipeline ends with PackInputs'
        )
        raise ValueError(
            f'The data samples have no field "{field}", which the distiller records; {hint}.'
        )
    if isinstance(values[0], Tensor):
        stacked = torch.stack(values)
        if stacked.dim() == 2 and stacked.size(1) == 1:
            stacked = stacked.squeeze(1)
    else:
        stacked = torch.as_tensor(values)
    if device.type == 'cuda' and stacked.device.type == 'cpu':
        # From pinned memory the copy does not wait for the GPU.
        stacked = stacked.pin_memory()
    return stacked.to(device, non_blocking=True)


def _device_of(inputs: Any) -> torch.device:
    """Return the device of a batch of images, or of the first of its views."""
    while isinstance(inputs, (list, tuple)) and inputs:
        inputs = inputs[0]
    return inputs.device if isinstance(inputs, Tensor) else torch.device('cpu')
