"""Parts of a distillation one by one, so that all mistakes are found."""

import copy
import hashlib
import inspect
import os.path as osp
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Set

import torch
from mmengine.registry import MODELS, TASK_UTILS
from torch import Tensor, nn

from crd_plugin.compat import CheckpointError

from .report import DryRunReport, one_line
from .stages import prune_stages
from .types import check_type, explain, find_type, nearest, walk

_RECORD_KEYS = ('recorder', 'from_student', 'record_idx', 'data_idx', 'connector', 'connector_idx')
_SUFFIX = 'Recorder'


def is_distillation(model: Any) -> bool:
    """Whether a model's config is a distiller of MMRazor's kind.

    Args:
        model: The config's ``model``.

    Returns:
        bool: It has a student, a teacher and a distiller.
    """
    return isinstance(model, dict) and all(
        isinstance(model.get(key), dict) for key in ('architecture', 'teacher', 'distiller')
    )


def check_weights(model: Dict[str, Any], report: DryRunReport, use_teacher_ckpt: bool) -> None:
    """Look for the files of given weights; drop what cannot be loaded.

    Nothing is downloaded.

    Args:
        model (dict): Config of the model, changed in place.
        report (DryRunReport): Takes missing files.
        use_teacher_ckpt (bool): False: pass the teacher's checkpoint over.
    """
    if is_distillation(model):
        given = model.get('teacher_ckpt') or model['teacher'].get('init_cfg')
        if not use_teacher_ckpt and model.pop('teacher_ckpt', None):
            report.note(
                'model.teacher_ckpt is passed over as asked for: the '
                'teacher has random weights here.'
            )
        elif not given:
            report.note(
                'model.teacher_ckpt is not given: the teacher has '
                'random weights; set it before training.'
            )
        for role in ('teacher', 'student'):
            name = f'{role}_ckpt'
            path = model.get(name)
            if path and not _is_there(path, f'model.{name}', report):
                model[name] = None
            elif path and role == 'teacher':
                report.teacher = f'{osp.basename(path)}, sha256 {_hash(path)}'
        if not model.get('teacher_ckpt') and not report.teacher:
            report.teacher = 'random weights'
    for place, part in list(walk(model, 'model')):
        init = part.get('init_cfg')
        if isinstance(init, dict) and init.get('type') == 'Pretrained':
            path = init.get('checkpoint')
            if not path or not _is_there(path, f'{place}.init_cfg.checkpoint', report):
                part['init_cfg'] = None


def _is_there(path: str, name: str, report: DryRunReport) -> bool:
    """Whether weights are a local file; if not, the reason is reported."""
    if '://' in str(path):
        report.note(f'{name}={path} is not fetched here; random weights stand in for it.')
        return False
    if osp.isfile(osp.expanduser(path)):
        return True
    report.problem(
        f'{name}={path} does not exist; give the path of a trained '
        'checkpoint (--no-teacher-ckpt goes on without).'
        if 'teacher' in name
        else f'{name}={path} does not exist; give the path of a checkpoint, or leave it out.'
    )
    return False


def _hash(path: str) -> str:
    """First eight hex digits of a file's SHA-256."""
    digest = hashlib.sha256()
    with open(osp.expanduser(path), 'rb') as file:
        for block in iter(lambda: file.read(1 << 20), b''):
            digest.update(block)
    return digest.hexdigest()[:8]


def check_parts(
    model: Dict[str, Any], image: Sequence[int], report: DryRunReport
) -> Optional[Dict[str, Any]]:
    """Build student, teacher and each part of the distiller alone.

    Args:
        model (dict): Config of the distillation.
        image (Sequence[int]): Channels, height and width of an image.
        report (DryRunReport): Takes every problem.

    Returns:
        dict: The config without what cannot work, so that the rest can be
        run; None if not even that is possible.
    """
    model = copy.deepcopy(model)
    nets = {
        'student': _try_build(model['architecture'], 'model.architecture', report),
        'teacher': _try_build(model['teacher'], 'model.teacher', report),
    }
    _check_fit(model, nets, report)
    for role, key in (('student', 'architecture'), ('teacher', 'teacher')):
        if nets[role] is not None:
            check_head(nets[role], model[key], f'model.{key}', image, report)
    found = check_type(model, 'model', MODELS, report)
    distiller = model['distiller']
    found &= check_type(distiller, 'model.distiller', MODELS, report)
    bad = _Bad()
    for side, net in nets.items():
        for name, cfg in (distiller.get(f'{side}_recorders') or {}).items():
            path = f'model.distiller.{side}_recorders.{name}'
            if not _check_recorder(cfg, path, net, report):
                bad.recorders.add((side, name))
    for group, names in (('connectors', bad.connectors), ('distill_losses', bad.losses)):
        for name, cfg in (distiller.get(group) or {}).items():
            path = f'model.distiller.{group}.{name}'
            several = cfg if isinstance(cfg, list) else [cfg]
            if any(_try_build(one, path, report) is None for one in several):
                names.add(name)
    _check_mappings(distiller, bad, report)
    if not found or None in nets.values() or lacks_loss(model, bad.losses):
        return None
    _prune(distiller, bad)
    prune_stages(model, bad.losses)
    return model


def check_student(
    model: Dict[str, Any], image: Sequence[int], report: DryRunReport
) -> Optional[Dict[str, Any]]:
    """Build the student of an algorithm that has no teacher.

    Args:
        model (dict): Config of the algorithm.
        image (Sequence[int]): Channels, height and width of an image.
        report (DryRunReport): Takes every problem.

    Returns:
        dict: The config with a head that fits, so that the rest can be run;
        None if the student cannot be built.
    """
    model = copy.deepcopy(model)
    path = 'model.architecture'
    found = check_type(model, 'model', MODELS, report)
    student = _try_build(model['architecture'], path, report)
    if student is None or not found:
        return None
    check_head(student, model['architecture'], path, image, report)
    return model


class _Bad:
    """Names of what cannot work."""

    def __init__(self) -> None:
        self.recorders: Set[tuple] = set()
        self.connectors: Set[str] = set()
        self.losses: Set[str] = set()


def lacks_loss(model: Dict[str, Any], broken: Iterable[str]) -> bool:
    """Whether a loss that the algorithm is made for cannot work.

    Args:
        model (dict): Config of the distillation.
        broken (Iterable[str]): Names of losses that cannot.

    Returns:
        bool: The algorithm's ``loss_class`` is among them.
    """
    needed = getattr(find_type(MODELS, str(model.get('type'))), 'loss_class', None)
    losses = (model.get('distiller') or {}).get('distill_losses') or {}
    return needed is not None and any(
        find_type(MODELS, str(losses[name].get('type'))) is needed
        for name in broken
        if name in losses
    )


def _try_build(cfg: Any, path: str, report: DryRunReport) -> Optional[nn.Module]:
    """Build a part; report why it cannot be."""
    from mmrazor.registry import MODELS as RAZOR_MODELS

    sound = [
        check_type(part, f'{path}.{name}' if name else path, MODELS, report)
        for name, part in (
            ('', cfg),
            ('backbone', cfg.get('backbone')),
            ('neck', cfg.get('neck')),
            ('head', cfg.get('head')),
        )
    ]
    if not all(sound):
        return None
    try:
        return RAZOR_MODELS.build(copy.deepcopy(cfg))
    except Exception as error:  # A constructor may raise anything.
        report.problem(explain(error, path, cfg))
        return None


def _check_fit(
    model: Dict[str, Any], nets: Dict[str, Optional[nn.Module]], report: DryRunReport
) -> None:
    """Load given weights strictly; drop those that do not fit."""
    from crd_plugin.models.algorithms.frozen_teacher_distill import load_strictly

    for role, net in nets.items():
        path = model.get(f'{role}_ckpt')
        if not path or net is None:
            continue
        try:
            load_strictly(net, path, role)
        except (ValueError, CheckpointError) as error:
            report.problem(
                f'model.{error}'
                if str(error).startswith(f'{role}_ckpt')
                else f'model.{role}_ckpt: {error}'
            )
            model[f'{role}_ckpt'] = None


@torch.no_grad()
def check_head(
    net: nn.Module, cfg: Dict[str, Any], path: str, image: Sequence[int], report: DryRunReport
) -> bool:
    """Compare the width of the feature with what the head expects.

    Args:
        net (nn.Module): A classifier of mmpretrain, or anything else.
        cfg (dict): Its config; mended in place, so that the rest can be run.
        path (str): Place of the config.
        image (Sequence[int]): Channels, height and width of an image.
        report (DryRunReport): Takes the problem.

    Returns:
        bool: Nothing is wrong, or nothing can be said.
    """
    expected = getattr(getattr(net, 'head', None), 'in_channels', None)
    if not isinstance(expected, int) or 'in_channels' not in cfg['head']:
        return True
    training = net.training
    net.eval()
    try:
        feature = net.extract_feat(torch.zeros(2, *image))
    except Exception:  # It is not the head, then; the step will tell.
        return True
    finally:
        net.train(training)
    if isinstance(feature, (list, tuple)) and feature:
        feature = feature[-1]
    if not isinstance(feature, Tensor) or feature.dim() != 2:
        return True
    width = feature.size(1)
    if width == expected:
        return True
    report.problem(
        f'{path}.head.in_channels is {expected}, but the feature '
        f'has {width} values; set it to {width}.'
    )
    cfg['head']['in_channels'] = width
    return False


def _check_recorder(
    cfg: Dict[str, Any], path: str, net: Optional[nn.Module], report: DryRunReport
) -> bool:
    """Its type, and that what it records is there."""
    if not check_type(cfg, path, TASK_UTILS, report, _SUFFIX):
        return False
    if net is None:
        return True
    from mmrazor.models.task_modules import ModuleInputsRecorder, ModuleOutputsRecorder
    from mmrazor.models.task_modules.recorder import ParameterRecorder

    from crd_plugin.models.recorders import BlockOutputsRecorder, StageOutputsRecorder

    modules = (
        ModuleOutputsRecorder,
        ModuleInputsRecorder,
        BlockOutputsRecorder,
        StageOutputsRecorder,
    )
    cls = find_type(TASK_UTILS, cfg['type'] + _SUFFIX)
    source = cfg.get('source')
    names: List[str] = []
    if issubclass(cls, modules):
        kind, names = 'module', [name for name, _ in net.named_modules()]
    elif issubclass(cls, ParameterRecorder):
        kind, names = 'parameter', [name for name, _ in net.named_parameters()]
    if names and source not in names:
        side = 'teacher' if 'teacher_recorders' in path else 'student'
        known = [name for name in names if name]
        report.problem(
            f"{path}.source: the {side} has no {kind} '{source}'; {nearest(str(source), known)}."
        )
        return False
    arguments = {key: value for key, value in cfg.items() if key != 'type'}
    try:
        # Initialised only with the whole model: a recorder of functions
        # replaces them for good.
        cls(**arguments)
    except Exception as error:
        report.problem(f'{path}: {one_line(error)}')
        return False
    return True


def _check_mappings(distiller: Dict[str, Any], bad: _Bad, report: DryRunReport) -> None:
    """Losses, their arguments, and where these come from."""
    losses = distiller.get('distill_losses') or {}
    mappings = distiller.get('loss_forward_mappings') or {}
    root = 'model.distiller'
    for name in losses:
        if name not in mappings:
            report.problem(
                f'{root}.loss_forward_mappings has no {name}, so this loss '
                'is never computed; add its arguments, or remove it from '
                'distill_losses.'
            )
        if 'loss' not in name:
            report.problem(
                f"{root}.distill_losses.{name}: without 'loss' in its name "
                'MMEngine leaves it out of the sum; call it '
                f'loss_{name}, here and in loss_forward_mappings.'
            )
    for name, mapping in mappings.items():
        path = f'{root}.loss_forward_mappings.{name}'
        if name not in losses:
            report.problem(
                f'{path}: there is no such loss in distill_losses; {nearest(name, list(losses))}.'
            )
            bad.losses.add(name)
            continue
        if not isinstance(mapping, dict):
            report.problem(f'{path} is {type(mapping).__name__}, expected a dict of arguments.')
            bad.losses.add(name)
            continue
        cls = find_type(MODELS, str(losses[name].get('type')))
        sound = _check_arguments(cls, mapping, path, report)
        for key, record in mapping.items():
            sound &= _check_record(record, f'{path}.{key}', distiller, bad, report)
        if not sound:
            bad.losses.add(name)
    used = {
        record.get('connector')
        for mapping in mappings.values()
        if isinstance(mapping, dict)
        for record in mapping.values()
        if isinstance(record, dict)
    }
    for name in distiller.get('connectors') or {}:
        if name not in used:
            report.note(
                f'{root}.connectors.{name} is used by no loss; its parameters get no gradient.'
            )


def _check_arguments(
    cls: Optional[Callable], mapping: Dict[str, Any], path: str, report: DryRunReport
) -> bool:
    """What the loss takes against what the mapping gives."""
    if not inspect.isclass(cls):
        return True
    parameters = list(inspect.signature(cls.forward).parameters.values())[1:]
    if any(p.kind == p.VAR_KEYWORD for p in parameters):
        return True
    known = [p.name for p in parameters if p.kind != p.VAR_POSITIONAL]
    sound = True
    for key in mapping:
        if key not in known:
            report.problem(
                f'{path}.{key}: {cls.__name__}.forward has no such argument; {nearest(key, known)}.'
            )
            sound = False
    for parameter in parameters:
        required = (
            parameter.default is parameter.empty and parameter.kind != parameter.VAR_POSITIONAL
        )
        if required and parameter.name not in mapping:
            report.problem(
                f'{path}: {cls.__name__}.forward needs {parameter.name}; add '
                f'{parameter.name}=dict(recorder=..., from_student=...).'
            )
            sound = False
    return sound


def _check_record(
    record: Any, path: str, distiller: Dict[str, Any], bad: _Bad, report: DryRunReport
) -> bool:
    """One argument of a loss: a recorder, a side, maybe a connector."""
    if not isinstance(record, dict):
        report.problem(
            f'{path} is {type(record).__name__}, expected dict(recorder=..., from_student=...).'
        )
        return False
    sound = True
    for key in record:
        if key not in _RECORD_KEYS:
            report.problem(f"{path} has the unknown key '{key}'; {nearest(key, _RECORD_KEYS)}.")
            sound = False
    if not isinstance(record.get('from_student'), bool):
        report.problem(
            f'{path}.from_student is '
            f'{record.get("from_student")!r}, expected True or '
            'False: whose recorder it is.'
        )
        return False
    side, other = 'student', 'teacher'
    if not record['from_student']:
        side, other = other, side
    name = record.get('recorder')
    known = distiller.get(f'{side}_recorders') or {}
    if name not in known:
        mend = nearest(str(name), list(known))
        if name in (distiller.get(f'{other}_recorders') or {}):
            mend = (
                f'the {other} has one: set from_student='
                f'{side == "teacher"}, or add it to {side}_recorders'
            )
        report.problem(f"{path}.recorder: {side}_recorders has no '{name}'; {mend}.")
        return False
    connector = record.get('connector')
    connectors = distiller.get('connectors') or {}
    if connector and connector not in connectors:
        report.problem(
            f"{path}.connector: connectors has no '{connector}'; "
            f'{nearest(connector, list(connectors))}.'
        )
        return False
    if (side, name) in bad.recorders or connector in bad.connectors:
        return False  # reported with the recorder or the connector
    return sound


def _prune(distiller: Dict[str, Any], bad: _Bad) -> None:
    """Remove what cannot work, and the losses that depend on it."""
    mappings = distiller.get('loss_forward_mappings') or {}
    for name in bad.losses:
        mappings.pop(name, None)
        (distiller.get('distill_losses') or {}).pop(name, None)
    if not mappings:
        distiller['loss_forward_mappings'] = None
    for side, name in bad.recorders:
        del distiller[f'{side}_recorders'][name]
    for name in bad.connectors:
        del distiller['connectors'][name]
