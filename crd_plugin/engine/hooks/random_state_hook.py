"""Randomness that a resumed run repeats exactly."""

import random
from collections import Counter, deque
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather, get_rank
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop
from torch.utils.data import DataLoader

from crd_plugin.registry import HOOKS


@HOOKS.register_module()
class RandomStateHook(Hook):
    """Make all randomness of training a function of the seed and the position in training.

    The generators of Python, NumPy and torch (all devices) are seeded from (seed, rank, iteration)
    before each iteration, and each batch is read with generators seeded from (seed, epoch, ids),
    whatever the number of workers. A data set that has ``set_seed`` and ``set_epoch``, as
    ``ResidentDataset``, is told both instead. Checkpoints have the seeds of run and sampler.

    An ``IterBasedTrainLoop`` that resumes reads the batches before that point again, and needs the
    number of workers that the first run had.

    Raises:
        ValueError: Before training, if the ranks have unequal numbers of batches.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._sampler_seed: int | None = None
        self._reading: Any = None

    def before_train(self, runner) -> None:
        """Set the seeds of the sampler and of reading, in new and resumed runs."""
        loader = runner.train_loop.dataloader
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            numbers = [int(number) for number in all_gather(torch.tensor([len(loader)]))]
            if len(set(numbers)) > 1:
                raise ValueError(
                    f'The {len(numbers)} ranks have {", ".join(map(str, numbers))} batches per '
                    'epoch, and those with more would wait for the others for ever; set '
                    'train_dataloader.sampler.round_up=True, or use a sampler that gives each rank '
                    'as many.'
                )
        sampler = _sampler(loader)
        if self._sampler_seed is not None and hasattr(sampler, 'seed'):
            sampler.seed = self._sampler_seed
        self._reading = seeded_reading(loader.dataset)
        self._reading.set_seed(runner.seed)
        batches: Any = getattr(runner.train_loop, 'dataloader_iterator', None)
        if hasattr(batches, 'skip_iter'):
            # OneDL's MMEngine skips batches unread, so workers would not count them as read.
            batches.skip_iter = lambda number: deque(islice(batches, number), maxlen=0)

    def before_train_epoch(self, runner) -> None:
        """Seed what reads the first batch of the epoch."""
        self._reading.set_epoch(runner.epoch)
        seed_everything(runner.seed, get_rank(), runner.iter)

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed the iteration."""
        seed_everything(runner.seed, get_rank(), runner.iter)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Save the seeds."""
        sampler = _sampler(runner.train_loop.dataloader)
        checkpoint['random_state'] = dict(
            seed=runner.seed, sampler_seed=getattr(sampler, 'seed', None)
        )

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Take over the sampler's seed if training goes on."""
        if runner._resume:
            self._sampler_seed = checkpoint.get('random_state', {}).get('sampler_seed')


class SeededReading:
    """Read the batches of a data set with generators seeded from (seed, epoch, ids).

    Afterwards the generators have their previous states. In a loop without epochs the same batch
    may come again, so how often a batch that begins with the same id was read is part of the seed;
    each worker counts for itself.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        # Shared with loader workers, which live on through the epochs.
        self._seed_epoch = torch.zeros(2, dtype=torch.int64).share_memory_()
        self._reads: Counter = Counter()
        self._reads_in = [0, 0]

    def set_seed(self, seed: int) -> None:
        """Set the seed; running workers see it too."""
        self._seed_epoch[0] = seed

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; running workers see it too."""
        self._seed_epoch[1] = epoch

    def __call__(self, indices: Sequence[int]) -> Any:
        """Return what the data set gives for a batch of positions."""
        seed_epoch = self._seed_epoch.tolist()
        if seed_epoch != self._reads_in:
            self._reads.clear()
            self._reads_in = seed_epoch
        words = np.random.SeedSequence(
            [*seed_epoch, self._reads[indices[0]], *indices]
        ).generate_state(4)
        self._reads[indices[0]] += 1
        generator = torch.default_generator
        before = random.getstate(), np.random.get_state(), generator.get_state()
        random.seed(words.tobytes())
        np.random.seed(words)
        generator.manual_seed(int(words[0]) << 32 | int(words[1]))
        try:
            read = getattr(type(self.dataset), '__getitems__', None)
            if read is not None:
                return read(self.dataset, indices)
            return [self.dataset[index] for index in indices]
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])
            generator.set_state(before[2])


def seeded_reading(dataset: Any) -> Any:
    """Return the data set, or what reads it from now on, with ``set_seed`` and ``set_epoch``."""
    if hasattr(dataset, 'set_seed'):
        return dataset
    # torch's data loader reads a batch with the data set's `__getitems__` if there is one.
    reading = getattr(dataset, '__getitems__', None)
    if not isinstance(reading, SeededReading):  # not by an earlier call
        reading = SeededReading(dataset)
        if hasattr(dataset, '__dict__'):  # not a list
            dataset.__getitems__ = reading
    return reading


def seed_everything(seed: int, rank: int, iteration: int) -> None:
    """Seed Python, NumPy and torch from the seed of the run, the rank and the iteration."""
    words = np.random.SeedSequence([seed, rank, iteration]).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch_seed = int(words[2]) << 32 | int(words[3])
    # torch.manual_seed formats a stack trace while CUDA is not initialised.
    torch.default_generator.manual_seed(torch_seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(torch_seed)


def _sampler(loader: DataLoader) -> Any:
    """Return the sampler that chooses the samples, inside a batch sampler or not."""
    return getattr(loader.batch_sampler, 'sampler', loader.sampler)
