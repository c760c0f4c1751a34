"""The order of a dry run."""

import copy
import logging
import os.path as osp
import random
import time
import traceback
import warnings
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Optional, Sequence

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from . import step
from .banks import named_banks, size_banks
from .checks import check_classes, check_hooks, check_ids, plans_bank
from .culprits import find_culprits
from .data import describe_data, image_text, inspect_data, random_batch
from .distiller import (
    check_head,
    check_parts,
    check_student,
    check_weights,
    is_distillation,
    lacks_loss,
)
from .report import DryRunReport, PartRow, RecorderRow, describe, one_line
from .stages import check_stages, computes, each_stage, prune_stages
from .types import check_types, explain
from .views import check_views

_BATCH_SIZE = 4


def dry_run_file(filename: str, options: Optional[Dict[str, Any]] = None, **kwargs) -> DryRunReport:
    """Dry-run a config file; what it cannot be loaded for is a problem too.

    Args:
        filename (str): The config.
        options (dict, optional): Settings to replace, by dotted name.
        **kwargs: Of :func:`run_dry`.

    Returns:
        DryRunReport: What was found.
    """
    try:
        cfg = Config.fromfile(filename)
        if options:
            cfg.merge_from_dict(options)
    except Exception as error:  # A config is code and may raise anything.
        report = DryRunReport(config=osp.basename(filename))
        text = one_line(error)
        if 'Duplicate key' in text:
            text += (
                '; two files of _base_ set the same name: let one of '
                'them use another, and join them in the config itself'
            )
        report.problem(f'the config cannot be loaded: {text} ({type(error).__name__}).')
        return report
    report = run_dry(cfg, **kwargs)
    report.config = osp.basename(filename)
    return report


def run_dry(
    cfg: Config,
    batch_size: Optional[int] = None,
    device: str = 'cpu',
    use_teacher_ckpt: bool = True,
) -> DryRunReport:
    """Build everything and train one step on random data, without a trace.

    No file is written, nothing is downloaded, no optimizer step is taken, and
    the random state is as before. All problems that can be found are, not
    only the first: what cannot work is left out and the rest is run.

    Args:
        cfg (Config): The config; it is not changed.
        batch_size (int, optional): Random samples. Defaults to None: that of
            the config, at most 4.
        device (str): Where to run. Defaults to ``'cpu'``.
        use_teacher_ckpt (bool): False: leave the teacher random and do not
            ask for its checkpoint. Defaults to True.

    Returns:
        DryRunReport: Tables, notes and problems.

    Raises:
        ValueError: If ``batch_size`` or ``device`` cannot be.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f'batch_size is {batch_size}, expected at least 1 sample.')
    if torch.device(device).type == 'cuda' and not torch.cuda.is_available():
        raise ValueError(f"device is {device}, but torch sees no GPU; use 'cpu'.")
    start = time.perf_counter()
    report = DryRunReport(config=osp.basename(cfg.filename or ''))
    plain = cfg.to_dict()
    scope = plain.get('default_scope') or 'mmengine'
    with _without_a_trace(), DefaultScope.overwrite_default_scope(scope):
        _run(plain, batch_size, device, use_teacher_ckpt, report)
    report.seconds = time.perf_counter() - start
    return report


def _run(
    cfg: Dict[str, Any],
    batch_size: Optional[int],
    device: str,
    use_teacher_ckpt: bool,
    report: DryRunReport,
) -> None:
    """All checks, one after the other."""
    check_types(cfg, report)
    facts = inspect_data(cfg, report)
    report.data = describe_data(facts)
    loaded = cfg.get('load_from')
    if loaded and '://' not in loaded and not osp.isfile(loaded):
        report.problem(
            f'load_from={loaded} does not exist; give the path of a checkpoint, or None.'
        )
    model_cfg = cfg.get('model')
    if not isinstance(model_cfg, dict):
        report.problem('the config has no `model`; add one, or a _base_ that has it.')
        return
    if cfg.get('data_preprocessor') is not None:
        model_cfg.setdefault('data_preprocessor', cfg['data_preprocessor'])
    check_weights(model_cfg, report, use_teacher_ckpt)
    check_stages(cfg, report)
    check_views(cfg, model_cfg, facts, report)
    if is_distillation(model_cfg):
        sound_cfg = check_parts(model_cfg, facts.image, report)
    elif isinstance(model_cfg.get('architecture'), dict):
        sound_cfg = check_student(model_cfg, facts.image, report)
    else:
        sound_cfg = model_cfg
    model = None if sound_cfg is None else _build(sound_cfg, report)
    if model is not None and not is_distillation(model_cfg):
        if not check_head(model, sound_cfg, 'model', facts.image, report):
            model = _build(sound_cfg, report)
    if model is None:
        check_hooks(cfg, plans_bank(model_cfg), report)
        return
    banks = named_banks(model)
    # A loss that had to be left out was to have a bank too.
    check_hooks(cfg, True if banks else plans_bank(model_cfg), report)
    num_classes = check_classes(model, sound_cfg, facts, report)
    check_ids(sound_cfg, bool(banks), facts, report)
    labels = size_banks(model, banks, num_classes, facts, report)
    report.parts = _parts(model)
    if batch_size is None:
        loader = cfg.get('train_dataloader') or {}
        batch_size = min(loader.get('batch_size') or _BATCH_SIZE, _BATCH_SIZE)
    report.images = image_text(facts, batch_size)
    data = random_batch(facts, batch_size, labels)
    model.to(device)
    for _ in each_stage(model, report):
        _train_step(model, cfg, sound_cfg, data, report)


def _parts(model: nn.Module) -> List[PartRow]:
    """Parameter counts of student, connectors, teacher or what there is."""
    if not hasattr(model, 'architecture'):
        return [PartRow('model', *step.count(model))]
    distiller = getattr(model, 'distiller', None)
    if distiller is None:
        parts = dict(model.named_children())
        parts = dict(student=parts.pop('architecture'), **parts)
    else:
        parts = _parts_of_distillation(model, distiller)
    rows = [
        PartRow(name, *step.count(module))
        for name, module in parts.items()
        if isinstance(module, nn.Module)
    ]
    return [row for row in rows if row.total]


def _parts_of_distillation(model: nn.Module, distiller: nn.Module) -> Dict[str, Any]:
    """Modules by the names of the table."""
    return dict(
        student=model.architecture,
        connectors=getattr(distiller, 'connectors', None),
        losses=getattr(distiller, 'distill_losses', None),
        teacher=getattr(model, 'teacher', None),
        **{'slow student': getattr(model, 'slow_student', None)},
    )


def _build(model_cfg: Dict[str, Any], report: DryRunReport) -> Optional[nn.Module]:
    """Build the model as the runner does, and initialise it."""
    try:
        return _built(model_cfg)
    except Exception as error:  # A constructor may raise anything.
        failure = error
    # Widths are inferred from what a loss asks for; which one is it?
    mappings = (model_cfg.get('distiller') or {}).get('loss_forward_mappings')
    for name in list(mappings or ()):
        # Without any loss, it would be none of them.
        if _fails_alike(model_cfg, {}, failure):
            break
        if _fails_alike(model_cfg, {name: mappings[name]}, failure):
            path = f'model.distiller.loss_forward_mappings.{name}'
            report.problem(explain(failure, path, mappings[name]))
            del mappings[name]
            prune_stages(model_cfg, [name])
            if lacks_loss(model_cfg, [name]):
                return None
    try:
        return _built(model_cfg)
    except Exception as error:
        report.problem(explain(error, 'model', model_cfg))
        return None


def _fails_alike(model_cfg: Dict[str, Any], mappings: Dict[str, Any], failure: Exception) -> bool:
    """Whether it still fails in the same way with these losses alone."""
    fewer = copy.deepcopy(model_cfg)
    fewer['distiller']['loss_forward_mappings'] = mappings
    try:
        _built(fewer)
    except Exception as error:
        return one_line(error) == one_line(failure)
    return False


def _built(model_cfg: Dict[str, Any]) -> nn.Module:
    """The model, with fresh weights."""
    model = MODELS.build(copy.deepcopy(model_cfg))
    model.init_weights()
    return model


def _train_step(
    model: nn.Module,
    cfg: Dict[str, Any],
    model_cfg: Dict[str, Any],
    data: Dict[str, Any],
    report: DryRunReport,
) -> None:
    """One step; once more without the losses that fail."""
    wrapper = _optim_wrapper(model, cfg, report)
    model.train()
    handles = step.watch_connectors(model, report)
    try:
        for last_try in (False, True):
            try:
                step.Probe(model, wrapper, report).run(copy.deepcopy(data))
                break
            except Exception as error:  # Any layer may fail in its own way.
                known = len(report.problems)
                again = hasattr(
                    getattr(model, 'distiller', None), 'loss_forward_mappings'
                ) and find_culprits(model, data, model_cfg['distiller'], report)
                if len(report.problems) == known:
                    report.problem(f'one training step fails: {one_line(error)} ({_place(error)}).')
                if last_try or not again or not computes(model):
                    break
    finally:
        for handle in handles:
            handle.remove()
    _read_recorders(model, model_cfg, report)
    step.check_gradients(model, report)


def _place(error: Exception) -> str:
    """Kind of an error and the line of code that raised it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f'{type(error).__name__} in {frame.name}, {osp.basename(frame.filename)}:{frame.lineno}'


def _optim_wrapper(model: nn.Module, cfg: Dict[str, Any], report: DryRunReport) -> OptimWrapper:
    """The config's wrapper, so that its settings are tried too."""
    wanted = cfg.get('optim_wrapper')
    known = any(line.startswith('optim_wrapper') for line in report.problems)
    if isinstance(wanted, dict) and not known:
        try:
            return build_optim_wrapper(model, copy.deepcopy(wanted))
        except Exception as error:  # Optimizers are anybody's.
            report.problem(explain(error, 'optim_wrapper', wanted))
    parameters = [p for p in model.parameters() if p.requires_grad]
    parameters = parameters or [nn.Parameter(torch.zeros(1))]
    return OptimWrapper(torch.optim.SGD(parameters, lr=0.1))


def _read_recorders(model: nn.Module, model_cfg: Dict[str, Any], report: DryRunReport) -> None:
    """Shapes of what was recorded in the step."""
    distiller = getattr(model, 'distiller', None)
    for side in ('student', 'teacher'):
        manager = getattr(distiller, f'{side}_recorders', None)
        for name, recorder in getattr(manager, 'recorders', {}).items():
            cfg = model_cfg['distiller'][f'{side}_recorders'][name]
            records = recorder.data_buffer
            output = 'nothing'
            if records:
                output = describe(records[0])
                if len(records) > 1:
                    output += f', {len(records)} times'
            report.recorders.append(
                RecorderRow(side, name, str(cfg['type']), str(cfg.get('source', '-')), output)
            )


@contextmanager
def _without_a_trace() -> Iterator[None]:
    """Fixed seeds inside; random state, log level and warnings as before."""
    python, numpy = random.getstate(), np.random.get_state()
    devices: Sequence[int] = range(torch.cuda.device_count())
    loggers: List[logging.Logger] = [MMLogger.get_current_instance(), logging.getLogger('mmengine')]
    levels = [logger.level for logger in loggers]
    with torch.random.fork_rng(devices), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            random.seed(0)
            np.random.seed(0)
            torch.manual_seed(0)
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)
            random.setstate(python)
            np.random.set_state(numpy)
