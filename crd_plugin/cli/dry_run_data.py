"""What a dry run reads: data sets, weights, and how the teacher's images were normalised."""

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import mmpretrain
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.fileio import load
from mmengine.registry import DATASETS, HOOKS
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from mmpretrain.datasets import BaseDataset
from torch import Tensor, nn

from crd_plugin.checkpoints.publish import parse_config_text
from crd_plugin.compat import CheckpointError, load_checkpoint_file
from crd_plugin.datasets.sample_index import check_sources
from crd_plugin.engine import CheckpointHook, CoCoRDHook, MemoryBankHook
from crd_plugin.engine.hooks.memory_bank_hook import index_dataset
from crd_plugin.models.key_queue import KeyQueue
from crd_plugin.models.memory_bank import MemoryBank

from .arguments import rank_and_ranks, without_files
from .dry_run_report import BankRow, DryRunReport
from .lookup import (
    PlacedError,
    arguments_of,
    find_type,
    one_line,
    walk,
    wants_complete,
    within,
)

# What widths are inferred with where a config does not say it.
INPUT_SHAPE = (3, 32, 32)
# A bank of more rows is not allocated; so many stand in for it, as for samples without files.
_MOST_ROWS, _STAND_INS = 65536, 4096
_LARGE = (512, 512)  # more than pipelines crop or resize to


class _StandIn(BaseDataset):
    """Random images in place of a data set whose files are missing."""

    def __init__(self, pipeline: list, classes: list[str] | None, shape: tuple[int, ...]) -> None:
        self._shape = shape  # channels, height, width
        super().__init__('', pipeline=pipeline, classes=classes, serialize_data=False)

    def load_data_list(self) -> list[dict]:
        """Give all samples one image, as an array and as a file, and one label map."""
        channels, height, width = self._shape
        image = np.random.randint(0, 256, (height, width, channels), np.uint8)
        self._file = tempfile.NamedTemporaryFile(suffix='.png')
        cv2.imwrite(self._file.name, image)
        number = len(self.metainfo.get('classes', 'ab'))
        labels = np.random.randint(0, min(number, 255), (height, width), np.uint8)
        sample = dict(img=image, img_shape=(height, width), img_path=self._file.name)
        sample['gt_seg_map'] = labels
        return [dict(sample, gt_label=i % number) for i in range(_STAND_INS)]


@dataclass
class Data:
    """What is known of a data set."""

    kind: str
    dataset: Any  # the set, or one of random images in its place
    place: str = ''  # of the set in the config
    num_samples: int | None = None  # number of ids; None if its files are missing
    labels: Tensor | None = None  # class of each id, (N,) int64
    origin: str = 'random'  # where the images come from
    rows: int = 0  # of the memory banks here; 0 until they are sized

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; empty if they have none."""
        return tuple(getattr(self.dataset, 'metainfo', {}).get('classes') or ())

    @property
    def num_classes(self) -> int | None:
        """Number of classes that have a name."""
        return len(self.classes) or None

    def __str__(self) -> str:
        known = 'not read' if self.num_samples is None else f'{self.num_samples:,} samples'
        classes = '' if self.num_classes is None else f', {self.num_classes} classes'
        return f'{self.kind}, {known}{classes}'

    def read_batch(self, batch_size: int) -> dict[str, Any]:
        """Read samples with ids below the number of rows, as the data loader gives them."""
        number = min(self.rows or len(self.dataset), len(self.dataset))
        chosen = torch.randperm(number).repeat(batch_size)[:batch_size]
        items = [self.dataset[int(index)] for index in chosen]
        for item in items:
            if not {'inputs', 'data_samples'} <= set(item):
                raise ValueError(
                    f'{self.place}: a sample has {", ".join(map(str, item))}, expected inputs and '
                    'data_samples; end the pipeline with PackInputs.'
                )
            if 'contrast_idx' in item['data_samples']:
                item['data_samples'].contrast_idx %= number
        return default_collate(items)


def read_data(
    cfg: Mapping[str, Any],
    loader: str,
    notes: list[str],
    stand_ins: bool = True,
    size: Sequence[int] | None = None,
) -> Data:
    """Open a data set without downloading it; random images stand in for missing files."""
    dataset_cfg, place = (cfg.get(loader) or {}).get('dataset'), f'{loader}.dataset'
    if dataset_cfg is None:
        raise ValueError(f'the config has no {place}; add one, or a _base_ that has it.')
    for _, part in walk(dataset_cfg):
        if 'download' in arguments_of(find_type(part.get('type'))):
            part['download'] = False
    data = Data(str(dataset_cfg['type']), None, place)
    try:
        data.dataset = DATASETS.build(dataset_cfg)
        numbered = index_dataset(data.dataset) or data.dataset
        if hasattr(numbered, 'full_init'):
            numbered.full_init()  # As the data loader does; it checks the set for training.
        if loader != 'train_dataloader' and wants_complete(cfg):
            check_sources(data.dataset)
        data.num_samples = getattr(numbered, 'num_samples', len(numbered))
        with suppress(AttributeError, KeyError, TypeError, ValueError):  # not one per sample
            labels = torch.as_tensor(np.asarray(numbered.get_gt_labels(), np.int64))
            data.labels = labels if labels.dim() == 1 else None
        data.dataset[0]
        data.origin = 'training samples'
    except Exception as error:  # Whatever a data set or a transform may raise.
        text = one_line(error).rstrip('.')
        missing = isinstance(error, FileNotFoundError)
        missing = missing or text.startswith(('Cannot find', 'Download failed'))  # MMPretrain's
        if data.dataset is None and not missing:
            raise
        if missing:
            fix = 'put its files there, or set its data_root'
            text = f'{place}: {data.kind} cannot be read: {text}; {fix}.'
        else:
            text = f'{place}: its samples cannot be read: {text}.'
        if not (missing and stand_ins):
            raise PlacedError(text) from error
        data.dataset = _stand_in(dataset_cfg, cfg, size)
        notes.append(f'{text} Random images stand in for it.')
    # The tools keep no workers where there are none.
    options = dict(dataset=dict(type=lambda: data.dataset), persistent_workers=False)
    with within(loader):
        Runner.build_dataloader({**cfg[loader], **options}, seed=0)
    return data


def ends_with_one_sample(cfg: Mapping[str, Any], data: Data) -> bool:
    """Tell whether the last batch of an epoch has one sample; raise an error if there is none."""
    loader = cfg['train_dataloader']
    sampler, batch_size = (loader.get('sampler') or {}).get('type'), loader.get('batch_size')
    if data.num_samples is None or batch_size is None or sampler != 'DefaultSampler':
        return False  # it is not known
    _, ranks = rank_and_ranks(cfg.get('launcher', 'none'))
    samples = -(-len(data.dataset) // ranks)
    if loader.get('drop_last') and samples < batch_size:
        raise PlacedError(
            f'train_dataloader: {samples} samples per process, batch_size={batch_size} and '
            f'drop_last=True leave no batch; lower batch_size to at most {samples}, or set '
            'drop_last=False.'
        )
    left = 0 if loader.get('drop_last') else samples % batch_size
    return (left or batch_size) == 1


def check_classes(model: nn.Module, data: Data) -> None:
    """Compare the outputs of the student's head, and the labels, with the classes of the data."""
    net = getattr(model, 'architecture', model)
    outputs, classes = getattr(getattr(net, 'head', None), 'num_classes', None), data.num_classes
    largest = -1 if data.labels is None else int(data.labels.max())
    if classes and largest >= classes:
        raise ValueError(
            f'train_dataloader.dataset has the label {largest}, but its metainfo names {classes} '
            'classes; name all of them. `classes` takes no subset of the samples: for that, write '
            'an annotation file with labels from 0.'
        )
    if classes is None and outputs is not None and largest >= 0:
        classes = max(outputs, largest + 1)
    # A student whose own loss is not computed may have any number.
    asked = getattr(model, 'calculate_student_loss', True)
    if asked and None not in (outputs, classes) and outputs != classes:
        place = 'model' if net is model else 'model.architecture'
        raise ValueError(
            f'{place}.head.num_classes is {outputs}, the data set has {classes} classes; set it '
            f'to {classes}.'
        )


def prepare(
    model: nn.Module, cfg: Mapping[str, Any], data: Data, batch_size: int, report: DryRunReport
) -> dict[str, Any]:
    """Read samples, and let the hooks prepare the model for them as they do before a training."""
    hooks = _build_hooks(model, cfg)
    banks = {name: bank for name, bank in model.named_modules() if isinstance(bank, MemoryBank)}
    given = max((bank.num_samples for bank in banks.values()), default=0)  # allocated already
    known = data.num_samples or given or None
    data.rows = known if known and (given or known <= _MOST_ROWS) else _STAND_INS
    batch = data.read_batch(batch_size)
    dataset, labels, numbered = data.dataset, data.labels, index_dataset(data.dataset)
    if data.num_samples is None or (labels is not None and len(labels) != data.rows):
        labels = torch.arange(data.rows) % (data.num_classes or 2)
        for sample in batch['data_samples'] if banks and numbered is not None else ():
            labels[sample.sample_idx] = sample.gt_label
    if numbered is not None:
        read_labels = numbered.get_gt_labels if labels is None else labels.numpy
        dataset = SimpleNamespace(num_samples=data.rows, get_gt_labels=read_labels)
    remarks: list[str] = []
    logger = SimpleNamespace(info=remarks.append)
    runner = SimpleNamespace(model=model, hooks=hooks, seed=0, logger=logger)
    runner._train_loop = runner.train_loop = _loop(cfg, runner, dataset)
    for hook in hooks:
        if isinstance(hook, (MemoryBankHook, CoCoRDHook, CheckpointHook)):
            hook.before_run(runner)
    if data.rows == known:
        report.notes += [remark for remark in remarks if 'negatives' in remark]
    for name, bank in banks.items():
        mib = known and bank.num_bytes / data.rows * known / 2**20
        report.banks.append(BankRow(name, known, bank.embed_dim, mib, data.rows))
    return batch


def _loop(cfg: Mapping[str, Any], runner: Any, dataset: Any) -> BaseLoop:
    """Stand-in for the training loop, of its class, in which hooks find the data set."""
    train_cfg = cfg.get('train_cfg') or dict(by_epoch=True)
    plain = EpochBasedTrainLoop if train_cfg.get('by_epoch') else IterBasedTrainLoop
    loop = object.__new__(find_type(train_cfg.get('type')) or plain)
    # A loop of iterations would start the workers of its loader.
    BaseLoop.__init__(loop, runner, SimpleNamespace(dataset=dataset))
    return loop


def _build_hooks(model: nn.Module, cfg: Mapping[str, Any]) -> list[Any]:
    """Build every hook; one must write what a forward pass leaves behind."""
    hooks = []
    given = {f'default_hooks.{k}': hook for k, hook in (cfg.get('default_hooks') or {}).items()}
    given |= {f'custom_hooks[{i}]': hook for i, hook in enumerate(cfg.get('custom_hooks') or ())}
    for place, hook in given.items():
        with suppress(RuntimeError), within(place):  # some ask for the runner's visualizer
            if isinstance(hook, Mapping):  # the runner takes out how early it is called
                hook = {k: v for k, v in hook.items() if k != 'priority'}
            if hook:
                hooks.append(HOOKS.build(hook))
    for state, writer in ((MemoryBank, MemoryBankHook), (KeyQueue, CoCoRDHook)):
        is_left = any(isinstance(module, state) for module in model.modules())
        if is_left and not any(isinstance(hook, writer) for hook in hooks):
            raise ValueError(
                f'no {writer.__name__} writes the {state.__name__} of the model; add '
                f"dict(type='crd_plugin.{writer.__name__}') to default_hooks, or to custom_hooks "
                '(a config that sets custom_hooks replaces the list of its _base_).'
            )
    return hooks


def _stand_in(
    dataset_cfg: Mapping[str, Any], cfg: Mapping[str, Any], size: Sequence[int] | None
) -> Any:
    """A data set of random images, sized by the pipeline, or else as given, or by the model."""
    model = cfg.get('model') or {}
    preprocessor = model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    channels, *default = model.get('input_shape') or INPUT_SHAPE
    if preprocessor.get('mean') and not preprocessor.get('view'):  # else they are the view's
        channels = len(preprocessor['mean'])
    for height, width in (_LARGE, size or default):
        dataset = DATASETS.build(_with_stand_ins(dataset_cfg, (channels, height, width)))
        inputs = dataset[0]['inputs']
        if min((inputs if isinstance(inputs, Tensor) else inputs[0]).shape[-2:]) < min(_LARGE):
            break
    return dataset


def _with_stand_ins(cfg: Mapping[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """Config of a data set with stand-ins in place of what reads files."""
    if 'dataset' in cfg:
        return {**cfg, 'dataset': _with_stand_ins(cfg['dataset'], shape)}
    if 'datasets' in cfg:
        return {**cfg, 'datasets': [_with_stand_ins(inner, shape) for inner in cfg['datasets']]}
    infos = [cfg.get('metainfo'), getattr(find_type(cfg.get('type')), 'METAINFO', None)]
    classes = next((info['classes'] for info in infos if info and info.get('classes')), None)
    pipeline = cfg.get('pipeline') or [dict(type='mmpretrain.PackInputs')]
    return dict(type=_StandIn, pipeline=pipeline, classes=classes, shape=shape)


def check_weights(
    cfg: dict[str, Any], data: Data, use_teacher_ckpt: bool, report: DryRunReport
) -> None:
    """Say which weights the teacher has; take out those that would be downloaded."""
    model = cfg['model']
    if 'teacher' in model:
        _check_teachers(model, data, report)
    for key in () if use_teacher_ckpt else ('backbone_ckpt', 'teacher_ckpt'):
        if model.get(key):
            model[key] = without_files(model[key])
            report.notes.append(f'model.{key} is passed over as asked for.')
    for place, part in [('', cfg), *walk(model, 'model')]:
        for key in ('load_from', 'teacher_ckpt', 'student_ckpt', 'backbone_ckpt', 'init_cfg'):
            if part.get(key):
                name = f'{place}.{key}'.lstrip('.')
                part[key] = _without_downloads(part[key], name, report.notes)


def _check_teachers(model: Mapping[str, Any], data: Data, report: DryRunReport) -> None:
    """Name the files of teachers; compare images and classes with those of their training."""
    several = isinstance(model['teacher'], (list, tuple))
    networks = list(model['teacher']) if several else [model['teacher']]
    checkpoints = model.get('teacher_ckpt')
    if not isinstance(checkpoints, (list, tuple)):
        checkpoints = [checkpoints] if checkpoints else []
    files = []
    if any(network.get('train_cfg') for network in networks):
        report.notes.append(
            'model.teacher.train_cfg has no effect, because the teacher is not trained.'
        )
    given = _normalisation(model)
    for number, checkpoint in enumerate(checkpoints):
        file = Path(checkpoint or '').expanduser()
        if file.is_file():  # else loading says so
            digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
            files.append(f'{file.name}, sha256 {digest}')
        trained_cfg, classes = _training_of(checkpoint or '')
        if len(classes) == data.num_classes and classes != data.classes:
            here, there = next(pair for pair in zip(data.classes, classes) if len({*pair}) > 1)
            report.notes.append(
                f'model.teacher_ckpt={checkpoint}: the class that is {here!r} in the training set '
                f"is {there!r} in the teacher's; if they are not the same, its logits teach wrong "
                'classes.'
            )
        mean_and_std = _normalisation(trained_cfg.get('model'), trained_cfg)
        # With a data preprocessor of its own a teacher is given what it says.
        fits = bool(_normalisation(networks[number if several else 0]))
        fits = fits or all(np.allclose(*pair, atol=1) for pair in zip(given, mean_and_std))
        if not fits:  # by a grey level
            mean, std = mean_and_std
            place = f'model.teacher[{number}]' if several else 'model.teacher'
            report.notes.append(
                f'model.teacher_ckpt={checkpoint}: the teacher was trained on images with mean '
                f'{mean} and std {std}, but is given images with mean {given[0]} and std '
                f"{given[1]}, as the student is; set {place}.data_preprocessor=dict(type='Cls"
                f"DataPreprocessor', mean={mean}, std={std})."
            )
    report.teacher = '; '.join(files) or 'random weights, unless the network brings some'


def _without_downloads(given: Any, place: str, notes: list[str]) -> Any:
    """Put None in the place of weights that would be downloaded."""
    if isinstance(given, (list, tuple)):
        return [_without_downloads(one, f'{place}[{i}]', notes) for i, one in enumerate(given)]
    path = given.get('checkpoint') if isinstance(given, dict) else given
    if '://' not in str(path):
        return given
    notes.append(f'{place}={path} is not fetched here; random weights stand in.')
    return None


def _normalisation(*parts: Any) -> list[Any]:
    """Mean and std of the first config that has a ``data_preprocessor`` with both."""
    for part in parts:
        preprocessor = (part or {}).get('data_preprocessor') or {}
        if preprocessor.get('mean') and preprocessor.get('std'):
            return [preprocessor['mean'], preprocessor['std']]
    return []


def _training_of(path: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Config and classes that a checkpoint was trained with; empty if they are not known."""
    classes: tuple[str, ...] = ()
    with suppress(CheckpointError, FileNotFoundError, ValueError):  # told when it is loaded
        meta = {} if '://' in path else load_checkpoint_file(path).get('meta')
        if isinstance(meta, dict):
            classes = tuple((meta.get('dataset_meta') or {}).get('classes') or ())
            if meta.get('cfg'):
                return parse_config_text(meta['cfg']), classes
    name, root = path.rpartition('/')[2], Path(mmpretrain.__file__).parent / '.mim'
    for index in root.glob('configs/*/metafile.yml') if name else ():
        if name in index.read_text(encoding='utf-8'):
            for entry in load(index)['Models']:
                if str(entry.get('Weights')).endswith(f'/{name}'):
                    return Config.fromfile(root / entry['Config']).to_dict(), classes
    return {}, classes
