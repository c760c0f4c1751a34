"""Strict loading of teachers and students."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mmengine.model import BaseModule

from crd_plugin.compat import load_checkpoint

__all__ = ['check_is_distillation', 'load_strictly']


def load_strictly(model: BaseModule, checkpoint: str, role: str) -> None:
    """Load weights that must fit exactly, and keep ``init_weights`` from replacing them."""
    loaded = load_checkpoint(checkpoint)
    weights = loaded.get('state_dict', loaded)
    own = model.state_dict()
    missing = [key for key in own if key not in weights]
    unexpected = [key for key in weights if key not in own]
    shapes = [
        f'{key} {tuple(weights[key].shape)} instead of {tuple(own[key].shape)}'
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    if missing or unexpected or shapes:
        if any(key.startswith('architecture.') for key in unexpected):
            advice = (
                'It is the checkpoint of a distillation: take the student out with '
                'tools/model_converters/publish_student.py first.'
            )
        else:
            part = 'teacher' if role == 'teacher' else 'architecture'
            advice = (
                f'Give the config of the network that it was saved from as model.{part} '
                '(depth, widths, number of classes).'
            )
        raise ValueError(
            f'{role}_ckpt={checkpoint} does not fit the {role}: missing {_shorten(missing)}; '
            f'unexpected {_shorten(unexpected)}; other shapes {_shorten(shapes)}. {advice}'
        )
    model.load_state_dict(weights)
    model._is_init = True


def check_is_distillation(keys: Iterable[str], prefix: str, advice: str) -> None:
    """Refuse a plain network's checkpoint, of which MMEngine would only warn."""
    if not any(key.startswith(f'{prefix}architecture.') for key in keys):
        raise ValueError(
            'The checkpoint has no weights under "architecture.", so it is not one of a '
            f'distillation; {advice}.'
        )


def _shorten(keys: Sequence[str], most: int = 5) -> str:
    """Join the first few keys and say how many more there are."""
    if not keys:
        return 'none'
    more = f' and {len(keys) - most} more' if len(keys) > most else ''
    return ', '.join(keys[:most]) + more
