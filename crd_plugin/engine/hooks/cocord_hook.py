"""What CoCoRD changes between two forward passes."""

from typing import Any, Optional, Tuple

import torch
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop
from torch import Tensor

from crd_plugin.models._numbers import count
from crd_plugin.models.algorithms import CoCoRDDistill
from crd_plugin.models.key_queue import KeyQueue
from crd_plugin.models.memory_bank import PendingUpdate
from crd_plugin.registry import HOOKS

from ._checks import bit_sum, check_buffers_are_ours, check_once, check_ranks_agree
from .memory_bank_hook import gather_updates


@HOOKS.register_module()
class CoCoRDHook(Hook):
    """Move the averages before a step, write the keys after it, check, log.

    Before an iteration slow student and averaged projectors move towards the
    student, once for each optimizer step: the iterations over which gradients
    are accumulated see the same averages. After every iteration, accumulating
    or not, the keys of all ranks enter the queue in rank order, in one
    collective, so that all ranks hold bit-identical queues, equal to that of
    a single process that saw the same keys.

    Logged are ``contrast`` and ``prediction`` (the two terms without their
    weights) and ``contrast_top1``, the percentage of queries nearer to their
    own key than to any in the queue.

    Source: ShipengFu/CoCoRD ``cocord/builder.py`` @ 645b95d, which is for one
    GPU; for several, facebookresearch/moco gathers keys likewise.

    Args:
        interval (int): Iterations between two looks at numbers, which wait
            for a GPU. Defaults to 50.

    Raises:
        ValueError: Before training, if this hook is there twice, or a
            ``SyncBuffersHook`` would average the queue's pointer.
    """

    # Before CheckpointHook and LoggerHook, and before EMAHook copies buffers.
    priority = 'ABOVE_NORMAL'

    def __init__(self, interval: int = 50) -> None:
        count('interval', interval, ' (iterations)')
        self.interval = interval
        self._model: Optional[CoCoRDDistill] = None

    def before_run(self, runner) -> None:
        """Find the model, after the loop is built, before a checkpoint."""
        self._model = None
        if not isinstance(runner._train_loop, BaseLoop):
            return
        model = runner.model
        model = model.module if is_model_wrapper(model) else model
        if not isinstance(model, CoCoRDDistill):
            runner.logger.warning(
                f'CoCoRDHook found a {type(model).__name__} instead of a '
                'crd_plugin.CoCoRDDistill; it can be removed from '
                'custom_hooks.'
            )
            return
        check_once(self, runner)
        check_buffers_are_ours(runner, 'a key queue')
        self._model = model
        self._model.cocord_loss.queue.discard()

    def before_train(self, runner) -> None:
        """Compare the queues of all ranks, loaded or fresh."""
        self._check_ranks()

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        """Move the averages, if the optimizer has just made a step."""
        wrapper = runner.optim_wrapper
        # Of several optimizers one at least steps in each iteration.
        if self._model is not None and getattr(wrapper, 'should_update', lambda: True)():
            self._model.update_averages()

    def after_train_iter(
        self, runner, batch_idx: int, data_batch: Any = None, outputs: Optional[dict] = None
    ) -> None:
        """Write the keys that the forward pass left, in rank order."""
        if self._model is None:
            return
        queue = self._model.cocord_loss.queue
        if queue.pending is None:
            return
        if batch_idx == 0 or self.every_n_inner_iters(batch_idx, self.interval):
            self._log(runner, queue)
        if get_world_size() == 1:
            queue.commit()
            return
        queue.commit(*gather_keys(queue.pending, runner.train_loop.dataloader.batch_size))

    def after_train_epoch(self, runner) -> None:
        """Compare the queues of all ranks, before they are saved."""
        self._check_ranks()

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Refuse to resume without the parts of CoCoRD."""
        if self._model is None or not runner._resume:
            return
        weights = checkpoint.get('state_dict', {})
        for part in ('queue.keys', 'slow_student.'):
            if not any(part in key for key in weights):
                raise ValueError(
                    f'The checkpoint has no {part.rstrip(".")} of CoCoRD, so '
                    'training cannot be resumed from it exactly; start from '
                    'its weights with load_from instead of --resume.'
                )

    def _log(self, runner, queue: KeyQueue) -> None:
        """Log the terms of the loss and look at the keys."""
        if not torch.isfinite(queue.pending).all():
            raise ValueError(
                'Some keys are NaN or infinite and would stay in the queue; '
                'the teacher, or the projector that its own one follows, has '
                'diverged: lower the learning rate, clip gradients, or check '
                "the teacher's checkpoint."
            )
        terms = self._model.cocord_loss.terms
        for name, value in (
            ('contrast', terms.contrast),
            ('prediction', terms.prediction),
            ('contrast_top1', terms.top1),
        ):
            runner.message_hub.update_scalar(f'train/{name}', value)

    def _check_ranks(self) -> None:
        """All ranks must hold the same bits."""
        if self._model is None or get_world_size() == 1:
            return
        check_ranks_agree(self, 'The key queue', checksum(self._model.cocord_loss.queue))


def gather_keys(keys: Tensor, batch_size: Optional[int]) -> Tuple[Tensor, Tensor]:
    """Gather keys of all ranks, in rank order, in one collective.

    Args:
        keys (Tensor): This rank's, ``(B, D)`` float.
        batch_size (int, optional): Most samples that any rank has in a step.
            Defaults to None: the ranks exchange their sizes first.

    Returns:
        tuple[Tensor, Tensor]: Keys of all ranks, each rank's filled up to one
        length by repeating its last one; and ``(W length,)`` bool, False for
        these repeated ones.

    Raises:
        RuntimeError: If a batch is larger than ``batch_size``.
    """
    place = torch.arange(keys.size(0), device=keys.device)
    # The bank's format has embeddings of two sides; the other one is empty.
    (update,) = gather_updates([PendingUpdate(place, keys, keys[:, :0])], batch_size)
    # Repeated entries carry the place of the one that they repeat.
    gathered = update.sample_idx.view(get_world_size(), -1)
    expected = torch.arange(gathered.size(1), device=keys.device)
    return update.student, (gathered == expected).view(-1)


def checksum(queue: KeyQueue) -> Tensor:
    """Position-weighted sum of the bits of a queue, and its pointer.

    Args:
        queue (KeyQueue): The queue.

    Returns:
        Tensor: ``(2,)`` int64; differs if the queue does.
    """
    return torch.stack([bit_sum(queue.keys), queue.pointer])
