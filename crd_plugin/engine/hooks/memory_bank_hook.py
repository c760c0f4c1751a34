"""The one place that changes memory banks during training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather, broadcast, get_world_size
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop
from torch import Tensor, nn

from crd_plugin.models._numbers import count
from crd_plugin.models.bank_state import SIDES
from crd_plugin.models.collectives import pack, unpack
from crd_plugin.models.losses import CRDLoss
from crd_plugin.models.losses.crd_checks import check_embeddings, check_labels, check_range
from crd_plugin.models.memory_bank import MemoryBank, PendingUpdate
from crd_plugin.models.sharded_bank import ShardedBank
from crd_plugin.registry import HOOKS

from ._checks import bit_sum, check_buffers_are_ours, check_once, check_ranks_agree
from .checkpoint_hook import CheckpointHook as WholeCheckpointHook


@HOOKS.register_module()
class MemoryBankHook(Hook):
    """Size, commit, check and log every memory bank of the model.

    A loss only reads its bank and leaves an update. After each iteration this hook gathers the
    updates of all ranks with one collective and writes them in rank order, so that all ranks hold
    bit-identical banks, equal to those of a single process that saw the same embeddings. No public
    code of CRD does this (HobbitLong/RepDistiller#3: accuracy drops on 8 GPUs). Of a sharded bank
    each rank writes the rows that it keeps.

    A model without a bank is left alone, so the hook can be a default hook.

    Args:
        interval (int): Iterations between two looks at numbers (mutual information bound, norms),
            which wait for a GPU. Defaults to 50.

    Raises:
        ValueError: Before training, if the training set has no ids or labels that a loss needs, a
            given ``num_samples`` differs from its length, this hook is there twice, a
            ``SyncBuffersHook`` would average bank rows, or an ``EMAHook`` or MMEngine's own
            ``CheckpointHook`` meets a sharded bank.
    """

    # Before CheckpointHook and LoggerHook, and before EMAHook copies buffers.
    priority = 'ABOVE_NORMAL'

    def __init__(self, interval: int = 50) -> None:
        count('interval', interval, ' (iterations)')
        self.interval = interval
        self._banks: dict[str, MemoryBank] = {}
        self._losses: dict[str, CRDLoss] = {}
        self._labels: Tensor | None = None
        # Banks that this hook has sized: validation and testing of the same runner come here again,
        # and must not touch them.
        self._sized: list[MemoryBank] = []

    def before_run(self, runner: Any) -> None:
        """Size the banks, after the loop is built, before a checkpoint is loaded."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._banks = _named(model, MemoryBank)
        self._losses = _named(model, CRDLoss)
        training = isinstance(runner._train_loop, BaseLoop)
        for bank in self._banks.values():
            bank.keep_rows = training
        if not training or not self._banks or self._sized == list(self._banks.values()):
            return
        self._check_runner(runner)
        dataset = index_dataset(runner.train_loop.dataloader.dataset)
        if dataset is None:
            given = type(runner.train_loop.dataloader.dataset).__name__
            raise ValueError(
                f'train_dataloader.dataset is a {given}, whose samples carry no ids for the '
                "memory bank; wrap it: dataset=dict(type='crd_plugin.SampleIndexDataset', "
                'dataset=...).'
            )
        self._labels = self._read_labels(dataset)
        for number, (name, bank) in enumerate(self._banks.items()):
            self._size(runner, name, bank, dataset.num_samples, number)
        self._sized = list(self._banks.values())
        for name, loss in self._losses.items():
            if loss.bank is not None:
                self._check_pool(runner, name, loss)

    def before_train(self, runner: Any) -> None:
        """Compare the banks of all ranks, loaded or fresh."""
        self._check_ranks()

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Check ids and labels of the batch while they are on the host.

        Tensors on a CPU are checked by the loss itself.
        """
        samples = data_batch.get('data_samples') if isinstance(data_batch, dict) else None
        if not self._banks or not isinstance(samples, (list, tuple)):
            return
        bank = next(iter(self._banks.values()))
        if bank.labels.device.type != 'cpu':
            self._check_samples(samples, bank.num_samples)

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Commit what the forward pass left, in rank order."""
        staged = [bank for bank in self._banks.values() if bank.pending is not None]
        if not staged:
            return
        if batch_idx == 0 or self.every_n_inner_iters(batch_idx, self.interval):
            self._log(runner, staged)
        updates = [bank.pending for bank in staged if bank.pending is not None]
        if get_world_size() > 1:
            updates = gather_updates(updates, runner.train_loop.dataloader.batch_size)
        for bank, update in zip(staged, updates, strict=True):
            bank.commit(update)

    def after_train_epoch(self, runner: Any) -> None:
        """Compare the banks of all ranks, before they are saved."""
        self._check_ranks()

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
        """Refuse to resume without the banks, or with settings that these were not trained with."""
        if not isinstance(runner._train_loop, BaseLoop):
            return
        weights = checkpoint.get('state_dict') or {}
        if not runner._resume:
            return
        for name in self._banks:
            for part in (*SIDES, *(f'log_z_{side}' for side in SIDES)):
                if not any(f'{name}.{part}' in key for key in weights):
                    raise ValueError(
                        f'The checkpoint has no whole memory bank "{name}", so training cannot be '
                        'resumed from it exactly; start from its weights with load_from instead of '
                        '--resume.'
                    )
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
        check_once(self, runner)
        check_buffers_are_ours(runner, 'a memory bank')
        sharded = [name for name, bank in self._banks.items() if isinstance(bank, ShardedBank)]
        if not sharded:
            return
        savers = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]
        gathering = all(isinstance(hook, WholeCheckpointHook) for hook in savers)
        if get_world_size() > 1 and not gathering:
            raise ValueError(
                f"CheckpointHook would save one rank's part of {sharded[0]}, whose rows are split "
                "over the ranks; set default_hooks.checkpoint.type='crd_plugin.CheckpointHook'."
            )
        if any(isinstance(hook, EMAHook) for hook in runner.hooks):
            raise ValueError(
                f'EMAHook keeps a copy of {sharded[0]}, whose rows are split over the ranks, and '
                "would save one rank's rows; remove EMAHook from custom_hooks, or use "
                'sharded=False.'
            )

    def _read_labels(self, dataset: Any) -> Tensor | None:
        """Labels of the training set; None where nothing needs them and there are none."""
        try:
            return torch.from_numpy(np.asarray(dataset.get_gt_labels(), dtype=np.int64))
        except ValueError as error:
            losses = self._losses.values()
            if any(loss.bank is not None and loss.exclude == 'class' for loss in losses):
                raise ValueError(f"exclude='class' needs labels: {error}") from error
            return None

    def _size(
        self, runner: Any, name: str, bank: MemoryBank, num_samples: int, number: int
    ) -> None:
        """Reinitialise a bank for the training set, alike on all ranks."""
        if bank.num_samples not in (0, num_samples):
            raise ValueError(
                f'num_samples of {name} is {bank.num_samples}, the training set has '
                f'{num_samples} samples; set it to that or leave it out.'
            )
        # Ranks may have been seeded differently.
        seed = torch.tensor(runner.seed + number)
        broadcast(seed)
        bank.resize(num_samples, self._labels, seed=int(seed))
        if number:
            bank.share_labels(next(iter(self._banks.values())))
        world = bank.shards().world
        shards = '' if world == 1 else f' on each of {world} ranks'
        runner.logger.info(
            f'Memory bank {name}: {num_samples} rows of width {bank.embed_dim} per side, '
            f'{bank.num_bytes / 2**20:.1f} MiB{shards}.'
        )

    @staticmethod
    def _check_pool(runner: Any, name: str, loss: CRDLoss) -> None:
        """Make the keys; say where K is more than the rows that some sample has."""
        pool = loss.bank.keys(loss.exclude).smallest_pool
        if loss.negatives == 'sampled' and pool < loss.num_negatives:
            runner.logger.info(
                f'{name}: num_negatives={loss.num_negatives} is more than the {pool} possible '
                'negatives that some sample has; all of them are scored and weighted to count '
                'as that many.'
            )

    def _check_samples(self, samples: Sequence[Any], num_samples: int) -> None:
        """Ids must be there, in range, and those of the bank's data set."""
        ids = [getattr(sample, 'sample_idx', None) for sample in samples]
        if any(index is None for index in ids):
            raise ValueError(
                'The data samples have no sample_idx; wrap the training data set in '
                'crd_plugin.SampleIndexDataset and end its pipeline with PackInputs.'
            )
        index = torch.tensor(ids, dtype=torch.int64)
        check_range('sample_idx', int(index.min()), int(index.max()), num_samples)
        labels = [getattr(sample, 'gt_label', None) for sample in samples]
        # Labels of resident data are on the device, and reading them would wait for it.
        single = [
            label
            for label in labels
            if isinstance(label, Tensor) and label.numel() == 1 and label.is_cpu
        ]
        if self._labels is not None and len(single) == len(labels):
            check_labels(torch.stack(single).view(-1), self._labels[index], index)

    def _log(self, runner: Any, staged: Sequence[MemoryBank]) -> None:
        """Log the mutual information bound and look at the norms."""
        for bank in staged:
            for name, side in (('s_feats', 'student'), ('t_feats', 'teacher')):
                embedding = getattr(bank.pending, side)
                check_embeddings(name, side, embedding.float().norm(dim=1))
        for name, loss in self._losses.items():
            if loss.mi_bound is not None:
                # One loss is the rule; several are told apart by their name.
                tag = 'mi_bound'
                if len(self._losses) > 1:
                    tag += '_' + name.rpartition('.')[2].replace('loss', 'at')
                runner.message_hub.update_scalar(f'train/{tag}', loss.mi_bound)

    def _check_ranks(self) -> None:
        """All ranks must hold the same bits."""
        if get_world_size() == 1:
            return
        for name, bank in self._banks.items():
            check_ranks_agree(self, name, checksum(bank))


def index_dataset(dataset: Any) -> Any:
    """Find the data set that numbers the samples, inside wrappers or not.

    ``RepeatDataset(SampleIndexDataset(...))`` lets the copies of a sample share a row of the bank.

    Args:
        dataset (Dataset): Data set of the training data loader.

    Returns:
        SampleIndexDataset: Or any that has ``num_samples``; None if there is none.
    """
    while dataset is not None and not hasattr(dataset, 'num_samples'):
        dataset = getattr(dataset, 'dataset', None)
    return dataset


def gather_updates(updates: Sequence[PendingUpdate], batch_size: int | None) -> list[PendingUpdate]:
    """Gather staged updates of all ranks, in rank order, in one collective.

    A batch that is shorter than ``batch_size`` is filled by repeating its last entry, which does
    not change what is written.

    Args:
        updates (Sequence[PendingUpdate]): This rank's updates, one per bank.
        batch_size (int, optional): Most samples that any rank has in a step. Defaults to None: the
            ranks exchange their sizes first.

    Returns:
        list[PendingUpdate]: Updates of all ranks.

    Raises:
        RuntimeError: If a batch is larger than ``batch_size``.
    """
    sample_idx = updates[0].sample_idx
    size = sample_idx.numel()
    if batch_size is None:
        sizes = all_gather(sample_idx.new_tensor([size]))
        batch_size = int(torch.cat(sizes).max())
    if size > batch_size:
        raise RuntimeError(
            f"A batch has {size} samples, the data loader's batch_size is {batch_size}; give "
            'each sample of a batch one embedding.'
        )
    embeddings = [e.float() for update in updates for e in (update.student, update.teacher)]
    packed = pack(sample_idx, embeddings)
    packed = torch.cat([packed, packed[-1:].expand(batch_size - size, -1)])
    widths = [embedding.size(1) for embedding in embeddings]
    sample_idx, embeddings = unpack(torch.cat(all_gather(packed)), widths)
    pairs = zip(embeddings[::2], embeddings[1::2], strict=True)
    return [
        PendingUpdate(sample_idx, student, teacher, update.log_z)
        for update, (student, teacher) in zip(updates, pairs, strict=True)
    ]


def checksum(bank: MemoryBank) -> Tensor:
    """Sum the bits of a bank; the result differs if the bank does.

    Args:
        bank (MemoryBank): The bank. Shards are meant to differ: of a sharded bank only the
            constants count.

    Returns:
        Tensor: Student's rows, teacher's rows and both constants, ``(3,)`` int64.
    """
    rows = (bank.student, bank.teacher)
    if isinstance(bank, ShardedBank):
        nothing = bank.log_z.new_zeros(1)
        rows = (nothing, nothing)
    return torch.stack([bit_sum(part) for part in (*rows, bank.log_z)])


def _named(model: nn.Module, kind: type) -> dict[str, Any]:
    """Modules of one class by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}
