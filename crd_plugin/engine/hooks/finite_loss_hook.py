"""Stop a training whose loss is not a finite number."""

import math
from typing import Any

import torch
from mmengine.hooks import Hook

from crd_plugin.registry import HOOKS


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stop training at the first loss that is NaN or infinite, before anything is saved.

    The sum of all losses is checked as ``RuntimeInfoHook`` has logged it: a GPU is not waited for
    once more.

    Raises:
        ValueError: In training, with the name of the loss, the iteration and what to try.
    """

    # After RuntimeInfoHook, before CheckpointHook and LoggerHook.
    priority = 'HIGH'

    def after_train_iter(
        self, runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Look at the losses of the iteration."""
        logged = runner.message_hub.log_scalars.get('train/loss')
        if logged is None or math.isfinite(logged.current()):
            return
        losses = {name: torch.as_tensor(value) for name, value in (outputs or {}).items()}
        bad = [name for name, value in losses.items() if not value.isfinite().all()]
        names = [name for name in bad if name != 'loss'] or ['loss']
        rates = runner.optim_wrapper.get_lr()
        rate = next(iter(rates.values()))[0] if rates else 'unknown'
        verb = 'is' if len(names) == 1 else 'are'
        raise ValueError(
            f'{", ".join(names)} {verb} NaN or infinite in epoch {runner.epoch + 1}, iteration '
            f'{batch_idx + 1}: training has diverged. Lower optim_wrapper.optimizer.lr (now '
            f'{rate:g}), clip gradients with optim_wrapper.clip_grad=dict(max_norm=5), or, if it '
            "happens at once, check the data and, in a distillation, the teacher's checkpoint."
        )
