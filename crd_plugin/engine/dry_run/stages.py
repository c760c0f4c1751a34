"""Models that are trained in stages: every stage is tried."""

from typing import Any, Dict, Iterable, Iterator, List, Tuple

from mmengine.registry import LOOPS
from torch import nn

from ..loops import StagedTrainLoop
from ..loops.staged_train_loop import split_epochs
from .report import DryRunReport
from .types import find_type


def check_stages(cfg: Dict[str, Any], report: DryRunReport) -> None:
    """The stages of the model against those of the training loop.

    Args:
        cfg (dict): The whole config.
        report (DryRunReport): Takes the problems.
    """
    given = cfg['model'].get('stages')
    stages = _names(given)
    if given and not stages:
        return  # the model will say what is wrong with them
    loop_cfg = cfg.get('train_cfg') or {}
    loop = loop_cfg.get('type')
    if isinstance(loop, str):
        loop = find_type(LOOPS, loop)
        if loop is None:
            return  # reported with the types
    staged = isinstance(loop, type) and issubclass(loop, StagedTrainLoop)
    if staged and not stages:
        report.problem(
            'train_cfg.type is StagedTrainLoop, but the model has no stages; '
            'take a schedule without a first stage.'
        )
    elif stages and loop_cfg and not staged:
        report.problem(
            f'model.stages has {stages}, which train_cfg does not go through; '
            "set train_cfg=dict(type='crd_plugin.StagedTrainLoop', ...), or "
            'take a schedule with a first stage, such as '
            '_base_/schedules/cifar_b64-30e-240e.py.'
        )
    elif stages and loop_cfg:
        try:
            split_epochs(stages, loop_cfg.get('max_epochs', 0), loop_cfg.get('stage_epochs') or {})
        except ValueError as error:
            report.problem(error)
        wrapper = cfg.get('model_wrapper_cfg') or cfg
        if not wrapper.get('find_unused_parameters'):
            report.note(
                'find_unused_parameters is not set; a stage leaves '
                'parameters out, so several processes need it to be True.'
            )


def prune_stages(model: Dict[str, Any], losses: Iterable[str]) -> None:
    """Take losses that cannot work out of the stages.

    Args:
        model (dict): Config of the model, changed in place.
        losses (Iterable[str]): Their names.
    """
    stages = model.get('stages')
    if not _names(stages):
        return
    for loss in losses:
        path = f'distiller.distill_losses.{loss}'
        for stage in stages:
            for key in ('losses', 'without_losses'):
                given = stage.get(key)
                if isinstance(given, str):
                    given = [given]  # the model takes one name too
                if isinstance(given, dict):
                    given.pop(loss, None)
                elif given and loss in given:
                    stage[key] = [name for name in given if name != loss]
            for key in ('trainable', 'frozen'):
                if isinstance(stage.get(key), (list, tuple)):
                    stage[key] = [
                        name for name in stage[key] if not f'{name}.'.startswith(f'{path}.')
                    ]
    model['stages'] = [stage for stage in stages if _has_losses(stage)]


def each_stage(model: nn.Module, report: DryRunReport) -> Iterator[None]:
    """Begin one stage after the other; the caller tries a step in each.

    Args:
        model (nn.Module): With stages or without; the latter gives one turn.
        report (DryRunReport): Rows of the steps are brought together.

    Yields:
        None: Once a stage.
    """
    stages = getattr(model, 'stages', None)
    if not stages:
        yield
        return
    losses = []
    for name in stages:
        model.set_stage(name)
        report.losses = []
        if computes(model):
            yield
        for row in report.losses:
            row.name = f'{name}: {row.name}'
            losses.append(row)
    report.losses = losses
    # A stage that does not run a network records nothing of it.
    report.recorders = _last_seen(report.recorders, ('side', 'name'), 'nothing')
    report.connectors = _last_seen(report.connectors, ('name',), '-')


def computes(model: nn.Module) -> bool:
    """Whether the stage that was begun has a loss left.

    Args:
        model (nn.Module): With stages or without.

    Returns:
        bool: There is something to be minimised.
    """
    stage = getattr(model, 'stages', {}).get(getattr(model, 'stage', None))
    return stage is None or stage.student_loss or bool(model.active_losses())


def _names(stages: Any) -> List[str]:
    """Names of the stages of a config."""
    if not isinstance(stages, (list, tuple)):
        return []
    return [stage.get('name') for stage in stages if isinstance(stage, dict)]


def _has_losses(stage: Dict[str, Any]) -> bool:
    """Whether a stage of a config has anything to minimise."""
    losses = stage.get('losses')
    return losses is None or bool(losses) or stage.get('student_loss', True)


def _last_seen(rows: Iterable[Any], keys: Tuple[str, ...], nothing: str) -> List[Any]:
    """One row for each value of the keys: the last that shows something."""
    found: Dict[Any, Any] = {}
    for row in rows:
        key = tuple(getattr(row, name) for name in keys)
        if key not in found or row.output != nothing:
            found[key] = row
    return list(found.values())
