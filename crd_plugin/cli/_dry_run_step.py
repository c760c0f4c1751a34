"""What a dry run does with the built model: steps of training and of validation."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS, PARAM_SCHEDULERS
from mmengine.runner import Runner
from torch import Tensor, nn

from crd_plugin.models.key_queue import KeyQueue
from crd_plugin.models.memory_bank import MemoryBank
from crd_plugin.ops import gradient_norm

from ._dry_run_inputs import Data, read_data
from .dry_run_report import DryRunReport, LossRow
from .lookup import PlacedError, one_line


def try_one_sample(model: Any, data: Data, wrapper: OptimWrapper) -> None:
    """Run a step on one sample, as an epoch that ends with such a batch will."""
    try:
        one_step(model, data.read_batch(1, 1), wrapper)
    except Exception as error:
        raise PlacedError(
            'train_dataloader: the last batch of an epoch has one sample, for which training '
            f'fails ({one_line(error).rstrip(".")}); set drop_last=True, or another batch_size.'
        ) from error


@torch.no_grad()
def try_validation(
    model: Any,
    cfg: Mapping[str, Any],
    stand_ins: bool,
    report: DryRunReport,
    size: Sequence[int] | None = None,
) -> None:
    """Read two samples for validation and for testing, predict and compute the metrics."""
    model.eval()
    tried: list[Any] = []
    for name in ('val', 'test'):
        loader, metrics = (cfg.get(f'{name}_{part}') for part in ('dataloader', 'evaluator'))
        if loader is None or metrics is None or (loader, metrics) in tried:
            continue
        tried.append((loader, metrics))
        data = read_data(cfg, f'{name}_dataloader', report.notes, stand_ins, size)
        batch = data.read_batch(2, len(data.dataset))
        evaluator = Runner.build_evaluator(None, copy.deepcopy(metrics))
        evaluator.dataset_meta = getattr(data.dataset, 'metainfo', None)
        try:
            evaluator.process(model.val_step(batch), batch)
            results = evaluator.evaluate(2)
        except Exception as error:
            raise PlacedError(f'{name}_evaluator: {one_line(error)}') from error
        best = ((cfg.get('default_hooks') or {}).get('checkpoint') or {}).get('save_best')
        wanted = [best] if isinstance(best, str) else best or ()
        unknown = [key for key in wanted if key not in (*results, 'auto')]
        if name == 'val' and unknown:
            raise PlacedError(
                f'default_hooks.checkpoint.save_best has {unknown[0]!r}, but validation gives '
                f'{", ".join(results)}.'
            )


def one_step(model: Any, batch: Any, wrapper: OptimWrapper) -> dict[str, Any]:
    """Run the forward pass of a training step; no update is left behind."""
    model.train()
    with wrapper.optim_context(model):
        data = model.data_preprocessor(copy.deepcopy(batch), True)
        losses = model(**data, mode='loss')
    for module in model.modules():
        if isinstance(module, (MemoryBank, KeyQueue)):
            module.discard()
    return losses


def measure(model: Any, losses: Mapping[str, Any], report: DryRunReport, prefix: str) -> None:
    """Measure the gradient that each loss sends; refuse losses that cannot train; go backward."""
    parts = [getattr(model, 'architecture', model), getattr(model, 'teacher', nn.Module())]
    student, teacher = ([p for p in part.parameters() if p.requires_grad] for part in parts)
    known = {id(p) for p in student + teacher}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
    rows = []
    for name, value in losses.items():
        terms = [value] if isinstance(value, Tensor) else value
        loss = torch.stack([term.float().mean() for term in terms]).sum()  # as MMEngine does
        norms: list[float | str] = []
        for part in (student, others, teacher):
            norm = gradient_norm(loss, part)
            norms.append(norm if norm is not None else 'none' if part else '-')
        if hasattr(model, 'teacher') and not teacher:
            norms[2] = 'frozen'
        rows.append(LossRow(prefix + name, float(loss), 'loss' in name, *norms))
    report.losses += rows
    for name, value, summed, *norms in rows:
        numbers = [norm for norm in norms if isinstance(norm, float)]
        if not summed and numbers:
            raise ValueError(
                f'{name} is not added to the sum of the losses, because MMEngine adds those with '
                f'`loss` in their name; call it loss_{name.rpartition(".")[2]}.'
            )
        if summed and not numbers:
            raise ValueError(
                f'{name} sends no gradient anywhere; check from_student in its '
                'loss_forward_mappings: one argument at least must come from the student.'
            )
        if summed and 'distill.' in name and norms[0] == 'none':
            raise ValueError(
                f'{name} sends no gradient to the student, so it distils nothing; check '
                'from_student and the recorders in its loss_forward_mappings.'
            )
        if summed and not np.isfinite([value, *numbers]).all():
            raise ValueError(
                f'{name} is {value}, its gradient {norms}; lower its weight, or use float32.'
            )
        if isinstance(norms[2], float) and not getattr(model, 'teacher_trainable', False):
            raise ValueError(
                f'the gradient of {name} reaches the teacher; use crd_plugin.FrozenTeacherDistill, '
                'or teacher_trainable=False.'
            )
    total, _ = model.parse_losses(losses)
    total.backward()


def build_hooks(cfg: Mapping[str, Any]) -> None:
    """Build every hook, as the runner does before training."""
    hooks = [*(cfg.get('default_hooks') or {}).values(), *(cfg.get('custom_hooks') or ())]
    for hook in hooks:
        if hook:
            with suppress(RuntimeError):  # some ask for the runner's visualizer
                HOOKS.build({key: value for key, value in hook.items() if key != 'priority'})


def build_schedulers(cfg: Mapping[str, Any], wrapper: OptimWrapper, notes: list[str]) -> None:
    """Build the schedulers of learning rate and momentum; note one that ends too early or late."""
    given = cfg.get('param_scheduler') or []
    epochs = (cfg.get('train_cfg') or {}).get('max_epochs')
    ends = []
    for number, scheduler in enumerate(given if isinstance(given, (list, tuple)) else [given]):
        settings = dict(copy.deepcopy(scheduler), optimizer=wrapper)
        kind = PARAM_SCHEDULERS.get(settings.pop('type'))
        try:
            if settings.pop('convert_to_iter_based', False):
                kind.build_iter_from_epoch(**settings, epoch_length=1)
            else:
                kind(**settings)
        except (AssertionError, TypeError, ValueError) as error:
            place = f'param_scheduler[{number}]' if given is not scheduler else 'param_scheduler'
            raise PlacedError(f'{place}: {one_line(error)}') from error
        if scheduler.get('by_epoch', True) and scheduler.get('end') is not None:
            ends.append(scheduler['end'])
    if epochs and ends and max(ends) != epochs:
        notes.append(
            f'param_scheduler ends at epoch {max(ends)}, train_cfg.max_epochs is {epochs}; set '
            'both to the same number for the whole schedule.'
        )


def check_needs(model: Any) -> None:
    """Check that the recorded features are what each loss of the distiller declares to need.

    Raises:
        PlacedError: If a backbone returns one stage where several are compared, or maps behind
            an activation where signs are.
    """
    distiller = model.distiller
    for name, mapping in distiller.loss_forward_mappings.items():
        loss = distiller.distill_losses[name]
        place = f'model.distiller.loss_forward_mappings.{name}'
        for key, record in mapping.items():
            side = 'architecture' if record['from_student'] else 'teacher'
            if getattr(loss, 'takes_stages', False):
                maps = distiller.get_record(**record)
                if isinstance(maps, (list, tuple)) and len(maps) == 1:
                    raise PlacedError(
                        f'{place}.{key}: the {side} returns 1 stage, but {type(loss).__name__} '
                        f'compares several; set model.{side}.backbone.out_indices to all of them, '
                        'for three (0, 1, 2), or choose one by data_idx.'
                    )
                if loss.before_activation and all(bool((one >= 0).all()) for one in maps):
                    raise PlacedError(
                        f'{place}.{key}: the maps of the {side} have no negative value, but '
                        f'{type(loss).__name__} compares signs before the activation; set '
                        f'model.{side}.backbone.pre_activation=True.'
                    )
