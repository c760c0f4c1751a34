"""Try a config out: build everything, run one training step, and show what is in it.

:func:`_run` has the order of a dry run. The first part that fails ends it: whatever is raised goes
to :func:`crd_plugin.cli.explain.explain`, which turns it into one line. So a method, a loss or a
data set of one's own needs nothing here.
"""

from __future__ import annotations

import copy
import os.path as osp
import time
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import SyncBuffersHook
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from crd_plugin.compat import load_checkpoint_file
from crd_plugin.engine.hooks import CoCoRDHook, MemoryBankHook
from crd_plugin.engine.hooks.memory_bank_hook import (
    check_negatives,
    index_dataset,
    pool_remark,
)
from crd_plugin.engine.hooks.strict_loading_hook import load_run
from crd_plugin.engine.loops.staged_train_loop import split_epochs
from crd_plugin.models.algorithms.pretrained_init import use_pretrained_init
from crd_plugin.models.losses import CoCoRDLoss, CRDLoss
from crd_plugin.models.memory_bank import MemoryBank
from crd_plugin.models.recorders.classifier_recorders import members_of

from ._dry_run_inputs import (
    INPUT_SHAPE,
    Data,
    check_weights,
    normalisation_notes,
    read_data,
    size_of_last_batch,
    without_a_trace,
)
from ._dry_run_step import (
    build_hooks,
    build_schedulers,
    check_needs,
    measure,
    one_step,
    try_one_sample,
    try_validation,
)
from .arguments import load_config, merge_options
from .dry_run_report import BankRow, DryRunReport, count_parameters, read_recorders, watch_inputs
from .explain import explain
from .lookup import find_type, one_line
from .settings import check_settings

_BATCH_SIZE = 4
# A bank of more rows is not allocated; so many stand in for it.
_MOST_ROWS, _STAND_IN_ROWS = 65536, 4096
# What leaves an update in a forward pass, and the hook that writes the update.
_WRITERS = {MemoryBank: MemoryBankHook, CoCoRDLoss: CoCoRDHook}


def dry_run_file(filename: str, options: dict[str, Any] | None = None, **kwargs) -> DryRunReport:
    """Dry-run a config file; that it cannot be loaded is a problem like any other.

    Args:
        filename (str): The config.
        options (dict, optional): Settings to replace, by dotted name.
        **kwargs: Arguments of :func:`run_dry`.

    Returns:
        DryRunReport: What was found.
    """
    try:
        cfg = load_config(filename)
        merge_options(cfg, options)
    except Exception as error:  # A value may not fit the one that it replaces.
        return DryRunReport(osp.basename(filename), problems=[one_line(error)])
    report = run_dry(cfg, **kwargs)
    report.config = osp.basename(filename)
    return report


def run_dry(
    cfg: Config,
    batch_size: int | None = None,
    device: str = 'cpu',
    use_teacher_ckpt: bool = True,
    stand_ins: bool = True,
) -> DryRunReport:
    """Build everything, run one training step and one step of validation, leave no trace.

    No file is written, nothing is downloaded, no optimizer step is taken, and the random state is
    restored. Where the files of a data set are missing, random images take their place.

    Args:
        cfg (Config): The config; it is not changed.
        batch_size (int, optional): Number of samples. Defaults to None: that of the config, at
            most 4.
        device (str): Where to run. Defaults to ``'cpu'``.
        use_teacher_ckpt (bool): Whether to load the teacher's checkpoint. Defaults to True.
        stand_ins (bool): Whether to go on without the files of a data set. Defaults to True.

    Returns:
        DryRunReport: Tables, notes and problems.

    Raises:
        ValueError: If ``batch_size`` or ``device`` is not valid.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f'batch_size is {batch_size}, expected at least 1 sample.')
    if torch.device(device).type == 'cuda' and not torch.cuda.is_available():
        raise ValueError(f"device is {device}, but torch sees no GPU; use 'cpu'.")
    start = time.perf_counter()
    report = DryRunReport(osp.basename(cfg.filename or ''))
    plain = cfg.to_dict()
    scope = plain.get('default_scope') or 'mmengine'
    with without_a_trace(), DefaultScope.overwrite_default_scope(scope):
        try:
            _run(plain, batch_size, device, use_teacher_ckpt, stand_ins, report)
        except Exception as error:  # Any part may fail in its own way.
            report.problems.append(explain(error, plain))
            report.error = error
    report.seconds = time.perf_counter() - start
    return report


def _run(
    cfg: dict[str, Any],
    batch_size: int | None,
    device: str,
    use_teacher_ckpt: bool,
    stand_ins: bool,
    report: DryRunReport,
) -> None:
    """Go through a config in the order in which a runner does."""
    model_cfg = cfg.get('model')
    if not isinstance(model_cfg, dict):
        raise ValueError('the config has no `model`; add one, or a _base_ that has it.')
    report.problems += check_settings(cfg)
    if report.problems:
        return
    if cfg.get('data_preprocessor') is not None:
        model_cfg.setdefault('data_preprocessor', cfg['data_preprocessor'])
    report.notes += normalisation_notes(model_cfg)
    check_weights(cfg, use_teacher_ckpt, report)
    data = read_data(cfg, 'train_dataloader', report.notes, stand_ins)
    last = size_of_last_batch(cfg, data)
    report.data = str(data)
    use_pretrained_init()
    model = MODELS.build(copy.deepcopy(model_cfg))
    model.init_weights()
    if cfg.get('load_from'):
        _load_run(model, cfg)
    report.parts = count_parameters(model)
    build_hooks(cfg)
    _check_hooks(model, cfg)
    _check_classes(model, data, report)
    if batch_size is None:
        loader = cfg.get('train_dataloader') or {}
        batch_size = min(loader.get('batch_size') or _BATCH_SIZE, _BATCH_SIZE)
    batch = _read_batch(model, data, batch_size, report)
    several = isinstance(batch['inputs'], (list, tuple))
    images = batch['inputs'][0] if several else batch['inputs']
    shape, kind = ' x '.join(map(str, images.shape)), str(images.dtype).removeprefix('torch.')
    views = f', {len(batch["inputs"])} views' if several else ''
    report.images = f'{shape} {kind}{views} ({data.origin})'
    if several and hasattr(model, 'distiller') and not hasattr(model, 'num_views'):
        raise ValueError(
            f'train_dataloader.dataset gives {len(batch["inputs"])} views of each image, '
            f'{model_cfg["type"]} expects one; take MultiViewPipeline out of the pipeline.'
        )
    if 'contrast_idx' in batch['data_samples'][0] and "source': 'contrast_idx'" not in str(
        model_cfg
    ):
        raise ValueError(
            'train_dataloader.dataset.num_negatives draws contrast_idx, which no recorder reads; '
            "leave it out, or record it with dict(type='crd_plugin.SampleField', "
            "source='contrast_idx')."
        )
    if 'optim_wrapper' in cfg:
        wrapper = build_optim_wrapper(model, copy.deepcopy(cfg['optim_wrapper']))
    else:
        wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    _try_steps(model.to(device), cfg, batch, wrapper, report)
    if last == 1:
        try_one_sample(model, data, wrapper)
    # A network may take images of the training's size only.
    try_validation(model, cfg, stand_ins, report, images.shape[-2:])
    build_schedulers(cfg, wrapper, report.notes)


def _load_run(model: Any, cfg: dict[str, Any]) -> None:
    """Load the weights that the runner is to load."""
    banks = [module for module in model.modules() if isinstance(module, MemoryBank)]
    for bank in banks:
        bank.keep_rows = False  # they are checked when the data are known
    role = '--resume' if cfg.get('resume') else 'load_from'
    load_run(model, load_checkpoint_file(cfg['load_from']), role, cfg['load_from'])
    for bank in banks:
        bank.keep_rows = True


def _try_steps(
    model: Any, cfg: dict[str, Any], batch: Any, wrapper: OptimWrapper, report: DryRunReport
) -> None:
    """Run one step, or one per stage, and report what is computed and recorded."""
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    idle: set[str] = set()
    try:
        for stage in _stages_of(model, cfg.get('train_cfg') or {}):
            if stage:
                model.set_stage(stage)
            with watch_inputs(model, report):
                losses = one_step(model, batch, wrapper)
            measure(model, losses, report, f'{stage}: ' if stage else '')
            idle |= {n for n, p in model.named_parameters() if n in trained and p.grad is None}
    except ValueError:
        given, shape = cfg['model'].get('input_shape'), tuple(batch['inputs'][0].shape[-3:])
        if hasattr(model, 'distiller') and tuple(given or INPUT_SHAPE) != shape:
            report.notes.append(
                f'model.input_shape is {tuple(given or INPUT_SHAPE)}, but the images are {shape}: '
                'set it to that if connectors or losses leave their widths out.'
            )
        raise
    finally:
        read_recorders(model, cfg['model'], report)
    if hasattr(model, 'distiller'):
        check_needs(model)
    alone = cfg.get('launcher') == 'none'  # known when training starts
    if (
        idle
        and not alone
        and not (cfg.get('model_wrapper_cfg') or cfg).get('find_unused_parameters')
    ):
        report.notes.append(
            f'{len(idle)} parameters get no gradient in some step, such as {min(idle)}: a run of '
            'several processes needs find_unused_parameters=True.'
        )


def _stages_of(model: nn.Module, train_cfg: Mapping[str, Any]) -> list[str]:
    """Names of the stages that the training loop goes through; one empty name without stages."""
    stages = list(getattr(model, 'stages', None) or ())
    if train_cfg.get('stage_epochs') is not None:
        if not stages:
            raise ValueError(
                'train_cfg.stage_epochs: the model has no stages; take a schedule without a first '
                'stage.'
            )
        split_epochs(stages, train_cfg['max_epochs'], train_cfg['stage_epochs'])
    # MMEngine's own loop begins no stage, which the model complains about in the step.
    return stages if stages and (not train_cfg or 'type' in train_cfg) else ['']


def _read_batch(
    model: nn.Module, data: Data, batch_size: int, report: DryRunReport
) -> dict[str, Any]:
    """Size the memory banks as their hook would, smaller where huge; read samples of their rows."""
    banks = {name: bank for name, bank in model.named_modules() if isinstance(bank, MemoryBank)}
    if banks and index_dataset(data.dataset) is None:
        raise ValueError(
            f'train_dataloader.dataset is a {data.kind}, whose samples carry no ids for the memory '
            "bank; wrap it: dataset=dict(type='crd_plugin.SampleIndexDataset', dataset=dict(...))."
        )
    known = data.num_samples
    for name, bank in banks.items():
        known = known or bank.num_samples or None
        if bank.num_samples not in (0, known):
            raise ValueError(
                f'num_samples of {name} is {bank.num_samples}, the training set has {known} '
                'samples; set it to that or leave it out.'
            )
    check_negatives(model, data.labels)
    rows = known if known and known <= _MOST_ROWS else _STAND_IN_ROWS
    batch = data.read_batch(batch_size, rows)
    labels = data.labels
    if data.num_samples is None or labels is not None and len(labels) != rows:
        labels = torch.arange(rows) % (data.num_classes or 2)
        for sample in batch['data_samples'] if banks else ():
            labels[sample.sample_idx] = sample.gt_label
    for name, bank in banks.items():
        bank.resize(rows, labels)
        mib = None if known is None else bank.num_bytes / rows * known / 2**20
        report.banks.append(BankRow(name, known, bank.embed_dim, mib, rows))
    for name, loss in model.named_modules():
        if isinstance(loss, CRDLoss) and loss.bank is not None and rows == known:
            remark = pool_remark(name, loss)
            report.notes += [remark] if remark else []
    return batch


def _check_hooks(model: nn.Module, cfg: Mapping[str, Any]) -> None:
    """Check that one hook writes what a step leaves behind."""
    hooks = [*(cfg.get('default_hooks') or {}).values(), *(cfg.get('custom_hooks') or ())]
    classes = [find_type(hook['type']) for hook in hooks if hook]
    for state, hook in _WRITERS.items():
        if not any(isinstance(module, state) for module in model.modules()):
            continue
        number, name = classes.count(hook), hook.__name__
        if number != 1:
            raise ValueError(
                f'custom_hooks and default_hooks have {name} {number} times, but the '
                f"{state.__name__} of the model needs it once: dict(type='crd_plugin.{name}') (a "
                'config that sets custom_hooks replaces the list of its _base_).'
            )
        if SyncBuffersHook in classes:
            raise ValueError(
                'custom_hooks has SyncBuffersHook, which averages the buffers of the '
                f'{state.__name__} over the ranks; remove it.'
            )


def _check_classes(model: nn.Module, data: Data, report: DryRunReport) -> None:
    """Compare the outputs of the heads with the classes of the data set."""
    nets = (getattr(model, 'architecture', model), *members_of(getattr(model, 'teacher', None)))
    student, *teachers = (getattr(getattr(net, 'head', None), 'num_classes', None) for net in nets)
    classes = data.num_classes
    if classes is None and data.labels is not None and student is not None:
        classes = max(student, int(data.labels.max()) + 1)
    place = 'model.architecture' if nets[0] is not model else 'model'
    # A student whose own loss is not computed may have any number.
    asked = getattr(model, 'calculate_student_loss', True)
    if classes and data.labels is not None and int(data.labels.max()) >= classes:
        raise ValueError(
            f'train_dataloader.dataset has the label {int(data.labels.max())}, but its metainfo '
            f'names {classes} classes; name all of them. `classes` takes no subset of the samples: '
            'for that, write an annotation file with labels from 0.'
        )
    if asked and None not in (student, classes) and student != classes:
        raise ValueError(
            f'{place}.head.num_classes is {student}, the data set has {classes} classes; set it '
            f'to {classes}.'
        )
    preprocessor = model.data_preprocessor
    one_hot = getattr(preprocessor, 'num_classes', None)
    # Mixup and multi-label data make vectors of so many numbers of the labels.
    if getattr(preprocessor, 'to_onehot', False) and classes and one_hot not in (None, classes):
        raise ValueError(
            f'data_preprocessor.num_classes is {one_hot}, the data set has {classes} classes; set '
            f'it to {classes}.'
        )
    for teacher in dict.fromkeys(teachers):
        if None not in (student, teacher) and student != teacher:
            report.notes.append(
                f'model.teacher.head.num_classes is {teacher}, that of model.architecture '
                f'{student}: a loss that compares their logits cannot work.'
            )
