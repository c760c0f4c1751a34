"""The folder of a student that a model hub expects, and its way there."""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from mmengine.config import Config
from mmengine.fileio import load
from torch import Tensor, nn

from crd_plugin.compat import load_checkpoint_file

from .publish import (
    build_student,
    innermost,
    parse_config_text,
    publish_student,
    stored_channels,
)

_CARD = """\
---
{header}---

# {name}

| | |
|---|---|
{facts}

```python
import crd_plugin  # first: it makes the versions work together
from mmpretrain import get_model

model = get_model('config.py', pretrained='{weights}')
{inferencer}```

`model.safetensors` holds the same weights without the names of the classes.
"""
_INFERENCER = """
from mmpretrain import ImageClassificationInferencer

inferencer = ImageClassificationInferencer('config.py', pretrained='{weights}')
inferencer('image.png')  # or an array in OpenCV's order, BGR
"""


def export_student(
    checkpoint: str | Path,
    folder: str | Path,
    config: str | Config | None = None,
    metrics: str | Path | None = None,
    onnx_size: int | None = None,
) -> Path:
    """Publish a student with ``model.safetensors``, ``config.py`` and a model card, or nothing.

    Args:
        checkpoint (str | Path): As for :func:`publish_student`.
        folder (str | Path): Where to write; its name is the student's.
        config (str | Config, optional): As for :func:`publish_student`.
        metrics (str | Path, optional): File with accuracies in percent for the card, such as
            ``{"accuracy/top1": 91.8}``. Defaults to None.
        onnx_size (int, optional): Height and width of the images of ``model.onnx``, in pixels.
            Defaults to None: none is written.

    Returns:
        Path: The published checkpoint.

    Raises:
        ImportError: If a package of ``requirements/export.txt`` is missing.
        ValueError: If the student has no config, a metric is not a percentage, the network cannot
            be exported, or ONNX Runtime computes other logits.
    """
    from safetensors.torch import save_file

    accuracies = _load_metrics(metrics) if metrics else {}
    folder = Path(folder).expanduser().resolve()
    # All or nothing.
    with TemporaryDirectory() as temporary:
        draft = Path(temporary, folder.name)
        published = publish_student(checkpoint, draft / f'{folder.name}.pth', config)
        loaded = load_checkpoint_file(published)
        text = loaded['meta'].get('cfg')
        if not text:
            raise ValueError(f'{checkpoint} holds no config of the student; give it with --config.')
        weights: dict[str, Tensor] = loaded['state_dict']
        tensors = {key: value.contiguous() for key, value in weights.items()}
        save_file(tensors, draft / 'model.safetensors', metadata=dict(format='pt'))
        (draft / 'config.py').write_text(text, encoding='utf-8')
        plain = parse_config_text(text)
        if onnx_size is not None:
            export_onnx(build_student(plain, weights, checkpoint), draft / 'model.onnx', onnx_size)
        meta = load_checkpoint_file(checkpoint).get('meta') or {}
        trained = parse_config_text(meta.get('cfg') or '')
        card = _card(published.name, plain, trained, loaded['meta'], accuracies)
        (draft / 'README.md').write_text(card, encoding='utf-8')
        shutil.copytree(draft, folder, dirs_exist_ok=True)
    return folder / published.name


def export_onnx(model: nn.Module, path: Path, size: int) -> None:
    """Write a classifier as ONNX, and compare its logits with those of PyTorch.

    The input ``images`` is ``(B, C, size, size)`` float32, normalised, with the channels that the
    first convolution takes; the output ``logits`` is ``(B, classes)``. B is free.

    Raises:
        ImportError: If a package of ``requirements/export.txt`` is missing.
        ValueError: If the network cannot be exported, or the logits differ by more than 1e-4 of the
            largest.
    """
    import onnxruntime

    # A mean does not say: there may be none, one for all channels, or that of a view.
    layers = (layer for layer in model.modules() if isinstance(layer, nn.Conv2d))
    channels = next((layer.in_channels for layer in layers), 3)
    try:
        images = torch.randn(3, channels, size, size, generator=torch.Generator().manual_seed(0))
        torch.onnx.export(
            model,
            (images,),
            path,
            input_names=['images'],
            output_names=['logits'],
            dynamic_shapes=({0: torch.export.Dim('batch')},),
            external_data=False,
            verbose=False,
        )
    except RuntimeError as error:
        problem = str(error.__cause__ or error).partition('\n')[0].rstrip('.')
        raise ValueError(
            f'ONNX for images of {channels}x{size}x{size} fails: {problem}; give the size of the '
            'training images.'
        ) from error
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    for batch in (images, images[:1]):
        with torch.no_grad():
            expected = model(batch)
        (logits,) = session.run(None, dict(images=batch.numpy()))
        difference = (torch.from_numpy(logits) - expected).abs().max() / expected.abs().max()
        if not difference <= 1e-4:
            path.unlink()
            raise ValueError(
                f'ONNX Runtime computes other logits than PyTorch: {difference:.1e} of the '
                'largest; the network cannot be exported as it is.'
            )


def upload(folder: str | Path, repo_id: str) -> str:
    """Upload a folder to ``OWNER/NAME`` of the Hugging Face Hub; return the address."""
    from huggingface_hub import HfApi

    client = HfApi()
    client.create_repo(repo_id, exist_ok=True)
    # Nothing else that may lie in the folder.
    ours = ['README.md', 'config.py', 'model.*', '*.pth']
    return str(client.upload_folder(folder_path=folder, repo_id=repo_id, allow_patterns=ours))


def _card(
    weights: str,
    plain: Mapping[str, Any],
    trained: Mapping[str, Any],
    meta: Mapping[str, Any],
    metrics: Mapping[str, float],
) -> str:
    """Return the text of the model card."""
    model, name = trained.get('model') or {}, weights.rpartition('-')[0]
    losses = (model.get('distiller') or {}).get('distill_losses') or {}
    images = plain['model'].get('data_preprocessor') or plain.get('data_preprocessor') or {}
    dataset, names = innermost(plain.get('test_dataloader')), meta.get('dataset_meta') or {}
    outputs = (plain['model'].get('head') or {}).get('num_classes', 'unknown')
    seen = dataset or innermost(trained.get('train_dataloader'))
    channels = _channels(seen, images, model.get('student_view'))
    facts = {
        'student': _describe(plain['model']),
        'method': ', '.join(
            f'{loss["type"]} (weight {loss.get("loss_weight", 1.0)})' for loss in losses.values()
        ),
        'teacher': _teacher(model),
        'data': _data(trained.get('train_dataloader')),
        'epochs': meta.get('epoch'),
        'seed': meta.get('seed'),
        'classes': ', '.join(map(str, names.get('classes') or [f'{outputs}, without names'])),
        'normalisation': f'mean {images.get("mean")}, std {images.get("std")}, {channels}',
        **{f'{key} in percent': f'{value:.2f}' for key, value in metrics.items()},
    }
    header: dict[str, Any] = dict(
        library_name='mmpretrain',
        pipeline_tag='image-classification',
        tags=['knowledge-distillation', 'crd_plugin'],
    )
    if metrics:
        figures = [dict(type='accuracy', name=k, value=round(v, 2)) for k, v in metrics.items()]
        # What tools/test.py measures on.
        tested = _data(trained.get('test_dataloader'))
        task, data_set = dict(type='image-classification'), dict(type='custom', name=tested)
        results = [dict(task=task, dataset=data_set, metrics=figures)]
        header['model-index'] = [dict(name=name, results=results)]
    return _CARD.format(
        header=yaml.safe_dump(header, sort_keys=False),
        name=name,
        facts='\n'.join(f'| {k} | {v} |' for k, v in facts.items() if v not in (None, '')),
        weights=weights,
        # It needs a pipeline, and files that show what the data set has.
        inferencer=_INFERENCER.format(weights=weights)
        if 'pipeline' in dataset and stored_channels(dataset) in ('RGB', 'BGR', 'grey')
        else '',
    )


def _channels(dataset: dict[str, Any], images: Mapping[str, Any], student_view: Any) -> str:
    """Say what the channels of the network's images are."""
    seen = stored_channels(dataset)
    if any(images.get(name) for name in ('to_rgb', 'bgr_to_rgb', 'rgb_to_bgr')):
        seen = dict(BGR='RGB', RGB='BGR').get(seen, seen)
    for view in filter(None, (student_view, images.get('view'))):
        given = ', '.join(f'{name}={value!r}' for name, value in view.items() if name != 'type')
        seen = f'{view["type"].rpartition(".")[-1]}({given}) of {seen}'
    return seen


def _load_metrics(file: str | Path) -> dict[str, float]:
    """Load accuracies in percent."""
    try:
        found = load(file)
    except OSError:
        raise
    except Exception as error:  # of JSON, YAML, pickle, or another ending
        raise ValueError(f'metrics {file} cannot be read: {error}.') from error
    metrics = found if isinstance(found, dict) and found else dict(content=found)
    for key, value in metrics.items():
        if type(value) not in (int, float) or not 0 <= value <= 100:
            raise ValueError(
                f'metrics {file}: {key} is {value!r}, expected a percentage from 0 to 100; give '
                'what `tools/test.py CONFIG CHECKPOINT --out FILE --out-item metrics` writes.'
            )
    return metrics


def _data(loader: Mapping[str, Any] | None) -> str:
    """Name the data set of a loader; of a path no more than may be told to everybody."""
    dataset = innermost(loader)
    folder = '/'.join(Path(dataset.get('data_root') or '').parts[-2:])
    return f'{dataset.get("type", "unknown")} {folder}'.strip()


def _describe(network: Any) -> str:
    """Name a network by its backbone and plain arguments."""
    if isinstance(network, (list, tuple)):
        return ' + '.join(map(_describe, network))
    backbone = dict(network.get('backbone') or network)
    kind = backbone.pop('type', network.get('cfg_path'))
    given = ', '.join(f'{k}={v!r}' for k, v in backbone.items() if isinstance(v, (int, float, str)))
    return f'{kind}({given})'


def _teacher(model: Mapping[str, Any]) -> str:
    """Name the teacher, or the members of an ensemble, with the hashes of their files."""
    if 'teacher' not in model:
        return ''
    files, found = model.get('teacher_ckpt') or [], [_describe(model['teacher'])]
    for file in [files] if isinstance(files, str) else files:
        path = Path(str(file)).expanduser()
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else 'not here'
        found.append(f'{path.name} (sha256 {digest[:16]})')
    return ', '.join(found)
