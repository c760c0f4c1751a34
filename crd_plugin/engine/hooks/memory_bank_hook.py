"""The one place that changes memory banks during training."""
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
import torch
from mmengine.dist import all_gather, broadcast, get_rank, get_world_size
from mmengine.hooks import Hook, SyncBuffersHook
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop
from torch import Tensor

from crd_plugin.models.losses.crd_loss import (CRDLoss, check_embeddings,
                                               check_labels, check_range)
from crd_plugin.models.memory_bank import MemoryBank, PendingUpdate
from crd_plugin.ops import pack_update, unpack_update
from crd_plugin.registry import HOOKS


@HOOKS.register_module()
class MemoryBankHook(Hook):
    """Size, commit, check and log every memory bank of the model.

    A loss only reads its bank and leaves an update. After each iteration this
    hook gathers the updates of all ranks with one collective and writes them
    in rank order, so that all ranks hold bit-identical banks, equal to those
    of a single process that saw the same embeddings. No public code of CRD
    does this (HobbitLong/RepDistiller#3: accuracy drops on 8 GPUs).

    Args:
        interval (int): Iterations between two looks at numbers (mutual
            information bound, norms), which wait for a GPU. Defaults to 50.

    Raises:
        ValueError: Before training, if the training set has no ids or labels
            that a loss needs, a given ``num_samples`` differs from its
            length, this hook is there twice, or a ``SyncBuffersHook`` would
            average bank rows.
    """

    # Before CheckpointHook and LoggerHook, and before EMAHook copies buffers.
    priority = 'ABOVE_NORMAL'

    def __init__(self, interval: int = 50) -> None:
        if interval < 1:
            raise ValueError(
                f'interval is {interval}, expected at least 1 iteration.')
        self.interval = interval
        self._banks: Dict[str, MemoryBank] = {}
        self._losses: Dict[str, CRDLoss] = {}
        self._labels: Optional[np.ndarray] = None

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
                'removed from custom_hooks.')
            return
        given = runner.train_loop.dataloader.dataset
        dataset = index_dataset(given)
        if dataset is None:
            raise ValueError(
                f'train_dataloader.dataset is a {type(given).__name__}, whose '
                'samples carry no ids for the memory bank; wrap it: '
                "dataset=dict(type='crd_plugin.SampleIndexDataset', "
                'dataset=...).')
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
                    'or leave it out.')
            bank.resize(num_samples, labels, seed=runner.seed + number)
            # Ranks may have been seeded differently.
            for rows in (bank.student, bank.teacher):
                broadcast(rows)
            runner.logger.info(
                f'Memory bank {name}: {num_samples} rows of width '
                f'{bank.embed_dim} a side, {bank.num_bytes / 2**20:.1f} MiB.')
        for name, loss in self._losses.items():
            if loss.exclude == 'class':
                self._check_pool(runner, name, loss)

    def before_train(self, runner) -> None:
        """Compare the banks of all ranks, loaded or fresh."""
        self._check_ranks()

    def before_train_iter(self,
                          runner,
                          batch_idx: int,
                          data_batch: Any = None) -> None:
        """Check ids and labels of the batch while they are on the host."""
        samples = None
        if isinstance(data_batch, dict):
            samples = data_batch.get('data_samples')
        if self._banks and isinstance(samples, (list, tuple)):
            self._check_samples(samples)

    def after_train_iter(self,
                         runner,
                         batch_idx: int,
                         data_batch: Any = None,
                         outputs: Optional[dict] = None) -> None:
        """Commit what the forward pass left, in rank order."""
        staged = {
            name: bank
            for name, bank in self._banks.items() if bank.pending is not None
        }
        if not staged:
            return
        if batch_idx == 0 or self.every_n_inner_iters(batch_idx,
                                                      self.interval):
            self._log(runner, staged)
        banks = list(staged.values())
        updates = [bank.pending for bank in banks]
        if get_world_size() > 1:
            updates = gather_updates(updates,
                                     runner.train_loop.dataloader.batch_size)
        for bank, update in zip(banks, updates):
            bank.commit(update)

    def after_train_epoch(self, runner) -> None:
        """Compare the banks of all ranks, before they are saved."""
        self._check_ranks()

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Refuse to resume from a checkpoint without the banks."""
        resuming = isinstance(runner._train_loop, BaseLoop) and runner._resume
        weights = checkpoint.get('state_dict', {})
        for name in self._banks if resuming else ():
            if not any(f'{name}.student' in key for key in weights):
                raise ValueError(
                    f'The checkpoint has no memory bank "{name}", so training '
                    'cannot be resumed from it exactly; start from its '
                    'weights with load_from instead of --resume.')

    def _check_runner(self, runner) -> None:
        """Refuse what would damage a bank."""
        hooks = [hook for hook in runner.hooks if isinstance(hook, type(self))]
        if len(hooks) > 1:
            raise ValueError(
                f'MemoryBankHook is registered {len(hooks)} times, expected '
                'once; remove it from custom_hooks where a base config '
                'already has it.')
        if any(isinstance(hook, SyncBuffersHook) for hook in runner.hooks):
            raise ValueError(
                'SyncBuffersHook averages every buffer over the ranks, which '
                'is wrong for a memory bank; remove it from custom_hooks '
                '(batch norm: use sync_bn).')

    def _read_labels(self, dataset: Any) -> Optional[np.ndarray]:
        """Labels of the training set; None where nothing needs them."""
        try:
            return np.asarray(dataset.get_gt_labels(), dtype=np.int64)
        except ValueError as error:
            if any(loss.exclude == 'class' for loss in self._losses.values()):
                raise ValueError(
                    f"exclude='class' needs labels: {error}") from error
            return None

    def _check_pool(self, runner, name: str, loss: CRDLoss) -> None:
        """Every class needs negatives; fewer than K are repeated."""
        smallest = loss.bank.label_index.smallest_pool
        if loss.negatives == 'sampled' and smallest < loss.num_negatives:
            runner.logger.info(
                f'{name}: num_negatives={loss.num_negatives} is more than '
                f'the {smallest} rows of other classes that some sample has; '
                'its negatives are drawn with replacement.')

    def _check_samples(self, samples: Sequence[Any]) -> None:
        """Ids must be there, in range, and those of the bank's data set."""
        ids = [getattr(sample, 'sample_idx', None) for sample in samples]
        if any(index is None for index in ids):
            raise ValueError(
                'The data samples have no sample_idx; wrap the training data '
                'set in crd_plugin.SampleIndexDataset and end its pipeline '
                'with PackInputs.')
        index = torch.tensor(ids, dtype=torch.int64)
        bank = next(iter(self._banks.values()))
        check_range('sample_idx', int(index.min()), int(index.max()),
                    bank.num_samples)
        labels = [getattr(sample, 'gt_label', None) for sample in samples]
        if self._labels is not None and all(
                isinstance(label, Tensor) and label.numel() == 1
                for label in labels):
            check_labels(
                torch.stack(labels).view(-1).cpu(),
                torch.from_numpy(self._labels)[index], index)

    def _log(self, runner, staged: Dict[str, MemoryBank]) -> None:
        """Log the mutual information bound and look at the norms."""
        for bank in staged.values():
            for name, side in (('s_feats', 'student'), ('t_feats',
                                                        'teacher')):
                embedding = getattr(bank.pending, side)
                check_embeddings(name, side, embedding.float().norm(dim=1))
        for name, loss in self._losses.items():
            if loss.mi_bound is not None:
                # One loss is the rule; several are told apart by their name.
                tag = 'mi_bound'
                if len(self._losses) > 1:
                    tag += '_' + name.rpartition('.')[2].replace('loss', 'at')
                runner.message_hub.update_scalar(f'train/{tag}',
                                                 loss.mi_bound)

    def _check_ranks(self) -> None:
        """All ranks must hold the same bits."""
        if get_world_size() == 1:
            return
        for name, bank in self._banks.items():
            sums = all_gather(checksum(bank))
            for rank, other in enumerate(sums):
                if not torch.equal(other, sums[0]):
                    raise RuntimeError(
                        f'{name} differs between rank 0 and rank {rank} (seen '
                        f'on rank {get_rank()}); something other than '
                        'MemoryBankHook changes its buffers, such as a hook '
                        'that averages or overwrites them.')


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


def gather_updates(updates: Sequence[PendingUpdate],
                   batch_size: Optional[int]) -> List[PendingUpdate]:
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
            f'A batch has {count} samples, the data loader\'s batch_size is '
            f'{batch_size}; give each sample of a batch one embedding.')
    embeddings = [
        embedding for update in updates
        for embedding in (update.student, update.teacher)
    ]
    widths = [embedding.size(1) for embedding in embeddings]
    packed = torch.cat(
        all_gather(pack_update(sample_idx, embeddings, batch_size)))
    sample_idx, embeddings = unpack_update(packed, widths)
    return [
        PendingUpdate(sample_idx, student, teacher, update.log_z)
        for update, student, teacher in zip(updates, embeddings[::2],
                                            embeddings[1::2])
    ]


def checksum(bank: MemoryBank) -> Tensor:
    """Sums over the bits of a bank, ``(3,)`` int64; differ if it does.

    Args:
        bank (MemoryBank): The bank.

    Returns:
        Tensor: Of the student's rows, the teacher's rows and both constants.
    """
    log_z = torch.stack([bank.log_z_student, bank.log_z_teacher])
    parts = (bank.student, bank.teacher, log_z)
    return torch.stack([_bit_sum(part) for part in parts])


def _bit_sum(tensor: Tensor) -> Tensor:
    """Position-weighted sum of the bits of a tensor, modulo 2**64."""
    bits = tensor.contiguous().view(-1).view(torch.int32).view(
        tensor.size(0), -1).sum(1, dtype=torch.int64)
    weight = torch.arange(1, bits.numel() + 1, device=bits.device)
    return (bits * weight).sum()


def _unwrap(model: torch.nn.Module) -> torch.nn.Module:
    """The model inside DDP."""
    return model.module if is_model_wrapper(model) else model


def _named(model: torch.nn.Module, kind: type) -> dict:
    """Modules of one class by name."""
    return {
        name: module
        for name, module in model.named_modules() if isinstance(module, kind)
    }
