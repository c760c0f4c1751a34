"""Weights of a run that must fit exactly."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import BaseLoop

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
    """Refuse a checkpoint that does not fit the model, of which MMEngine only warns.

    For ``load_from``, resuming and testing. ``tools/train.py`` and ``tools/test.py`` add it.

    Raises:
        ValueError: If weights are missing, unexpected or of other shapes, or a checkpoint without
            training state is to be resumed.
    """

    # The last one: EMAHook and MemoryBankHook change what is loaded.
    priority = 'LOWEST'

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Load the weights strictly; what MMEngine then does makes no difference."""
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        training = isinstance(runner._train_loop, BaseLoop)
        source = f'checkpoint {runner._load_from or ""}'.strip()
        advice = 'Give the config that it was trained with.'
        if training and runner._resume:
            source = source.replace('checkpoint', '--resume', 1)
            meta = checkpoint.get('meta')
            if not isinstance(meta, dict) or not {'epoch', 'iter'} <= set(meta):
                raise ValueError(
                    f'{source} has weights but no state of a training (meta.epoch and meta.iter); '
                    'to start from its weights, set load_from instead of --resume.'
                )
        elif training:
            source = source.replace('checkpoint', 'load_from', 1)
            advice = (
                f'Give the config that it was trained with; or {PUBLISH} and give it as '
                'model.student_ckpt.'
                if hasattr(model, 'architecture')
                else 'Give the config that it was trained with; or leave load_from out and take '
                "its backbone alone: model.backbone.init_cfg=dict(type='Pretrained', "
                "checkpoint=FILE, prefix='backbone')."
            )
        weights = fit_weights(find_weights(checkpoint, source), model, source)
        own = set(model.state_dict())
        for name in list(weights):
            if name.startswith(_SETTINGS) and name not in own:
                del weights[name]
        load_strictly(model, weights, source, 'the model of the config', advice)
        checkpoint['state_dict'] = weights
