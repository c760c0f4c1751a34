"""The one place that changes memory banks during training."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.dist import broadcast, get_world_size
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop
from torch import Tensor, nn

from crd_plugin.models._numbers import count
from crd_plugin.models.bank_state import SIDES, check_state
from crd_plugin.models.losses import CRDLoss, InBatchCRDLoss
from crd_plugin.models.losses.crd_checks import check_embeddings, check_labels, check_range
from crd_plugin.models.memory_bank import MemoryBank, commit_all
from crd_plugin.models.sharded_bank import ShardedBank
from crd_plugin.registry import HOOKS

from ._checks import bit_sum, check_alone, check_ranks_agree
from .checkpoint_hook import CheckpointHook as WholeCheckpointHook


@HOOKS.register_module()
class MemoryBankHook(Hook):
    """Size, commit, check and log every memory bank of the model.

    A loss only reads its bank and leaves an update. After each iteration this hook gathers the
    updates of all ranks and writes them in rank order, so that all ranks hold the banks of a single
    process that saw the same embeddings, to the bit; a rank may have left none. Of a model without
    a bank it only looks whether an in-batch loss has negatives, so it can be a default hook.

    Args:
        interval (int): Iterations between two looks at numbers (mutual information bound, norms,
            negatives in the batch), which wait for a GPU. Defaults to 50.

    Raises:
        ValueError: Before training, if the training set lacks ids, labels or a second class that a
            loss needs, or has another length than a given ``num_samples``, or if another hook would
            damage a bank.
    """

    # Before CheckpointHook and LoggerHook, and before EMAHook copies buffers.
    priority = 'ABOVE_NORMAL'

    def __init__(self, interval: int = 50) -> None:
        self.interval = count('interval', interval, ' (iterations)')
        self._banks: dict[str, MemoryBank] = {}
        self._losses: dict[str, CRDLoss] = {}
        self._labels: Tensor | None = None
        # Banks that this hook has sized: a run of the same runner must not touch them again.
        self._sized: list[MemoryBank] = []

    def before_run(self, runner: Any) -> None:
        """Size the banks, after the loop is built, before a checkpoint is loaded."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._banks = _named(model, MemoryBank)
        self._losses = _named(model, CRDLoss)
        training = isinstance(runner._train_loop, BaseLoop)
        for bank in self._banks.values():
            bank.keep_rows = training
        if not training or not (self._banks or self._losses):
            return
        given = runner.train_loop.dataloader.dataset
        dataset, labels, reason = index_dataset(given), None, None
        try:
            labels = torch.from_numpy(np.asarray(dataset.get_gt_labels(), dtype=np.int64))
        except (AttributeError, ValueError) as error:  # no ids, or not one class per sample
            reason = error
        check_negatives(model, labels)
        if not self._banks or self._sized == list(self._banks.values()):
            return
        self._check_runner(runner)
        if dataset is None:
            raise ValueError(
                f'train_dataloader.dataset is a {type(given).__name__}, whose samples carry no ids '
                "for the memory bank; wrap it: dataset=dict(type='crd_plugin.SampleIndexDataset', "
                'dataset=...).'
            )
        if reason and any(loss.bank and loss.exclude == 'class' for loss in self._losses.values()):
            raise ValueError(f"exclude='class' needs labels: {reason}") from reason
        self._labels = labels
        self._size(runner, dataset.num_samples)
        for name, loss in self._losses.items():
            loss.check_device()
            remark = pool_remark(name, loss) if loss.bank is not None else None
            if remark:
                runner.logger.info(remark)

    def before_train(self, runner: Any) -> None:
        """Compare the banks of all ranks, loaded or fresh, and before they are saved."""
        for name, bank in self._banks.items():
            bank.keep_rows = True
            # Shards are meant to differ.
            rows = () if isinstance(bank, ShardedBank) else (bank.student, bank.teacher)
            if get_world_size() > 1:
                sums = torch.stack([bit_sum(part) for part in (*rows, bank.log_z)])
                check_ranks_agree(self, name, sums)

    after_train_epoch = before_train

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Check ids and labels of the batch on the host; on a CPU the loss does so itself."""
        samples = data_batch.get('data_samples') if isinstance(data_batch, dict) else None
        bank = next(iter(self._banks.values()), None)
        if bank is None or bank.labels.is_cpu or not isinstance(samples, (list, tuple)):
            return
        ids = [getattr(sample, 'sample_idx', None) for sample in samples]
        if None in ids:
            return  # the recorder of the ids says so
        index = torch.tensor(ids, dtype=torch.int64)
        check_range('sample_idx', index, bank.num_samples)
        labels: list[Any] = [getattr(sample, 'gt_label', None) for sample in samples]
        # Labels of resident data are on the device, and reading them would wait for it.
        readable = all(isinstance(x, Tensor) and x.numel() == 1 and x.is_cpu for x in labels)
        if self._labels is not None and readable:
            check_labels(torch.cat([x.view(1) for x in labels]), self._labels[index], index)

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Commit what the forward pass left, in rank order."""
        staged = [bank for bank in self._banks.values() if bank.pending is not None]
        if batch_idx == 0 or self.every_n_inner_iters(batch_idx, self.interval):
            self._log(runner, staged)
        if self._banks:
            # The host waits for sizes here, but MMEngine has just read the losses anyway.
            commit_all(list(self._banks.values()))

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Save the settings of the banks; refuse to save one rank's part of a sharded bank."""
        if self._banks:
            checkpoint['memory_bank'] = self._settings()
        for name, bank in self._banks.items():
            if f'{name}.student' not in checkpoint['state_dict']:
                raise RuntimeError(
                    f'The rows of {name} are split over {bank.shards().world} ranks and were not '
                    "gathered for this checkpoint; use dict(type='crd_plugin.CheckpointHook') as "
                    'default_hooks.checkpoint, or save within gather_rows_for_checkpoint() of '
                    'the bank, entered on every rank.'
                )

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Resume with whole banks and their settings only; load_from leaves them fresh."""
        if not isinstance(runner._train_loop, BaseLoop):
            return
        weights = checkpoint.get('state_dict') or {}
        if not runner._resume:
            for name, bank in self._banks.items():
                bank.keep_rows = False  # until training begins
                # For EMAHook, whose copy of the bank loads what is here.
                weights.update(bank.state_dict(prefix=f'{name}.'))
                runner.logger.info(
                    f'load_from takes weights only: the rows of the memory bank {name} are fresh.'
                )
            return
        for name, bank in self._banks.items():
            parts = [f'{name}.{start}{side}' for side in SIDES for start in ('', 'log_z_')]
            if not all(any(part in key for key in weights) for part in parts):
                raise ValueError(
                    f'The checkpoint has no whole memory bank "{name}", so training cannot be '
                    'resumed from it exactly; start from its weights with load_from instead of '
                    '--resume.'
                )
            # Before the settings: num_negatives may follow from the number of rows.
            check_state(bank, weights, f'{name}.')
        saved = checkpoint.get('memory_bank', {})
        for name, settings in self._settings().items():
            for key, value in settings.items():
                before = saved.get(name, {}).get(key, value)
                if before != value:
                    raise ValueError(
                        f'model.{name}.{key} is {value!r}, but the memory bank and its constants Z '
                        f'are of a training with {before!r}; resume with that, or start from the '
                        'weights of the checkpoint with load_from.'
                    )

    def _settings(self) -> dict[str, dict[str, Any]]:
        """Settings that rows and constants of the banks depend on, by loss."""
        names = ('temperature', 'num_negatives', 'objective')
        return {
            name: dict({key: getattr(loss, key) for key in names}, momentum=loss.bank.momentum)
            for name, loss in self._losses.items()
            if loss.bank is not None
        }

    def _check_runner(self, runner: Any) -> None:
        """Refuse what would damage a bank."""
        check_alone(self, runner, 'a memory bank')
        sharded = [name for name, bank in self._banks.items() if isinstance(bank, ShardedBank)]
        for hook in runner.hooks if sharded else ():
            partial = isinstance(hook, CheckpointHook) and not isinstance(hook, WholeCheckpointHook)
            if isinstance(hook, EMAHook) or (partial and get_world_size() > 1):
                raise ValueError(
                    f"{type(hook).__name__} would save one rank's part of {sharded[0]}, whose rows "
                    'are split over the ranks; set default_hooks.checkpoint.type='
                    "'crd_plugin.CheckpointHook', remove EMAHook, or use sharded=False."
                )

    def _size(self, runner: Any, num_samples: int) -> None:
        """Reinitialise the banks for the training set, alike on all ranks."""
        # Ranks may have been seeded differently.
        seed = torch.tensor(runner.seed)
        broadcast(seed)
        for number, (name, bank) in enumerate(self._banks.items()):
            if bank.num_samples not in (0, num_samples):
                raise ValueError(
                    f'num_samples of {name} is {bank.num_samples}, the training set has '
                    f'{num_samples} samples; set it to that or leave it out.'
                )
            bank.resize(num_samples, self._labels, seed=int(seed) + number)
            if number:
                bank.share_labels(next(iter(self._banks.values())))
            world = bank.shards().world
            shards = '' if world == 1 else f' on each of {world} ranks'
            runner.logger.info(
                f'Memory bank {name}: {num_samples} rows of width {bank.embed_dim} per side, '
                f'{bank.num_bytes / 2**20:.1f} MiB{shards}.'
            )
        self._sized = list(self._banks.values())

    def _log(self, runner: Any, staged: Sequence[MemoryBank]) -> None:
        """Look at norms and negatives; with a bank, log the mutual information bound."""
        for bank in staged:
            for name, side in (('s_feats', 'student'), ('t_feats', 'teacher')):
                check_embeddings(name, side, getattr(bank.pending, side))
        for name, loss in self._losses.items():
            if isinstance(loss, InBatchCRDLoss):
                loss.warn_if_alone()
            if staged and loss.mi_bound is not None:
                # One loss is the rule; several are told apart by their name.
                tag = 'mi_bound'
                if len(self._losses) > 1:
                    tag += '_' + name.rpartition('.')[2].replace('loss', 'at')
                runner.message_hub.update_scalar(f'train/{tag}', loss.mi_bound)


def pool_remark(name: str, loss: CRDLoss) -> str | None:
    """Say that K is more than the rows that some sample has, if so; make the keys of the bank."""
    pool = loss.bank.keys(loss.exclude).smallest_pool
    if loss.negatives != 'sampled' or pool >= loss.num_negatives:
        return None
    return (
        f'{name}: num_negatives={loss.num_negatives} is more than the {pool} possible negatives '
        'that some sample has; all of them are scored and weighted to count as that many.'
    )


def index_dataset(dataset: Any) -> Any:
    """Return the data set that numbers the samples, inside wrappers or not; None without one."""
    # RepeatDataset(SampleIndexDataset(...)) lets the copies of a sample share a row of the bank.
    while dataset is not None and not hasattr(dataset, 'num_samples'):
        dataset = getattr(dataset, 'dataset', None)
    return dataset


def check_negatives(model: nn.Module, labels: Tensor | None) -> None:
    """Raise a ValueError if in-batch losses find no negative: all N labels are of one class."""
    if labels is None or labels.numel() == 0 or bool((labels != labels[0]).any()):
        return
    for name, loss in _named(model, InBatchCRDLoss).items():
        if loss.exclude == 'class':
            raise ValueError(
                f'{name}: all {labels.numel()} training samples are of class {int(labels[0])}, so '
                "with exclude='class' no batch has a negative; use exclude='instance', or train on "
                'several classes.'
            )


def _named(model: nn.Module, kind: type) -> dict[str, Any]:
    """Modules of one class by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}
