"""Weights of a run that must fit exactly."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import BaseLoop
from torch import Tensor, nn

from crd_plugin.datasets._checks import check_same_classes
from crd_plugin.models.algorithms.checkpoints import (
    PUBLISH,
    find_weights,
    fit_weights,
    load_strictly,
)
from crd_plugin.registry import HOOKS

# Buffers of other packages and older versions that repeat the settings of a config.
_SETTINGS = 'data_preprocessor.'


@HOOKS.register_module()
class StrictLoadingHook(Hook):
    """Refuse a checkpoint that does not fit the model, or the classes that are tested.

    For ``load_from``, resuming and testing. ``tools/train.py`` and ``tools/test.py`` add it.

    Raises:
        ValueError: If weights are missing, unexpected or of other shapes, a checkpoint without
            training state is to be resumed, or classes that are tested have other numbers.
    """

    # The last one: EMAHook and MemoryBankHook change what is loaded.
    priority = 'LOWEST'

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Load the weights strictly; what MMEngine then does makes no difference."""
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        role = 'checkpoint'
        if isinstance(runner._train_loop, BaseLoop):
            role = '--resume' if runner._resume else 'load_from'
        elif getattr(model, 'calculate_student_loss', True):  # it knows classes by their numbers
            _check_classes(runner, checkpoint.get('meta'))
        checkpoint['state_dict'] = load_run(model, checkpoint, role, runner._load_from or '')


def _check_classes(runner: Any, meta: Any) -> None:
    """Compare the classes of what is tested with those of the training."""
    trained = isinstance(meta, dict) and (meta.get('dataset_meta') or {}).get('classes') or ()
    for name, loop in dict(test=runner._test_loop, val=runner._val_loop).items():
        if isinstance(loop, BaseLoop):
            tested = getattr(loop.dataloader.dataset, 'metainfo', {}).get('classes') or ()
            check_same_classes(f'{name}_dataloader.dataset', tested, 'the checkpoint', trained)


def load_run(model: nn.Module, checkpoint: dict, role: str, filename: str) -> dict[str, Tensor]:
    """Load the weights of a run for a role, ``'--resume'``, ``'load_from'`` or ``'checkpoint'``."""
    source = f'{role} {filename}'.strip()
    meta = checkpoint.get('meta')
    if role == '--resume' and not (isinstance(meta, dict) and {'epoch', 'iter'} <= set(meta)):
        raise ValueError(
            f'{source} has weights but no state of a training (meta.epoch and meta.iter); to start '
            'from its weights, set load_from instead of --resume.'
        )
    weights, own = fit_weights(find_weights(checkpoint, source), model, source), model.state_dict()
    weights = {k: v for k, v in weights.items() if k in own or not k.startswith(_SETTINGS)}
    advice = _advice(role, weights, own)
    load_strictly(model, weights, source, 'the model of the config', advice)
    return weights


def _advice(role: str, weights: dict[str, Tensor], own: dict[str, Tensor]) -> str:
    """Say what to do with weights that do not fit as a whole, by what of them does."""

    def fits(prefix: str) -> bool:
        parts = {name: value for name, value in own.items() if name.startswith(prefix)}
        return bool(parts) and all(
            name in weights and weights[name].shape == value.shape for name, value in parts.items()
        )

    advice = 'Give the config that it was trained with'
    student = 'architecture.' if any(name.startswith('architecture.') for name in own) else ''
    if role == 'load_from' and student and fits(student):
        advice += f'; or {PUBLISH} and give it as model.student_ckpt'
    elif role == 'load_from' and fits(f'{student}backbone.'):
        advice += (
            '; or leave load_from out and take the backbone alone: '
            f"model.{student}backbone.init_cfg=dict(type='Pretrained', checkpoint=FILE, "
            f"prefix='{student}backbone')"
        )
    return f'{advice}.'
