"""The student alone: from a checkpoint of a distillation to a plain one."""

import ast
import copy
import hashlib
import io
import os
import os.path as osp
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, Dict, List, Optional, Union

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from torch import Tensor

from crd_plugin.compat import load_checkpoint_file

_STUDENT = 'architecture.'
_PREPROCESSOR = 'data_preprocessor.'
# What mmpretrain or a reader asks of a published checkpoint.
_META = ('dataset_meta', 'epoch', 'iter', 'seed', 'experiment_name', 'time', 'mmengine_version')
# What evaluation and inference need of a config.
_CONFIG = (
    'default_scope',
    'custom_imports',
    'data_preprocessor',
    'model',
    'test_pipeline',
    'test_dataloader',
    'test_evaluator',
    'test_cfg',
)


def publish_student(
    checkpoint: Union[str, os.PathLike],
    out: Union[str, os.PathLike],
    config: Optional[Union[str, Config]] = None,
    use_ema: bool = True,
) -> Path:
    """Write the student of a distillation as a plain mmpretrain checkpoint.

    Teacher, memory bank, connectors, optimizer and log history stay behind;
    the keys lose ``architecture.``, so the vanilla config loads all of them.
    A checkpoint of plain training is stripped likewise. Equal input gives
    equal bytes, hence the same name.

    Args:
        checkpoint (str): File that MMEngine's runner has saved.
        out (str): ``DIR/NAME.pth`` gives ``DIR/NAME-<hash8>.pth``, with the
            first eight hex digits of the file's SHA-256; an existing folder,
            or a path that ends in a slash, takes the checkpoint's name.
        config (str | Config, optional): Config of the student, or of the
            distillation. The weights must fit it exactly, and it is written
            into the file. Defaults to None: taken from the checkpoint.
        use_ema (bool): Of a run with an ``EMAHook``, publish the averaged
            weights rather than the last ones. Defaults to True.

    Returns:
        Path: The file written.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        CheckpointError: If it is truncated or no checkpoint of torch.
        ValueError: If it holds no weights, or they do not fit ``config``.
        FileExistsError: If another file of that name exists already.
    """
    logger = MMLogger.get_current_instance()
    loaded = load_checkpoint_file(os.fspath(checkpoint))
    weights = _weights(loaded, checkpoint, use_ema, logger)
    student = _student_weights(weights, checkpoint, logger)
    meta = loaded.get('meta') if 'state_dict' in loaded else None
    meta = meta if isinstance(meta, dict) else {}
    published_meta = {key: meta[key] for key in _META if key in meta}
    if config is not None:
        cfg = Config.fromfile(config) if isinstance(config, str) else config
        plain = student_config(cfg.to_dict())
        _check_fit(student, plain, checkpoint)
    else:
        plain = _config_of(meta, logger)
    if plain is not None:
        published_meta['cfg'] = Config(plain).pretty_text
    if not published_meta.get('dataset_meta'):
        logger.warning(
            'The checkpoint does not name its classes '
            '(meta.dataset_meta); predictions will be numbers.'
        )
    # Through memory: in a file, torch writes the file's name into the bytes.
    buffer = io.BytesIO()
    torch.save(dict(meta=published_meta, state_dict=student), buffer)
    target = _write(buffer.getvalue(), Path(checkpoint), os.fspath(out))
    before, after = (osp.getsize(path) / 2**20 for path in (checkpoint, target))
    logger.info(
        f'{target}: {len(student)} tensors, {after:.2f} MiB (the checkpoint has {before:.2f} MiB).'
    )
    return target


def student_config(cfg: Dict[str, Any]) -> Dict[str, Any]:
    """Reduce a config to the student and how to evaluate it.

    Args:
        cfg (dict): Config of a distillation or of plain training.

    Returns:
        dict: Without teacher, distiller, training and initial weights.
    """
    plain = {key: copy.deepcopy(cfg[key]) for key in _CONFIG if cfg.get(key) is not None}
    model = plain.get('model')
    if isinstance(model, dict) and 'architecture' in model:
        student = model['architecture']
        # The distiller's own comes first, then the runner's default.
        preprocessor = model.get('data_preprocessor') or plain.get('data_preprocessor')
        if preprocessor:
            student.pop('data_preprocessor', None)
            plain['data_preprocessor'] = preprocessor
        plain['model'] = student
    _forget_initial_weights(plain.get('model'))
    return plain


def _forget_initial_weights(cfg: Any) -> None:
    """Drop paths of weights that training started from."""
    if isinstance(cfg, dict):
        init = cfg.get('init_cfg')
        if isinstance(init, dict) and init.get('type') == 'Pretrained':
            del cfg['init_cfg']
    children = cfg.values() if isinstance(cfg, dict) else cfg
    for child in children if isinstance(cfg, (dict, list, tuple)) else ():
        _forget_initial_weights(child)


def _weights(loaded: Any, filename: Any, use_ema: bool, logger: MMLogger) -> Dict[str, Tensor]:
    """Model weights of a checkpoint, averaged or not."""
    weights = loaded.get('state_dict', loaded) if isinstance(loaded, dict) else None
    if (
        not isinstance(weights, dict)
        or not weights
        or not all(isinstance(value, Tensor) for value in weights.values())
    ):
        found = type(loaded).__name__
        if isinstance(loaded, dict):
            found = f'a dict of {_shorten(list(map(str, loaded)))}'
        raise ValueError(
            f'checkpoint {filename} holds {found}, expected a `state_dict` '
            'of tensors; give a file that the runner has saved, such as '
            'epoch_60.pth of a work dir.'
        )
    if 'ema_state_dict' not in loaded or weights is loaded:
        return weights
    if use_ema:
        # EMAHook saves the averages as state_dict and the others aside.
        logger.info('The weights are the averages of EMAHook.')
        return weights
    logger.info('The weights are the last ones, not the averages of EMAHook.')
    last = {
        key[len('module.') :]: value
        for key, value in loaded['ema_state_dict'].items()
        if key.startswith('module.')
    }
    return {key: last.get(key, value) for key, value in weights.items()}


def _student_weights(
    weights: Dict[str, Tensor], filename: Any, logger: MMLogger
) -> 'OrderedDict[str, Tensor]':
    """Weights under ``architecture.``, or all where there are none."""
    student: 'OrderedDict[str, Tensor]' = OrderedDict()
    if any(key.startswith(_STUDENT) for key in weights):
        dropped: Dict[str, int] = {}
        for key, value in weights.items():
            if key.startswith(_STUDENT):
                student.setdefault(key[len(_STUDENT) :], value)
            elif not key.startswith(_PREPROCESSOR):
                part = key.partition('.')[0]
                dropped[part] = dropped.get(part, 0) + 1
        for key, value in weights.items():
            # The distiller's preprocessor is the one that was used.
            if key.startswith(_PREPROCESSOR):
                student[key] = value
        parts = ', '.join(f'{part} ({number} tensors)' for part, number in sorted(dropped.items()))
        logger.info(f'Left behind: {parts or "nothing"}.')
    else:
        if any(key.startswith('distiller.') for key in weights):
            raise ValueError(
                f'checkpoint {filename} has a distiller but no student: no '
                'key starts with "architecture."; give a checkpoint of '
                'crd_plugin.FrozenTeacherDistill or of MMRazor.'
            )
        logger.info(
            'This is no checkpoint of a distillation (no key starts '
            'with "architecture."): all weights are kept, optimizer '
            'and log history are left behind.'
        )
        student.update(weights)
    # A view would be saved with all of the storage behind it.
    return OrderedDict((key, value.detach().clone()) for key, value in student.items())


def _config_of(meta: Dict[str, Any], logger: MMLogger) -> Optional[Dict[str, Any]]:
    """Plain config from the one that the runner saved with the weights."""
    text = meta.get('cfg')
    try:
        cfg = parse_config_text(text) if text else {}
    except ValueError as error:
        logger.warning(
            f'meta.cfg of the checkpoint is left out: {error}; '
            'give the config of the student with --config.'
        )
        return None
    model = cfg.get('model')
    if isinstance(model, dict):
        model = model.get('architecture', model)
    if not isinstance(model, dict) or 'type' not in model:
        logger.warning(
            'The checkpoint has no config of the student; give it '
            'with --config to have one in the published file.'
        )
        return None
    return student_config(cfg)


def parse_config_text(text: str) -> Dict[str, Any]:
    """Read a config that MMEngine has printed, without running it.

    Args:
        text (str): Assignments of literals and ``dict(...)``.

    Returns:
        dict: Top-level names and their values.

    Raises:
        ValueError: If there is anything else in it.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, TypeError) as error:
        raise ValueError(f'not a config ({error})') from error
    found = {}
    for line in tree.body:
        if not (
            isinstance(line, ast.Assign)
            and len(line.targets) == 1
            and isinstance(line.targets[0], ast.Name)
        ):
            raise ValueError(f'line {line.lineno} is no plain assignment')
        found[line.targets[0].id] = _literal(line.value)
    return found


def _literal(node: ast.AST) -> Any:
    """Value of an expression made of literals and ``dict(...)``."""
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        kind = dict(List=list, Tuple=tuple, Set=set)[type(node).__name__]
        return kind(_literal(item) for item in node.elts)
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {_literal(key): _literal(value) for key, value in zip(node.keys, node.values)}
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == 'dict'
        and len(node.args) <= 1
    ):
        found = dict(_literal(node.args[0])) if node.args else {}
        for keyword in node.keywords:
            value = _literal(keyword.value)
            found.update(value if keyword.arg is None else {keyword.arg: value})
        return found
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_literal(node.operand)
    if isinstance(node, ast.Name) and node.id in ('inf', 'nan'):
        return float(node.id)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError) as error:
        raise ValueError(f'line {node.lineno} is no plain value') from error


def _check_fit(weights: Dict[str, Tensor], plain: Dict[str, Any], filename: Any) -> None:
    """Build the student and load the weights, all keys matched."""
    from mmpretrain.registry import MODELS

    cfg = plain.get('model')
    if not isinstance(cfg, dict):
        raise ValueError(
            'config has no `model`; give the config of the '
            'plain student or that of the distillation.'
        )
    cfg = copy.deepcopy(cfg)
    if plain.get('data_preprocessor'):
        cfg.setdefault('data_preprocessor', plain['data_preprocessor'])
    scope = plain.get('default_scope', 'mmpretrain')
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(cfg)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        message = ' '.join(str(error).split())
        raise ValueError(
            f'the student in checkpoint {filename} does not fit config: '
            f'{message[:400]}; give the config of the student that was '
            'trained.'
        ) from error


def _write(content: bytes, source: Path, out: str) -> Path:
    """Write under a name with the hash; never over another file."""
    ends = tuple(sep for sep in (os.sep, os.altsep) if sep)
    path = Path(out).expanduser()
    if path.is_dir() or out.endswith(ends):
        path = path / source.name
    stem = path.name[:-4] if path.suffix == '.pth' else path.name
    digest = hashlib.sha256(content).hexdigest()[:8]
    target = path.with_name(f'{stem}-{digest}.pth')
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        if target.is_file() and target.read_bytes() == content:
            return target
        raise FileExistsError(
            f'{target} exists already and is another file; remove it or choose another OUT.'
        )
    handle, temporary = tempfile.mkstemp(prefix=f'.{stem}-', suffix='.tmp', dir=target.parent)
    try:
        with os.fdopen(handle, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp is readable by its owner alone.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
    return target


def _shorten(names: List[str], most: int = 5) -> str:
    """The first few names and how many more there are."""
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return (', '.join(names[:most]) or 'nothing') + more
