"""The student alone: from a checkpoint of a distillation to a plain one."""

import ast
import copy
import hashlib
import io
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from crd_plugin.compat import load_checkpoint_file
from crd_plugin.models.algorithms.checkpoints import find_weights, load_strictly

_STUDENT = 'architecture.'
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
# Channels of data sets of arrays; those of image files are BGR.
_ARRAYS = {
    **dict.fromkeys(('CIFAR10', 'CIFAR100', 'STL10'), 'RGB'),
    **dict.fromkeys(('Digits', 'MNIST', 'FashionMNIST'), 'grey'),
}
_UNKNOWN = 'channels as the data set gives them'
_FILES_TO_RGB = dict(type='crd_plugin.FilesToRGB')


def publish_student(
    checkpoint: str | os.PathLike,
    out: str | os.PathLike,
    config: str | Config | None = None,
) -> Path:
    """Write the student of a distillation as a plain mmpretrain checkpoint.

    Teacher, bank, connectors and training state are left out, and the keys lose ``architecture.``.
    A checkpoint of plain training is stripped likewise; of a run with an ``EMAHook`` the averaged
    weights are published. Equal input gives equal bytes.

    Args:
        checkpoint (str): File that MMEngine's runner has saved.
        out (str): ``DIR/NAME.pth`` gives ``DIR/NAME-<hash8>.pth``, by the file's SHA-256; an
            existing folder, or a path that ends in a slash, takes the checkpoint's name.
        config (str | Config, optional): Config of student or distillation that the weights must
            fit, written into the file. Defaults to None: that in the checkpoint.

    Returns:
        Path: The file written.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        CheckpointError: If it is truncated or not a checkpoint of torch.
        ValueError: If it holds no weights, or they do not fit ``config``.
        FileExistsError: If another file of that name exists already.
    """
    logger = MMLogger.get_current_instance()
    loaded = load_checkpoint_file(os.fspath(checkpoint))
    weights = _student_weights(find_weights(loaded, f'checkpoint {checkpoint}'), checkpoint)
    meta = loaded.get('meta')
    meta = meta if isinstance(meta, dict) else {}
    published = {key: meta[key] for key in _META if key in meta}
    if config is None:
        plain = _config_of(meta)
    else:
        cfg = Config.fromfile(config) if isinstance(config, str) else config
        plain = student_config(cfg.to_dict())
        build_student(plain, weights, checkpoint)
    if not published.get('dataset_meta'):
        logger.warning(
            'The checkpoint does not name its classes (meta.dataset_meta); predictions will be '
            'numbers.'
        )
    if plain is not None:
        published['cfg'] = Config(plain).pretty_text
        _drop_foreign_classes(published, plain['model'])
    content = serialize(weights, published)
    path = Path(out).expanduser()
    if path.is_dir() or os.fspath(out).endswith((os.sep, '/')):
        path = path / Path(checkpoint).name
    digest = hashlib.sha256(content).hexdigest()[:8]
    name = f'{path.name.removesuffix(".pth")}-{digest}.pth'
    target = write_once(content, path.with_name(name))
    before, after = (os.path.getsize(path) / 2**20 for path in (checkpoint, target))
    logger.info(
        f'{target.name}: {len(weights)} tensors, {after:.2f} MiB '
        f'(the checkpoint has {before:.2f} MiB).'
    )
    return target


def student_config(cfg: dict[str, Any]) -> dict[str, Any]:
    """Reduce a config to the student, without initial weights, and how to evaluate it."""
    plain = {key: copy.deepcopy(cfg[key]) for key in _CONFIG if cfg.get(key) is not None}
    model = plain.get('model')
    if isinstance(model, dict) and 'architecture' in model:
        student = model['architecture']
        # Its own counts if it has a mean; else the distiller's, then the runner's default.
        own = student.get('data_preprocessor') or {}
        shared = model.get('data_preprocessor') or plain.get('data_preprocessor')
        preprocessor = own if own.get('mean') else shared
        # Of images that the distillation has put in this order.
        if own.get('mean') and (own.get('view') or model.get('student_view')):
            preprocessor = dict(own, to_rgb=(shared or {}).get('to_rgb', False))
        if preprocessor:
            student.pop('data_preprocessor', None)
            plain['data_preprocessor'] = preprocessor
        if model.get('student_view'):  # these images are not yet those that the student sees
            plain = {key: plain[key] for key in plain if not key.startswith('test_')}
        plain['model'] = student
    _drop_initial_weights(plain.get('model'))
    _let_files_in(plain.get('test_dataloader'))
    return plain


def innermost(loader: Any) -> dict[str, Any]:
    """Return the config of a loader's data set without its wrappers, empty if there is none."""
    while isinstance(loader, dict) and 'dataset' in loader:
        loader = loader['dataset']
    return loader if isinstance(loader, dict) else {}


def stored_channels(dataset: dict[str, Any]) -> str:
    """Say what the channels of a data set's images are, before ``data_preprocessor``."""
    kind, text = str(dataset.get('type')).rpartition('.')[-1], str(dataset)
    if 'LoadImageFromFile' in text:  # also in a pipeline of views, or of joined data sets
        return 'grey' if 'grayscale' in text else _UNKNOWN if 'unchanged' in text else 'BGR'
    if kind == 'NYUDepthV2':
        names = dict(rgb='RGB', depth='depth in metres')
        return ', '.join(names[name] for name in dataset.get('inputs', names))
    return _ARRAYS.get(kind, _UNKNOWN)


def _let_files_in(loader: Any) -> None:
    """Let MMPretrain's inferencers find the pipeline of a test loader, and run it on files.

    Files are BGR; ``data_preprocessor`` is for what the data set has.
    """
    dataset = innermost(loader)
    if dataset is loader or 'pipeline' not in dataset:
        return
    if 'ResidentDataset' in loader['dataset']['type']:  # It makes whole batches.
        loader['dataset'] = dataset
        loader.pop('collate_fn', None)
    if stored_channels(dataset) == 'RGB' and dataset['pipeline'][:1] != [_FILES_TO_RGB]:
        dataset['pipeline'] = [_FILES_TO_RGB, *dataset['pipeline']]


def _drop_foreign_classes(meta: dict[str, Any], model: dict[str, Any]) -> None:
    """Drop the names of classes that are not those of the network's outputs."""
    known, head = meta.get('dataset_meta') or {}, model.get('head')
    classes, outputs = known.get('classes'), head.get('num_classes') if head else None
    if outputs and classes and len(classes) != outputs:
        meta['dataset_meta'] = {key: known[key] for key in known if key != 'classes'}
        MMLogger.get_current_instance().warning(
            f'The network has {outputs} outputs, but its training images {len(classes)} classes; '
            'it is published without names of classes.'
        )


def parse_config_text(text: str) -> dict[str, Any]:
    """Read a config that MMEngine has printed, without running it."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, TypeError) as error:
        raise ValueError(f'not a config ({error})') from error
    found = {}
    for line in tree.body:
        if not isinstance(line, ast.Assign) or not isinstance(line.targets[0], ast.Name):
            raise ValueError(f'line {line.lineno} is not a plain assignment')
        try:
            found[line.targets[0].id] = ast.literal_eval(_Literals().visit(line.value))
        except (ValueError, TypeError) as error:
            raise ValueError(f'line {line.lineno} is not a plain value') from error
    return found


class _Literals(ast.NodeTransformer):
    """Replace ``dict(a=1)``, ``dict({'a': 1})``, ``inf`` and ``nan`` by literals."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Replace a call of ``dict`` by ``{...}``; others are refused as no literals."""
        self.generic_visit(node)
        if not isinstance(node.func, ast.Name) or node.func.id != 'dict':
            return node
        if len(node.args) == 1 and not node.keywords:
            return node.args[0]
        names: list[ast.expr | None] = [ast.Constant(keyword.arg) for keyword in node.keywords]
        return node if node.args else ast.Dict(names, [kw.value for kw in node.keywords])

    def visit_Name(self, node: ast.Name) -> ast.AST:
        """Replace the two numbers that have no literal."""
        return ast.Constant(float(node.id)) if node.id in ('inf', 'nan') else node


def _drop_initial_weights(cfg: Any) -> None:
    """Drop paths of weights that training started from."""
    if isinstance(cfg, dict):
        init = cfg.get('init_cfg')
        if isinstance(init, dict) and init.get('type') == 'Pretrained':
            del cfg['init_cfg']
        cfg.pop('backbone_ckpt', None)
        cfg = list(cfg.values())
    for child in cfg if isinstance(cfg, (list, tuple)) else ():
        _drop_initial_weights(child)


def _student_weights(weights: dict[str, Tensor], filename: Any) -> dict[str, Tensor]:
    """Weights under ``architecture.``, or all if there are none."""
    if any(key.startswith(_STUDENT) for key in weights):
        return {k.removeprefix(_STUDENT): v for k, v in weights.items() if k.startswith(_STUDENT)}
    if any(key.startswith('distiller.') for key in weights):
        raise ValueError(
            f'checkpoint {filename} has a distiller but no student: no key starts with '
            '"architecture."; give a checkpoint of crd_plugin.FrozenTeacherDistill or of MMRazor.'
        )
    return weights


def _config_of(meta: dict[str, Any]) -> dict[str, Any] | None:
    """Plain config from the one that the runner saved with the weights."""
    fault = 'the checkpoint has none'
    try:
        cfg = parse_config_text(meta.get('cfg') or '')
        model = cfg.get('model')
        model = model.get('architecture', model) if isinstance(model, dict) else {}
        if 'type' in model:
            return student_config(cfg)
    except ValueError as error:
        fault = str(error)
    MMLogger.get_current_instance().warning(
        f'The published file will have no config of the student: {fault}; give it with --config.'
    )
    return None


def build_student(plain: dict[str, Any], weights: dict[str, Tensor], filename: Any) -> nn.Module:
    """Build the network of a plain config, in eval mode, with weights that fit exactly."""
    from mmpretrain.registry import MODELS

    cfg = copy.deepcopy(plain.get('model'))
    if not isinstance(cfg, dict):
        raise ValueError('config has no `model`; give that of the student or of the distillation.')
    if plain.get('data_preprocessor'):
        cfg.setdefault('data_preprocessor', plain['data_preprocessor'])
    with DefaultScope.overwrite_default_scope(plain.get('default_scope', 'mmpretrain')):
        model = MODELS.build(cfg)
    advice = 'Give the config of the student that was trained.'
    load_strictly(model, weights, f'the student in checkpoint {filename}', 'config', advice)
    return model.eval()


def serialize(weights: dict[str, Tensor], meta: dict[str, Any]) -> bytes:
    """Serialize a checkpoint; equal input gives equal bytes."""
    # A view would be saved with all of the storage behind it.
    state = OrderedDict((key, value.detach().clone()) for key, value in weights.items())
    # Not into a file, whose name torch would write into the bytes.
    buffer = io.BytesIO()
    torch.save(dict(meta=meta, state_dict=state), buffer)
    return buffer.getvalue()


def write_once(content: bytes, target: Path) -> Path:
    """Write a file completely or not at all, and never over another file."""
    if target.is_dir():
        raise FileExistsError(
            f'OUT {target} is a folder; give a file in it, such as {target / "resnet32x4.pth"}.'
        )
    if target.exists():
        if target.read_bytes() == content:
            return target
        raise FileExistsError(
            f'{target} exists already and is another file; remove it or choose another OUT.'
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f'.{target.name}-{os.getpid()}.part')
    try:
        part.write_bytes(content)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return target
