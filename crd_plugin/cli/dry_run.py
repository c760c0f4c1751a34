"""Try a config out: build everything, run one training step, and show what is in it.

The first part that fails ends it: whatever is raised, :func:`crd_plugin.cli.explain.explain` turns
into one line. So a method, a loss or a data set of one's own needs nothing here.
"""

import copy
import logging
import os.path as osp
import random
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, VISUALIZERS, DefaultScope
from mmengine.runner import Runner
from mmengine.visualization import TensorboardVisBackend

from crd_plugin.compat import load_checkpoint_file
from crd_plugin.datasets._checks import check_same_classes
from crd_plugin.engine.hooks.strict_loading_hook import load_run
from crd_plugin.engine.loops.staged_train_loop import split_epochs
from crd_plugin.models.algorithms.checkpoints import use_pretrained_init
from crd_plugin.models.key_queue import KeyQueue
from crd_plugin.models.memory_bank import MemoryBank

from .arguments import UsageError, check_checkpoint, load_config, log_to_file, merge_options
from .dry_run_data import (
    Data,
    check_classes,
    check_weights,
    ends_with_one_sample,
    prepare,
    read_data,
)
from .dry_run_report import DryRunReport, LossRow, count_parameters, measure, read_recorders, watch
from .explain import explain
from .lookup import PlacedError, one_line, walk, within
from .settings import check_settings

_BATCH_SIZE = 4


def dry_run_file(filename: str, options: dict[str, Any] | None = None, **kwargs) -> DryRunReport:
    """Dry-run a config file with settings by dotted name and arguments of :func:`run_dry`."""
    cfg = load_config(filename)
    merge_options(cfg, options)
    return run_dry(cfg, **kwargs)


def run_dry(
    cfg: Config,
    batch_size: int | None = None,
    use_teacher_ckpt: bool = True,
    stand_ins: bool = True,
) -> DryRunReport:
    """Build everything, run one training step and one step of validation, leave no trace.

    It runs on the GPU where there is one, as training does. No file is written, nothing is
    downloaded, no optimizer step is taken, and the random state is restored. Where the files of a
    data set are missing, random images take their place.

    Args:
        cfg (Config): The config; it is not changed.
        batch_size (int, optional): Number of samples. Defaults to None: that of the config, at
            most 4.
        use_teacher_ckpt (bool): Whether to load the teacher's checkpoint. Defaults to True.
        stand_ins (bool): Whether to go on without the files of a data set. Defaults to True.

    Returns:
        DryRunReport: Tables, notes and problems.

    Raises:
        UsageError: If ``batch_size`` is not positive.
    """
    if batch_size is not None and batch_size < 1:
        raise UsageError(f'batch_size is {batch_size}, expected at least 1 sample.')
    start = time.perf_counter()
    report = DryRunReport(osp.basename(cfg.filename or ''))
    plain = cfg.to_dict()
    scope = plain.get('default_scope') or 'mmengine'
    with _without_a_trace(), DefaultScope.overwrite_default_scope(scope):
        try:
            _run(plain, batch_size, use_teacher_ckpt, stand_ins, report)
        except Exception as error:  # Any part may fail in its own way.
            report.problems.append(explain(error, plain))
            report.error = error
    report.seconds = time.perf_counter() - start
    return report


@contextmanager
def _without_a_trace() -> Iterator[None]:
    """Fix seeds, quiet the logs; restore random state, log levels and warnings."""
    python, numpy = random.getstate(), np.random.get_state()
    level = logging.root.manager.disable
    with torch.random.fork_rng(range(torch.cuda.device_count())), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            random.seed(0)
            np.random.seed(0)
            torch.manual_seed(0)
            logging.disable(logging.WARNING)
            yield
        finally:
            logging.disable(level)
            for logger in MMLogger._instance_dict.values():
                logger._cache.clear()  # logging does so for the loggers that it has made
            random.setstate(python)
            np.random.set_state(numpy)


def _run(
    cfg: dict[str, Any],
    batch_size: int | None,
    use_teacher_ckpt: bool,
    stand_ins: bool,
    report: DryRunReport,
) -> None:
    """Go through a config in the order in which a runner does."""
    model_cfg = cfg.get('model')
    if not isinstance(model_cfg, dict):
        raise ValueError('the config has no `model`; add one, or a _base_ that has it.')
    log_to_file(cfg)
    report.problems += check_settings(cfg)
    if report.problems:
        return
    _try_visualizer(cfg.get('visualizer'))
    if cfg.get('data_preprocessor') is not None:
        model_cfg.setdefault('data_preprocessor', cfg['data_preprocessor'])
    data = read_data(cfg, 'train_dataloader', report.notes, stand_ins)
    ends_with_one = ends_with_one_sample(cfg, data)
    report.data = str(data)
    check_weights(cfg, data, use_teacher_ckpt, report)
    use_pretrained_init()
    model = MODELS.build(copy.deepcopy(model_cfg)).to(get_device())
    model.init_weights()
    if cfg.get('load_from'):
        for bank in (module for module in model.modules() if isinstance(module, MemoryBank)):
            bank.keep_rows = False  # they are checked when the data are known
        role, loaded = '--resume' if cfg.get('resume') else 'load_from', cfg['load_from']
        check_checkpoint(loaded, role)
        load_run(model, load_checkpoint_file(loaded), role, loaded)
    report.parts = count_parameters(model)
    check_classes(model, data)
    given = cfg['train_dataloader'].get('batch_size') or _BATCH_SIZE
    batch = prepare(model, cfg, data, batch_size or min(given, _BATCH_SIZE), report)
    views = batch['inputs'] if isinstance(batch['inputs'], (list, tuple)) else [batch['inputs']]
    shape, kind = ' x '.join(map(str, views[0].shape)), str(views[0].dtype).removeprefix('torch.')
    several = f', {len(views)} views' if len(views) > 1 else ''
    report.images = f'{shape} {kind}{several} ({data.origin})'
    if data.num_samples and all(bool((image == image.max()).all()) for image in views[0]):
        report.notes.append(
            f'every image of this batch has one value, such as {float(views[0][0].max()):g}: look '
            'at the files and the pipeline. Grey images of 16 bits need LoadImageFromFile with '
            "imdecode_backend='cv2'; Pillow makes them white."
        )
    if 'contrast_idx' in batch['data_samples'][0] and "'contrast_idx'" not in str(model_cfg):
        raise ValueError(
            'train_dataloader.dataset.num_negatives draws contrast_idx, which no recorder reads; '
            "leave it out, or record it with dict(type='crd_plugin.SampleField', "
            "source='contrast_idx')."
        )
    optimizer = copy.deepcopy(cfg.get('optim_wrapper') or dict(optimizer=dict(type='SGD', lr=0.1)))
    with within('optim_wrapper'):
        wrapper = build_optim_wrapper(model, optimizer)
    _try_steps(model, cfg, batch, wrapper, report)
    if ends_with_one:
        _try_one_sample(model, data, wrapper)
    # A network may take images of the training's size only.
    _try_validation(model, cfg, data, stand_ins, report, views[0].shape[-2:])
    given = cfg.get('param_scheduler') or []
    for name, optimizer in _optimizers(wrapper).items():
        own = given[name] if isinstance(given, dict) and 'type' not in given else given
        for scheduler in own if isinstance(own, (list, tuple)) else [own]:
            with within('param_scheduler'):
                PARAM_SCHEDULERS.build(
                    scheduler, default_args=dict(optimizer=optimizer, epoch_length=1)
                )


def _try_visualizer(given: dict[str, Any] | None) -> None:
    """Build the visualizer for a temporary folder, and have TensorBoard open its file there."""
    if given is None:
        return  # MMEngine's own
    with within('visualizer'), tempfile.TemporaryDirectory() as folder:
        visualizer = VISUALIZERS.build({**given, 'name': folder, 'save_dir': folder})
        del type(visualizer)._instance_dict[folder]
        # Others open a run on a server.
        for backend in visualizer._vis_backends.values():
            if isinstance(backend, TensorboardVisBackend):
                backend.experiment.close()


def _optimizers(wrapper: OptimWrapper) -> dict[str, OptimWrapper]:
    """Return the optimizers by name, each with contexts and schedulers of its own."""
    return getattr(wrapper, 'optim_wrappers', {'': wrapper})


def _try_steps(
    model: Any, cfg: dict[str, Any], batch: Any, wrapper: OptimWrapper, report: DryRunReport
) -> None:
    """Run one step, or one per stage, and report what is computed and recorded."""
    # MMEngine's own loop begins no stage, which a model with stages complains about.
    stages, train_cfg = [''], cfg.get('train_cfg') or {}
    if train_cfg.get('stage_epochs') is not None:
        stages = [*split_epochs(model, train_cfg['max_epochs'], train_cfg['stage_epochs'])]
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    idle: set[str] = set()
    try:
        for stage in stages:
            if stage:
                model.set_stage(stage)
            with watch(model, report):
                losses = _one_step(model, batch, wrapper)
            rows = measure(model, losses, f'{stage}: ' if stage else '')
            report.losses += rows
            _check_losses(rows)
            model.parse_losses(losses)[0].backward()
            idle |= {n for n, p in model.named_parameters() if n in trained and p.grad is None}
    finally:
        report.recorders += read_recorders(model, cfg['model'])
    if hasattr(model, 'distiller'):
        _check_needs(model.distiller)
    several = cfg.get('launcher') != 'none'  # known when training starts
    if idle and several and not (cfg.get('model_wrapper_cfg') or cfg).get('find_unused_parameters'):
        report.notes.append(
            f'{len(idle)} parameters get no gradient in some step, such as {min(idle)}: a run of '
            'several processes needs find_unused_parameters=True.'
        )


def _one_step(model: Any, batch: Any, wrapper: OptimWrapper) -> dict[str, Any]:
    """Run the forward pass of a training step; no update is left behind."""
    model.train()
    with ExitStack() as contexts:
        for optimizer in _optimizers(wrapper).values():
            contexts.enter_context(optimizer.optim_context(model))
        data = model.data_preprocessor(copy.deepcopy(batch), True)
        losses = model(**data, mode='loss')
    for module in model.modules():
        if isinstance(module, (MemoryBank, KeyQueue)):
            module.discard()
    return losses


def _check_losses(rows: Sequence[LossRow]) -> None:
    """Refuse losses that cannot train the student."""
    for name, value, summed, *norms in rows:
        numbers = [norm for norm in norms if isinstance(norm, float)]
        if not summed and numbers:
            raise ValueError(
                f'{name} is not added to the sum of the losses, because MMEngine adds those with '
                f'`loss` in their name; call it loss_{name.rpartition(".")[2]}.'
            )
        if summed and (not numbers or 'distill.' in name and norms[0] == 'none'):
            raise ValueError(
                f'{name} sends no gradient to the student, so it distils nothing; check '
                'from_student and the recorders in its loss_forward_mappings.'
            )
        if summed and not np.isfinite([value, *numbers]).all():
            raise ValueError(
                f'{name} is {value}, its gradient {norms}; lower its weight, or use float32.'
            )


def _check_needs(distiller: Any) -> None:
    """Check that the recorded stages are what each loss declares to need."""
    for name, mapping in distiller.loss_forward_mappings.items():
        loss = distiller.distill_losses[name]
        for key, record in mapping.items() if getattr(loss, 'takes_stages', False) else ():
            maps, side = distiller.get_record(**record), 'teacher'
            if record['from_student']:
                side = 'architecture'
            place = f'model.distiller.loss_forward_mappings.{name}.{key}: the'
            if isinstance(maps, (list, tuple)) and len(maps) == 1:
                raise PlacedError(
                    f'{place} {side} returns 1 stage, but {type(loss).__name__} compares several; '
                    f'set model.{side}.backbone.out_indices to all of them, for three (0, 1, 2), '
                    'or choose one by data_idx.'
                )
            if loss.before_activation and all(bool((one >= 0).all()) for one in maps):
                raise PlacedError(
                    f'{place} maps of the {side} have no negative value, but '
                    f'{type(loss).__name__} compares signs before the activation; set '
                    f'model.{side}.backbone.pre_activation=True.'
                )


def _try_one_sample(model: Any, data: Data, wrapper: OptimWrapper) -> None:
    """Run a step on one sample, as an epoch that ends with such a batch will."""
    try:
        _one_step(model, data.read_batch(1), wrapper)
    except Exception as error:
        raise PlacedError(
            'train_dataloader: the last batch of an epoch has one sample, for which training '
            f'fails ({one_line(error).rstrip(".")}); set drop_last=True, or another batch_size.'
        ) from error


@torch.no_grad()
def _try_validation(
    model: Any,
    cfg: Mapping[str, Any],
    train: Data,
    stand_ins: bool,
    report: DryRunReport,
    size: Sequence[int],
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
        if getattr(model, 'calculate_student_loss', True):  # else it learns no class by its number
            check_same_classes(data.place, data.classes, train.place, train.classes)
        batch = data.read_batch(2)
        with within(f'{name}_evaluator'):
            evaluator = Runner.build_evaluator(None, copy.deepcopy(metrics))
            evaluator.dataset_meta = getattr(data.dataset, 'metainfo', None)
        try:
            evaluator.process(model.val_step(batch), batch)
            results = evaluator.evaluate(2)
        except Exception as error:
            raise PlacedError(f'{name}_evaluator: {one_line(error)}') from error
        if name == 'val':
            _check_metrics(cfg, results)


def _check_metrics(cfg: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    """Check that hooks and schedulers look at metrics which the validation gives."""
    watching = {k: cfg.get(k) for k in ('default_hooks', 'custom_hooks', 'param_scheduler')}
    for place, part in walk(watching):
        for name in ('save_best', 'monitor'):
            keys = part.get(name) or ()
            for key in [keys] if isinstance(keys, str) else keys:
                if key not in (*results, 'auto'):
                    raise PlacedError(
                        f'{place}.{name} has {key!r}, but validation gives {", ".join(results)}.'
                    )
