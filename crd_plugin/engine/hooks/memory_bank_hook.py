"""The one place that changes memory banks during training."""

from typing import Any, Dict, List, Optional, Sequence

import numpy as np
import torch
from mmengine.dist import all_gather, broadcast, get_world_size
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop
from torch import Tensor

from crd_plugin.models._numbers import count
from crd_plugin.models.losses import CRDLoss
from crd_plugin.models.losses.crd_checks import check_embeddings, check_labels, check_range
from crd_plugin.models.memory_bank import MemoryBank, PendingUpdate
from crd_plugin.models.sharded_bank import ShardedBank
from crd_plugin.ops import pack_update, unpack_update
from crd_plugin.registry import HOOKS

from ._checks import bit_sum, check_buffers_are_ours, check_once, check_ranks_agree


@HOOKS.register_module()
class MemoryBankHook(Hook):
    """Size, commit, check and log every memory bank of the model.

    A loss only reads its bank and leaves an update. After each iteration this
    hook gathers the updates of all ranks with one collective and writes them
    in rank order, so that all ranks hold bit-identical banks, equal to those
    of a single process that saw the same embeddings. No public code of CRD
    does this (HobbitLong/RepDistiller#3: accuracy drops on 8 GPUs).

    Of a sharded bank each rank writes the rows that it keeps. Before a
    checkpoint is saved they are gathered on the host of rank 0, so that it
    holds the whole bank and any number of ranks can resume from it.

    Args:
        interval (int): Iterations between two looks at numbers (mutual
            information bound, norms), which wait for a GPU. Defaults to 50.

    Raises:
        ValueError: Before training, if the training set has no ids or labels
            that a loss needs, a given ``num_samples`` differs from its
            length, this hook is there twice, a ``SyncBuffersHook`` would
            average bank rows, or an ``EMAHook`` meets a sharded bank.
    """

    # Before CheckpointHook and LoggerHook, and before EMAHook copies buffers.
    priority = 'ABOVE_NORMAL'

    def __init__(self, interval: int = 50) -> None:
        count('interval', interval, ' (iterations)')
        self.interval = interval
        self._banks: Dict[str, MemoryBank] = {}
        self._losses: Dict[str, CRDLoss] = {}
        self._labels: Optional[np.ndarray] = None
        # Rows of the sharded banks for the checkpoint; empty when stale.
        self._whole: Dict[str, Dict[str, Optional[Tensor]]] = {}

    def before_run(self, runner) -> None:
        """Size the banks, after the loop is built, before a checkpoint."""
        model = _unwrap(runner.model)
        self._banks = _named(model, MemoryBank)
        self._losses = _named(model, CRDLoss)
        training = isinstance(runner._train_loop, BaseLoop)
        if not training:
            for bank in self._banks.values():
                bank.keep_rows = False
            return
        self._check_runner(runner)
        if not self._banks:
            runner.logger.warning(
                'MemoryBankHook found no memory bank in the model; it can be '
                'removed from custom_hooks.'
            )
            return
        given = runner.train_loop.dataloader.dataset
        dataset = index_dataset(given)
        if dataset is None:
            raise ValueError(
                f'train_dataloader.dataset is a {type(given).__name__}, whose '
                'samples carry no ids for the memory bank; wrap it: '
                "dataset=dict(type='crd_plugin.SampleIndexDataset', "
                'dataset=...).'
            )
        num_samples = dataset.num_samples
        self._labels = self._read_labels(dataset)
        labels = None
        if self._labels is not None:
            labels = torch.from_numpy(self._labels)
        for number, (name, bank) in enumerate(self._banks.items()):
            if bank.num_samples not in (0, num_samples):
                raise ValueError(
                    f'num_samples of {name} is {bank.num_samples}, the '
                    f'training set has {num_samples} samples; set it to that '
                    'or leave it out.'
                )
            # Ranks may have been seeded differently.
            seed = torch.tensor(runner.seed + number)
            broadcast(seed)
            bank.resize(num_samples, labels, seed=int(seed))
            shards = '' if bank.num_shards == 1 else f' on each of {bank.num_shards} ranks'
            runner.logger.info(
                f'Memory bank {name}: {num_samples} rows of width '
                f'{bank.embed_dim} a side, {bank.num_bytes / 2**20:.1f} MiB'
                f'{shards}.'
            )
        first, *others = self._banks.values()
        by_class = {
            name: loss
            for name, loss in self._losses.items()
            if loss.bank is not None and loss.exclude == 'class'
        }
        if by_class:
            first.label_index  # Made once, before it is shared.
        for bank in others:
            bank.share_labels(first)
        for name, loss in by_class.items():
            self._check_pool(runner, name, loss)

    def before_train(self, runner) -> None:
        """Compare the banks of all ranks, loaded or fresh."""
        self._check_ranks()

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        """Check ids and labels of the batch while they are on the host."""
        samples = None
        if isinstance(data_batch, dict):
            samples = data_batch.get('data_samples')
        if self._banks and isinstance(samples, (list, tuple)):
            self._check_samples(samples)

    def after_train_iter(
        self, runner, batch_idx: int, data_batch: Any = None, outputs: Optional[dict] = None
    ) -> None:
        """Commit what the forward pass left, in rank order."""
        staged = {name: bank for name, bank in self._banks.items() if bank.pending is not None}
        if not staged:
            return
        if batch_idx == 0 or self.every_n_inner_iters(batch_idx, self.interval):
            self._log(runner, staged)
        banks = list(staged.values())
        updates = [bank.pending for bank in banks]
        if get_world_size() > 1:
            updates = gather_updates(updates, runner.train_loop.dataloader.batch_size)
        self._whole = {}
        for bank, update in zip(banks, updates):
            bank.commit(update)
        if self._shards and any(_saves_iteration(hook, runner) for hook in _savers(runner)):
            self.gather_shards()

    def after_train_epoch(self, runner) -> None:
        """Compare the banks of all ranks, before they are saved."""
        self._check_ranks()
        if self._shards and any(_saves_epoch(hook, runner) for hook in _savers(runner)):
            self.gather_shards()

    def before_val_epoch(self, runner) -> None:
        """The best checkpoint may be saved after validation."""
        if self._shards and any(hook.save_best for hook in _savers(runner)):
            self.gather_shards()

    def gather_shards(self) -> None:
        """Gather rows of sharded banks for a checkpoint.

        Called where a ``CheckpointHook`` is about to save. Before a call of
        ``runner.save_checkpoint`` of your own, call it on every rank.
        """
        for name, bank in self._shards.items():
            if name not in self._whole:
                self._whole[name] = {
                    side: bank.gather_rows(side) for side in ('student', 'teacher')
                }

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Put the whole of sharded banks in place of rank 0's rows."""
        for name, bank in self._shards.items():
            if name not in self._whole:
                raise RuntimeError(
                    f'The rows of {name} are split over '
                    f'{bank.num_shards} ranks and were not gathered for this '
                    'checkpoint; call gather_shards() of MemoryBankHook on '
                    'every rank first (CheckpointHook needs no such call).'
                )
            for side, rows in self._whole[name].items():
                checkpoint['state_dict'][f'{name}.{side}'] = rows

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Refuse to resume from a checkpoint without the banks."""
        resuming = isinstance(runner._train_loop, BaseLoop) and runner._resume
        weights = checkpoint.get('state_dict', {})
        for name in self._banks if resuming else ():
            if not any(f'{name}.student' in key for key in weights):
                raise ValueError(
                    f'The checkpoint has no memory bank "{name}", so training '
                    'cannot be resumed from it exactly; start from its '
                    'weights with load_from instead of --resume.'
                )

    @property
    def _shards(self) -> Dict[str, ShardedBank]:
        """Banks of which this rank has a part only."""
        return {
            name: bank
            for name, bank in self._banks.items()
            if isinstance(bank, ShardedBank) and bank.num_shards > 1
        }

    def _check_runner(self, runner) -> None:
        """Refuse what would damage a bank."""
        check_once(self, runner)
        check_buffers_are_ours(runner, 'a memory bank')
        sharded = [name for name, bank in self._banks.items() if isinstance(bank, ShardedBank)]
        if sharded and any(isinstance(hook, EMAHook) for hook in runner.hooks):
            raise ValueError(
                f'EMAHook keeps a copy of {sharded[0]}, whose rows are split '
                "over the ranks, and would save one rank's rows; remove "
                'EMAHook from custom_hooks, or use sharded=False.'
            )

    def _read_labels(self, dataset: Any) -> Optional[np.ndarray]:
        """Labels of the training set; None where nothing needs them."""
        try:
            return np.asarray(dataset.get_gt_labels(), dtype=np.int64)
        except ValueError as error:
            if any(
                loss.bank is not None and loss.exclude == 'class' for loss in self._losses.values()
            ):
                raise ValueError(f"exclude='class' needs labels: {error}") from error
            return None

    def _check_pool(self, runner, name: str, loss: CRDLoss) -> None:
        """Every class needs negatives; fewer than K are repeated."""
        smallest = loss.bank.label_index.smallest_pool
        smallest *= loss.bank.num_shards
        if loss.negatives == 'sampled' and smallest < loss.num_negatives:
            runner.logger.info(
                f'{name}: num_negatives={loss.num_negatives} is more than '
                f'the {smallest} rows of other classes that some sample has; '
                'its negatives are drawn with replacement.'
            )

    def _check_samples(self, samples: Sequence[Any]) -> None:
        """Ids must be there, in range, and those of the bank's data set."""
        ids = [getattr(sample, 'sample_idx', None) for sample in samples]
        if any(index is None for index in ids):
            raise ValueError(
                'The data samples have no sample_idx; wrap the training data '
                'set in crd_plugin.SampleIndexDataset and end its pipeline '
                'with PackInputs.'
            )
        index = torch.tensor(ids, dtype=torch.int64)
        bank = next(iter(self._banks.values()))
        check_range('sample_idx', int(index.min()), int(index.max()), bank.num_samples)
        labels = [getattr(sample, 'gt_label', None) for sample in samples]
        if self._labels is not None and all(
            # Labels of resident data are on the device, and reading them would wait for it.
            isinstance(label, Tensor) and label.numel() == 1 and label.is_cpu
            for label in labels
        ):
            check_labels(
                torch.stack(labels).view(-1).cpu(), torch.from_numpy(self._labels)[index], index
            )

    def _log(self, runner, staged: Dict[str, MemoryBank]) -> None:
        """Log the mutual information bound and look at the norms."""
        for bank in staged.values():
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


def index_dataset(dataset: Any) -> Optional[Any]:
    """The data set that numbers the samples, inside wrappers or not.

    ``RepeatDataset(SampleIndexDataset(...))`` lets the copies of a sample
    share a row of the bank.

    Args:
        dataset (Dataset): Of the training data loader.

    Returns:
        SampleIndexDataset: Or any that has ``num_samples``; None if there is
        none.
    """
    while dataset is not None and not hasattr(dataset, 'num_samples'):
        dataset = getattr(dataset, 'dataset', None)
    return dataset


def gather_updates(
    updates: Sequence[PendingUpdate], batch_size: Optional[int]
) -> List[PendingUpdate]:
    """Gather pending updates of all ranks, in rank order, in one collective.

    Args:
        updates (Sequence[PendingUpdate]): This rank's, one a bank.
        batch_size (int, optional): Most samples that any rank has in a step.
            Defaults to None: the ranks exchange their sizes first.

    Returns:
        list[PendingUpdate]: Of all ranks.

    Raises:
        RuntimeError: If a batch is larger than ``batch_size``.
    """
    sample_idx = updates[0].sample_idx
    count = sample_idx.numel()
    if batch_size is None:
        sizes = all_gather(sample_idx.new_tensor([count]))
        batch_size = int(torch.cat(sizes).max())
    if count > batch_size:
        raise RuntimeError(
            f"A batch has {count} samples, the data loader's batch_size is "
            f'{batch_size}; give each sample of a batch one embedding.'
        )
    embeddings = [embedding for update in updates for embedding in (update.student, update.teacher)]
    widths = [embedding.size(1) for embedding in embeddings]
    packed = torch.cat(all_gather(pack_update(sample_idx, embeddings, batch_size)))
    sample_idx, embeddings = unpack_update(packed, widths)
    return [
        PendingUpdate(sample_idx, student, teacher, update.log_z)
        for update, student, teacher in zip(updates, embeddings[::2], embeddings[1::2])
    ]


def checksum(bank: MemoryBank) -> Tensor:
    """Sums over the bits of a bank, ``(3,)`` int64; differ if it does.

    Args:
        bank (MemoryBank): The bank.

    Returns:
        Tensor: Of the student's rows, the teacher's rows and both constants.
        Shards are meant to differ: their rows count as zero.
    """
    log_z = torch.stack([bank.log_z_student, bank.log_z_teacher])
    parts = (bank.student, bank.teacher, log_z)
    if isinstance(bank, ShardedBank):
        parts = (log_z.new_zeros(1), log_z.new_zeros(1), log_z)
    return torch.stack([bit_sum(part) for part in parts])


def _savers(runner) -> List[CheckpointHook]:
    """Hooks that save checkpoints."""
    return [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]


def _saves_iteration(hook: CheckpointHook, runner) -> bool:
    """Whether it saves after this iteration."""
    return not hook.by_epoch and (
        hook.every_n_train_iters(runner, hook.interval, hook.save_begin)
        or (hook.save_last and hook.is_last_train_iter(runner))
    )


def _saves_epoch(hook: CheckpointHook, runner) -> bool:
    """Whether it saves after this epoch."""
    return hook.by_epoch and (
        hook.every_n_epochs(runner, hook.interval, hook.save_begin)
        or (hook.save_last and hook.is_last_train_epoch(runner))
    )


def _unwrap(model: torch.nn.Module) -> torch.nn.Module:
    """The model inside DDP."""
    return model.module if is_model_wrapper(model) else model


def _named(model: torch.nn.Module, kind: type) -> dict:
    """Modules of one class by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}
