"""The folder of a student that a model hub expects, and its way there."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from crd_plugin.compat import load_checkpoint_file

from .publish import build_student, parse_config_text

_CARD = """\
---
{header}---

# {name}

| | |
|---|---|
{facts}

```python
import crd_plugin  # first: it makes the versions work together
from mmpretrain import ImageClassificationInferencer, get_model

model = get_model('config.py', pretrained='{weights}')
inferencer = ImageClassificationInferencer('config.py', pretrained='{weights}')
```

`model.safetensors` holds the same weights without the names of the classes.
"""


def export_student(
    published: str | Path,
    source: str | Path,
    metrics: Mapping[str, float] | None = None,
    onnx_size: int | None = None,
) -> Path:
    """Write ``model.safetensors``, ``config.py`` and a model card beside a published student.

    Args:
        published (str | Path): What :func:`publish_student` has written, alone in its folder.
        source (str | Path): Checkpoint of the distillation that it was taken from.
        metrics (dict[str, float], optional): Accuracies for the card, ``{'accuracy/top1': 91.8}``.
            Defaults to None.
        onnx_size (int, optional): Height and width of the images of ``model.onnx``, in pixels.
            Defaults to None: none is written.

    Returns:
        Path: The folder.

    Raises:
        ImportError: If a package of ``requirements/export.txt`` is missing.
        ValueError: If the student has no config, or ONNX Runtime computes other logits.
    """
    from safetensors.torch import save_file

    published = Path(published)
    folder = published.parent
    loaded = load_checkpoint_file(published)
    text = loaded['meta'].get('cfg')
    if not text:
        raise ValueError(f'{published} holds no config of the student; publish it with --config.')
    weights: dict[str, Tensor] = loaded['state_dict']
    tensors = {key: value.contiguous() for key, value in weights.items()}
    save_file(tensors, folder / 'model.safetensors', metadata=dict(format='pt'))
    (folder / 'config.py').write_text(text, encoding='utf-8')
    plain = parse_config_text(text)
    if onnx_size is not None:
        export_onnx(build_student(plain, weights, published), folder / 'model.onnx', onnx_size)
    meta = load_checkpoint_file(source).get('meta') or {}
    trained = parse_config_text(meta.get('cfg') or '')
    card = _card(published.name, plain, trained, loaded['meta'], metrics or {})
    (folder / 'README.md').write_text(card, encoding='utf-8')
    return folder


def export_onnx(model: nn.Module, path: Path, size: int) -> None:
    """Write a classifier as ONNX, and compare its logits with those of PyTorch.

    The input ``images`` is ``(B, C, size, size)`` float32, normalised; the output ``logits`` is
    ``(B, classes)``. B is free.

    Raises:
        ImportError: If a package of ``requirements/export.txt`` is missing.
        ValueError: If the logits differ by more than 1e-4 of the largest.
    """
    import onnxruntime

    mean = getattr(model.data_preprocessor, 'mean', torch.zeros(3))
    images = torch.randn(3, mean.numel(), size, size, generator=torch.Generator().manual_seed(0))
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
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    for batch in (images, images[:1]):
        with torch.no_grad():
            expected = model(batch)
        (logits,) = session.run(None, dict(images=batch.numpy()))
        error = (torch.from_numpy(logits) - expected).abs().max() / expected.abs().max()
        if not error <= 1e-4:
            path.unlink()
            raise ValueError(
                f'ONNX Runtime computes other logits than PyTorch: {error:.1e} of the largest; the '
                'network cannot be exported as it is.'
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
    order = 'RGB' if images.get('to_rgb') else 'BGR'
    facts = {
        'student': _describe(plain['model']),
        'method': ', '.join(
            f'{loss["type"]} (weight {loss.get("loss_weight", 1.0)})' for loss in losses.values()
        ),
        'teacher': _teacher(model),
        'data': _data(trained.get('train_dataloader')),
        'epochs': meta.get('epoch'),
        'seed': meta.get('seed'),
        'classes': ', '.join(map(str, (meta.get('dataset_meta') or {}).get('classes', ()))),
        'normalisation': f'mean {images.get("mean")}, std {images.get("std")}, {order}',
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
    )


def _data(loader: Mapping[str, Any] | None) -> str:
    """Name the data set of a loader; of a path no more than may be told to everybody."""
    dataset = (loader or {}).get('dataset') or {}
    dataset = dataset.get('dataset', dataset)
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
