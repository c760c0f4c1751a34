"""What makes a training step fail, piece by piece."""

import copy
from typing import Any, Dict

from torch import Tensor, nn

from crd_plugin.models.connectors import EmbeddingConnector
from crd_plugin.models.key_queue import KeyQueue
from crd_plugin.models.memory_bank import MemoryBank

from .report import DryRunReport, describe, one_line

# Arguments that tell a connector the width of its feature.
_WIDTHS = ('in_channels', 'in_channel', 'dim_in', 'in_features', 'student_channels', 'in_dim')


def find_culprits(
    model: nn.Module, data: Dict[str, Any], distiller_cfg: Dict[str, Any], report: DryRunReport
) -> bool:
    """After a failed step: go through it piece by piece.

    The losses that fail are taken out of the model, so that the step can be
    tried again without them.

    Args:
        model (nn.Module): A distillation.
        data (dict): The batch.
        distiller_cfg (dict): Config of its distiller.
        report (DryRunReport): Takes every problem.

    Returns:
        bool: Another try is worth while.
    """
    discard_updates(model)
    distiller = model.distiller
    data = model.data_preprocessor(copy.deepcopy(data), True)
    inputs, samples = data['inputs'], data['data_samples']
    for side, net, mode in (
        ('teacher', model.teacher, 'tensor'),
        ('student', model.architecture, 'loss'),
    ):
        try:
            if hasattr(model, f'run_{side}'):
                getattr(model, f'run_{side}')(inputs, samples)
                continue
            with getattr(distiller, f'{side}_recorders'):
                net(inputs, samples, mode=mode)
        except Exception as error:  # Any layer may fail in its own way.
            report.problem(
                f'{side}: images of shape {describe(inputs)} do not go through: {one_line(error)}'
            )
            return False
    if not isinstance(inputs, Tensor):
        inputs = inputs[0]  # the views are of one shape
    broken = []
    for name, mapping in distiller.loss_forward_mappings.items():
        arguments = {}
        for key, record in mapping.items():
            path = f'model.distiller.loss_forward_mappings.{name}.{key}'
            found = _get_record(model, dict(record), path, inputs, distiller_cfg, report)
            if found is not None:
                arguments[key] = found
        if len(arguments) < len(mapping):
            broken.append(name)
            continue
        try:
            distiller.distill_losses[name](**arguments)
        except Exception as error:
            shapes = ', '.join(f'{key} {describe(value)}' for key, value in arguments.items())
            report.problem(
                f'model.distiller.distill_losses.{name}: {one_line(error)} Given were {shapes}.'
            )
            broken.append(name)
    for name in broken:
        del distiller.loss_forward_mappings[name]
    discard_updates(model)
    return bool(broken)


def _get_record(
    model: nn.Module,
    record: Dict[str, Any],
    path: str,
    inputs: Tensor,
    distiller_cfg: Dict[str, Any],
    report: DryRunReport,
) -> Any:
    """One argument of a loss; None and a problem if it cannot be had."""
    distiller = model.distiller
    connector = record.pop('connector', None)
    index = record.pop('connector_idx', None)
    side = 'student' if record['from_student'] else 'teacher'
    name = record['recorder']
    source = distiller_cfg[f'{side}_recorders'][name].get('source')
    recorder = getattr(distiller, f'{side}_recorders').get_recorder(name)
    if not recorder.data_buffer:
        report.problem(
            f'{path}: recorder {name} has recorded nothing, because the '
            f"{side} does not call '{source}'; record a module that its "
            'forward pass goes through.'
        )
        return None
    try:
        feature = distiller.get_record(**record)
    except Exception as error:
        report.problem(
            f'{path}: {one_line(error)} Recorder {name} holds {describe(recorder.data_buffer[0])}.'
        )
        return None
    if connector is None:
        return feature
    try:
        feature = distiller.connectors[connector](feature)
        return feature if index is None else feature[index]
    except Exception as error:
        report.problem(
            _width_line(connector, feature, error, inputs, distiller_cfg['connectors'][connector])
        )
        return None


def _width_line(name: str, feature: Any, error: Exception, inputs: Tensor, cfg: Any) -> str:
    """What is wrong between a feature and its connector."""
    path = f'model.distiller.connectors.{name}'
    if isinstance(cfg, list):
        cfg = cfg[0] if cfg else {}
    kind = str(cfg.get('type')).rpartition('.')[2]
    if kind == EmbeddingConnector.__name__:
        if cfg.get('in_channels') is None:
            return (
                'the widths of connectors were inferred from an image '
                'of another size than those of the data set; set '
                f'model.input_shape={tuple(inputs.shape[1:])}, or give '
                'in_channels of each connector.'
            )
        return f'{path}: {one_line(error)}'
    single = feature
    while isinstance(single, (list, tuple)) and len(single) == 1:
        single = single[0]
    if not isinstance(single, Tensor) or single.dim() < 2:
        return (
            f'{path}: {one_line(error)} The feature is '
            f'{describe(feature)}; choose one tensor with data_idx.'
        )
    given = next((key for key in _WIDTHS if key in cfg), 'its input width')
    value = f' is {cfg[given]}, but' if given in cfg else ':'
    return (
        f'{path}.{given}{value} the feature has shape '
        f'{describe(single)}; set {given}={single.size(1)} '
        f'({one_line(error, 120)})'
    )


def discard_updates(model: nn.Module) -> None:
    """Forget what a forward pass has left for banks and queues."""
    for module in model.modules():
        if isinstance(module, (KeyQueue, MemoryBank)):
            module.discard()
