"""Updates of CoCoRD's averages and key queue between forward passes."""

from typing import Any

import torch
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop
from torch import Tensor

from crd_plugin.models._numbers import count
from crd_plugin.models.algorithms import CoCoRDDistill
from crd_plugin.models.losses.cocord_loss import CoCoRDTerms
from crd_plugin.registry import HOOKS

from ._checks import bit_sum, check_alone, check_ranks_agree


@HOOKS.register_module()
class CoCoRDHook(Hook):
    """Move the averages before a step, write the keys after it, check, log.

    Before an iteration the slow student and the averaged projectors move towards the student,
    once per optimizer step: iterations whose gradients are accumulated see the same averages.
    After every iteration the keys of all ranks enter the queue in rank order, so that all ranks
    hold the queue of a single process, to the bit. With any model other than a
    ``CoCoRDDistill``, and outside training, it does nothing, so it can be a default hook.

    Source: ShipengFu/CoCoRD ``cocord/builder.py`` @ 645b95d, which is for one GPU; for several,
    facebookresearch/moco gathers keys likewise.

    Args:
        interval (int): Iterations between two checks and logs, which wait for a GPU. Defaults
            to 50.

    Raises:
        ValueError: Before training, if this hook is registered twice, or a ``SyncBuffersHook``
            would average the queue's pointer.
    """

    # Before CheckpointHook and LoggerHook, and before EMAHook copies buffers.
    priority = 'ABOVE_NORMAL'

    def __init__(self, interval: int = 50) -> None:
        self.interval = count('interval', interval, ' (iterations)')
        self._model: CoCoRDDistill | None = None

    def before_run(self, runner) -> None:
        """Find the model, after the loop is built, before a checkpoint is loaded."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        training = isinstance(runner._train_loop, BaseLoop)
        self._model = model if training and isinstance(model, CoCoRDDistill) else None
        if self._model is not None:
            check_alone(self, runner, 'a key queue')
            self._model.cocord_loss.queue.discard()

    def before_train(self, runner) -> None:
        """Compare the queues of all ranks, loaded or fresh, and before they are saved."""
        if self._model is None or get_world_size() == 1:
            return
        queue = self._model.cocord_loss.queue
        check_ranks_agree(self, 'The key queue', torch.stack([bit_sum(queue.keys), queue.pointer]))

    after_train_epoch = before_train

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        """Move the averages, if the optimizer has just made a step."""
        # Of several optimizers at least one steps in each iteration.
        should_update = getattr(runner.optim_wrapper, 'should_update', lambda: True)
        if self._model is not None and should_update():
            self._model.update_averages()

    def after_train_iter(
        self, runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Write the keys that the forward pass staged, in rank order."""
        if self._model is None:
            return
        queue, terms = self._model.cocord_loss.queue, self._model.cocord_loss.terms
        if queue.pending is None or terms is None:
            return
        if batch_idx == 0 or self.every_n_inner_iters(batch_idx, self.interval):
            self._log(runner, queue.pending, terms)
        queue.commit()

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Refuse to resume without the parts of CoCoRD."""
        if self._model is None or not runner._resume:
            return
        weights = checkpoint.get('state_dict', {})
        for part in ('queue.keys', 'slow_student'):
            if not any(part in key for key in weights):
                raise ValueError(
                    f'The checkpoint has no {part} of CoCoRD, so training cannot be resumed from '
                    'it exactly; publish its student (tools/model_converters/publish_student.py) '
                    'and start from it with model.student_ckpt.'
                )

    def _log(self, runner, keys: Tensor, terms: CoCoRDTerms) -> None:
        """Check the staged keys and log the terms of the loss."""
        if not torch.isfinite(keys).all():
            raise ValueError(
                'Some keys are NaN or infinite and would stay in the queue; the teacher, or the '
                'projector that its own one follows, has diverged: lower the learning rate, clip '
                "gradients, or check the teacher's checkpoint."
            )
        for name, value in zip(('contrast', 'prediction', 'contrast_top1'), terms, strict=True):
            runner.message_hub.update_scalar(f'train/{name}', value)
