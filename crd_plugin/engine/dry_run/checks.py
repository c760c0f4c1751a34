"""Hooks, classes and ids: what parts of a config ask of each other."""

from typing import Any, Dict, Optional

from mmengine.registry import HOOKS, MODELS
from torch import nn

from crd_plugin.models.losses import CKTFLoss, CRDLoss

from ..hooks import MemoryBankHook
from .data import DataFacts
from .report import DryRunReport
from .types import find_type


def check_hooks(cfg: Dict[str, Any], has_bank: Optional[bool], report: DryRunReport) -> None:
    """One MemoryBankHook if and only if there is a bank.

    Args:
        cfg (dict): The whole config.
        has_bank (bool, optional): None when that is not known.
        report (DryRunReport): Takes the problems.
    """
    hooks = list(cfg.get('custom_hooks') or [])
    hooks += (cfg.get('default_hooks') or {}).values()
    kinds = [
        find_type(HOOKS, hook['type']) if isinstance(hook.get('type'), str) else hook.get('type')
        for hook in hooks
        if isinstance(hook, dict)
    ]
    names = [cls.__name__ for cls in kinds if isinstance(cls, type)]
    number = names.count(MemoryBankHook.__name__)
    entry = "dict(type='crd_plugin.MemoryBankHook')"
    if has_bank and number == 0:
        report.problem(
            'custom_hooks has no MemoryBankHook, but the model '
            f'has a memory bank; add {entry} to it (a config that '
            'sets custom_hooks replaces the list of its _base_).'
        )
    if number > 1:
        report.problem(
            f'custom_hooks has MemoryBankHook {number} times, expected once; remove the others.'
        )
    if has_bank and 'SyncBuffersHook' in names:
        report.problem(
            'custom_hooks has SyncBuffersHook, which averages the '
            'rows of memory banks over the ranks; remove it.'
        )


def plans_bank(model_cfg: Dict[str, Any]) -> Optional[bool]:
    """Whether the config of a model asks for a memory bank.

    Args:
        model_cfg (dict): The config.

    Returns:
        bool | None: None if the type of a loss is unknown.
    """
    found = (model_cfg.get('distiller') or {}).get('distill_losses') or {}
    losses = [loss for loss in found.values() if isinstance(loss, dict)]
    classes = [find_type(MODELS, str(loss.get('type'))) for loss in losses]
    if any(
        cls in (CRDLoss, CKTFLoss) and loss.get('negatives') != 'batch'
        for cls, loss in zip(classes, losses)
    ):
        return True
    return None if None in classes else False


def check_classes(
    model: nn.Module, model_cfg: Dict[str, Any], facts: DataFacts, report: DryRunReport
) -> Optional[int]:
    """Outputs of the heads against the classes of the data set.

    Losses that compare logits of different classes are taken out.

    Args:
        model (nn.Module): The model.
        model_cfg (dict): Its config.
        facts (DataFacts): What is known of the data set.
        report (DryRunReport): Takes the problems.

    Returns:
        int | None: Outputs of the student's head.
    """
    student = _head_classes(getattr(model, 'architecture', model))
    place = 'model.architecture' if hasattr(model, 'architecture') else 'model'
    # A student that is not asked for classes may have any.
    asked = getattr(model, 'calculate_student_loss', True)
    if asked and None not in (student, facts.num_classes):
        if student != facts.num_classes:
            report.problem(
                f'{place}.head.num_classes is {student}, the data set has '
                f'{facts.num_classes} classes; set it to '
                f'{facts.num_classes}.'
            )
    if asked and student is not None and facts.labels is not None and len(facts.labels):
        largest = int(facts.labels.max())
        if largest >= student and facts.num_classes is None:
            report.problem(
                f'{place}.head.num_classes is {student}, but the data set '
                f'has the label {largest}; set it to {largest + 1}.'
            )
    teacher = _head_classes(getattr(model, 'teacher', None))
    if None not in (student, teacher) and student != teacher:
        _check_logits(model, model_cfg, student, teacher, report)
    return student


def _head_classes(net: Optional[nn.Module]) -> Optional[int]:
    """``num_classes`` of a net's head, if it has one."""
    found = getattr(getattr(net, 'head', None), 'num_classes', None)
    return found if isinstance(found, int) else None


def _check_logits(
    model: nn.Module, model_cfg: Dict[str, Any], student: int, teacher: int, report: DryRunReport
) -> None:
    """Losses that would compare logits of different classes."""
    distiller = model_cfg.get('distiller') or {}
    mappings = getattr(getattr(model, 'distiller', None), 'loss_forward_mappings', {})
    comparing = []
    for name, mapping in mappings.items():
        sides = {
            record['from_student']
            for record in mapping.values()
            if not record.get('connector') and _is_logits(distiller, record)
        }
        if len(sides) == 2:
            comparing.append(name)
    if not comparing:
        report.note(
            f'The student has {student} classes, the teacher '
            f'{teacher}; no loss compares their logits.'
        )
        return
    report.problem(
        f'model.teacher.head.num_classes is {teacher}, that of '
        f'model.architecture {student}, but {", ".join(comparing)} compares '
        'their logits; take a teacher of the same classes, or remove the '
        'loss.'
    )
    for name in comparing:
        del mappings[name]


def _is_logits(distiller: Dict[str, Any], record: Dict[str, Any]) -> bool:
    """Whether a record is the output of a head."""
    side = 'student' if record['from_student'] else 'teacher'
    recorders = distiller.get(f'{side}_recorders') or {}
    cfg = recorders.get(record['recorder'], {})
    source = str(cfg.get('source'))
    return 'ModuleOutputs' in str(cfg.get('type')) and (
        source == 'head' or source.startswith('head.')
    )


def check_ids(
    model_cfg: Dict[str, Any], has_bank: bool, facts: DataFacts, report: DryRunReport
) -> None:
    """Samples need ids where a bank or a recorder asks for them.

    Args:
        model_cfg (dict): Config of the model.
        has_bank (bool): It has a memory bank.
        facts (DataFacts): Of the data set; made to give ids, so that the
            step can be tried.
        report (DryRunReport): Takes the problems.
    """
    recorders = (model_cfg.get('distiller') or {}).get('student_recorders') or {}
    asked = {
        cfg.get('source')
        for cfg in recorders.values()
        if str(cfg.get('type')).endswith('SampleField')
    }
    wanted = has_bank or 'sample_idx' in asked or 'contrast_idx' in asked
    if wanted and not facts.gives_ids:
        if facts.kind:
            report.problem(
                f'train_dataloader.dataset is a {facts.kind}, whose samples '
                'carry no ids for the memory bank; wrap it: dataset=dict('
                "type='crd_plugin.SampleIndexDataset', dataset=dict(...))."
            )
        facts.gives_ids = True
    if 'contrast_idx' in asked and not facts.contrast:
        if facts.kind:
            report.problem(
                'the distiller records contrast_idx, which the samples do '
                'not carry; set train_dataloader.dataset.num_negatives, or '
                'remove the recorder.'
            )
        facts.contrast = 16
