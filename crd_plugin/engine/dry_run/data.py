"""Training data of a dry run: what the config says, and random images."""

import inspect
from dataclasses import dataclass
from typing import Any, Dict, Optional, Sequence, Tuple

import numpy as np
import torch
from mmengine.registry import DATASETS
from torch import Tensor

from ..hooks.memory_bank_hook import index_dataset
from .report import DryRunReport, describe, one_line
from .types import explain, find_type, walk

# Transforms that fix the size of an image, and the argument that says it.
_SIZES = dict(
    RandomResizedCrop='scale',
    EfficientNetRandomCrop='scale',
    RandomCrop='crop_size',
    CenterCrop='crop_size',
    EfficientNetCenterCrop='crop_size',
    Resize='scale',
)


@dataclass
class DataFacts:
    """What is known of the training set.

    Attributes:
        kind (str): Its type; empty when the config has none.
        num_samples (int, optional): None when it could not be read.
        labels (np.ndarray, optional): Class of every sample.
        num_classes (int, optional): Length of ``metainfo['classes']``.
        gives_ids (bool): Its samples carry ids.
        contrast (int, optional): Negatives that its samples carry.
        num_views (int, optional): Views of each image; None for one alone.
        image (tuple): Channels, height and width.
        image_from (str): Where that is known from.
        dtype (torch.dtype): Of the images.
    """

    kind: str = ''
    num_samples: Optional[int] = None
    labels: Optional[np.ndarray] = None
    num_classes: Optional[int] = None
    gives_ids: bool = False
    contrast: Optional[int] = None
    num_views: Optional[int] = None
    image: Tuple[int, int, int] = (3, 32, 32)
    image_from: str = ''
    dtype: torch.dtype = torch.uint8


def inspect_data(cfg: Dict[str, Any], report: DryRunReport) -> DataFacts:
    """Build the training set, if its files are there, and look at it.

    Args:
        cfg (dict): The whole config.
        report (DryRunReport): Takes what is wrong or missing.

    Returns:
        DataFacts: What is known.
    """
    facts = DataFacts()
    loader = cfg.get('train_dataloader')
    dataset_cfg = loader.get('dataset') if isinstance(loader, dict) else None
    _image_of_config(cfg, dataset_cfg, facts)
    if not isinstance(dataset_cfg, dict):
        report.note('The config has no train_dataloader.dataset; only the model is checked.')
        return facts
    facts.kind = str(dataset_cfg.get('type'))
    _facts_of_classes(dataset_cfg, facts)
    _never_download(dataset_cfg)
    try:
        dataset = DATASETS.build(dataset_cfg)
        if hasattr(dataset, 'full_init'):
            dataset.full_init()
        facts.num_samples = len(dataset)
    except Exception as error:  # Whatever a user's data set may raise.
        if _is_missing(error):
            report.note(
                f'train_dataloader.dataset: {facts.kind} cannot be read: '
                f'{one_line(error, 200).rstrip(".")}; put its files there, '
                'or set its '
                'data_root. The model is checked without it.'
            )
        else:
            report.problem(explain(error, 'train_dataloader.dataset', dataset_cfg))
        return facts
    _facts_of_dataset(dataset, facts, report)
    return facts


def describe_data(facts: DataFacts) -> str:
    """One line about the training set.

    Args:
        facts (DataFacts): What is known.

    Returns:
        str: The line.
    """
    if not facts.kind:
        return ''
    known = 'not read' if facts.num_samples is None else f'{facts.num_samples:,} samples'
    classes = '' if facts.num_classes is None else f', {facts.num_classes} classes'
    return f'{facts.kind}, {known}{classes}'


def random_batch(facts: DataFacts, batch_size: int, labels: Tensor) -> Dict[str, Any]:
    """A batch as the data loader would give it, of random images.

    Args:
        facts (DataFacts): Shape and kind of the images.
        batch_size (int): Samples.
        labels (Tensor): Class of each row of the bank, ``(N,)``; the samples
            are rows of it.

    Returns:
        dict: ``inputs`` and ``data_samples``.
    """
    from mmpretrain.structures import DataSample

    size = (batch_size, *facts.image)
    if facts.dtype.is_floating_point:
        inputs = torch.randn(size).to(facts.dtype)
    else:
        inputs = torch.randint(0, 256, size).to(facts.dtype)
    if facts.num_views:
        # A list of images a view, each view its own.
        inputs = [list(inputs[torch.randperm(batch_size)]) for _ in range(facts.num_views)]
    rows = torch.randperm(labels.numel())[:batch_size]
    if rows.numel() < batch_size:
        rows = rows.repeat(batch_size)[:batch_size]
    samples = []
    for row in rows.tolist():
        sample = DataSample().set_gt_label(int(labels[row]))
        if facts.gives_ids:
            sample.set_field(row, 'sample_idx', field_type='metainfo')
        if facts.contrast:
            other = torch.randint(labels.numel(), (facts.contrast,))
            sample.set_field(torch.cat([torch.tensor([row]), other]), 'contrast_idx')
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)


def _image_of_config(cfg: Dict[str, Any], dataset: Any, facts: DataFacts) -> None:
    """Size of an image as pipeline and model say it."""
    model = cfg.get('model') or {}
    shape = model.get('input_shape') if isinstance(model, dict) else None
    if shape is not None and len(shape) == 3:
        facts.image = tuple(int(size) for size in shape)
        facts.image_from = 'model.input_shape'
    channels = _channels(cfg, facts.image[0])
    found = None
    for _, part in walk(dataset, ''):
        size = part.get(_SIZES.get(str(part.get('type')).rpartition('.')[2]))
        if isinstance(size, int):
            size = (size, size)
        # (width, height) of Resize, (height, width) of a crop.
        if isinstance(size, (list, tuple)) and len(size) == 2 and min(size) > 0:
            found = tuple(size)
            if str(part['type']).rpartition('.')[2] == 'Resize':
                found = found[::-1]
    if found is not None:
        facts.image = (channels, *found)
        facts.image_from = 'the training pipeline'
    elif not facts.image_from:
        facts.image = (channels, *facts.image[1:])
        facts.image_from = 'a guess: neither pipeline nor model say it'


def _channels(cfg: Dict[str, Any], default: int) -> int:
    """Channels of an image, by the means that are subtracted."""
    for place in (cfg.get('model'), cfg):
        part = place.get('data_preprocessor') if isinstance(place, dict) else None
        if isinstance(part, dict) and part.get('mean') is not None:
            return len(part['mean'])
    return default


def _never_download(cfg: Any) -> None:
    """A dry run leaves no files behind."""
    for _, part in walk(cfg, ''):
        kind = part.get('type')
        cls = find_type(DATASETS, kind) if isinstance(kind, str) else None
        for base in inspect.getmro(cls) if inspect.isclass(cls) else ():
            init = vars(base).get('__init__')
            if init and 'download' in inspect.signature(init).parameters:
                part['download'] = False
                break


def _is_missing(error: Exception) -> bool:
    """Whether an error means that files are not there."""
    if isinstance(error, FileNotFoundError):
        return True
    text = str(error)
    return isinstance(error, (RuntimeError, AssertionError)) and (
        'Cannot find' in text or 'Download failed' in text
    )


def _facts_of_classes(cfg: Dict[str, Any], facts: DataFacts) -> None:
    """What the classes of the data sets tell without any file."""
    for _, part in walk(cfg, ''):
        kind = part.get('type')
        cls = find_type(DATASETS, kind) if isinstance(kind, str) else None
        if hasattr(cls, 'num_samples'):
            facts.gives_ids = True
            facts.contrast = part.get('num_negatives')
        classes = getattr(cls, 'METAINFO', {}).get('classes')
        given = part.get('metainfo')
        if isinstance(given, dict) and given.get('classes') is not None:
            classes = given['classes']
        if isinstance(classes, (list, tuple)):
            facts.num_classes = len(classes)


def _facts_of_dataset(dataset: Any, facts: DataFacts, report: DryRunReport) -> None:
    """Length, labels, classes and one sample of a data set."""
    numbered = index_dataset(dataset)
    facts.gives_ids = numbered is not None
    if facts.gives_ids:
        dataset = numbered
        facts.num_samples = dataset.num_samples
    classes = getattr(dataset, 'metainfo', {}).get('classes')
    if isinstance(classes, (list, tuple)):
        facts.num_classes = len(classes)
    if hasattr(dataset, 'get_gt_labels'):
        try:
            labels = np.asarray(dataset.get_gt_labels())
            if labels.ndim == 1:
                facts.labels = labels.astype(np.int64)
        except (ValueError, KeyError, TypeError) as error:
            report.note(f'train_dataloader.dataset has no labels: {error}')
    try:
        sample = dataset[0]
    except FileNotFoundError as error:
        report.note(f'train_dataloader.dataset: the first image is missing: {one_line(error, 200)}')
        return
    except Exception as error:  # Any transform may fail in its own way.
        report.problem(
            'train_dataloader.dataset: its first sample does not '
            f'go through the pipeline: {one_line(error)}; mend '
            'the pipeline or the data.'
        )
        return
    inputs = sample.get('inputs') if isinstance(sample, dict) else None
    if isinstance(inputs, list) and inputs:
        facts.num_views = len(inputs)
        inputs = inputs[0]
    if isinstance(inputs, Tensor) and inputs.dim() == 3:
        facts.image = tuple(inputs.shape)
        facts.image_from = 'a training sample'
        facts.dtype = inputs.dtype
    else:
        report.problem(
            f'train_dataloader.dataset: a sample holds {describe(sample)}, '
            'expected inputs (C, H, W) and data_samples; end the pipeline '
            'with PackInputs.'
        )


def labels_of(facts: DataFacts, num_rows: int, num_classes: Optional[int]) -> Tensor:
    """Labels of the rows that the random samples are taken from.

    Args:
        facts (DataFacts): What is known of the data set.
        num_rows (int): Rows.
        num_classes (int, optional): Outputs of the head; labels stay below.

    Returns:
        Tensor: ``(num_rows,)`` int64.
    """
    if facts.labels is not None and len(facts.labels) == num_rows:
        labels = torch.from_numpy(facts.labels)
    else:
        # A stand-in has two classes at least, so that there are negatives.
        labels = torch.arange(num_rows) % (num_classes or 2)
    return labels if num_classes is None else labels % num_classes


def image_text(facts: DataFacts, batch_size: int) -> str:
    """One line about the random images.

    Args:
        facts (DataFacts): Their shape.
        batch_size (int): How many.

    Returns:
        str: The line.
    """
    shape: Sequence[int] = (batch_size, *facts.image)
    kind = str(facts.dtype).replace('torch.', '')
    views = f', {facts.num_views} views' if facts.num_views else ''
    return f'random, {" x ".join(map(str, shape))} {kind}{views} (size from {facts.image_from})'
