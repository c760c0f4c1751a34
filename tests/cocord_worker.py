"""What the processes of CoCoRD's distributed tests do; they import this."""

import os
import traceback
from pathlib import Path
from typing import List
from unittest import mock

import torch
import torch.distributed as dist
from mmengine.hooks import Hook
from torch import Tensor

from crd_plugin.engine.hooks.cocord_hook import CoCoRDHook, gather_keys
from crd_plugin.models import KeyQueue

from . import small_runs
from .cocord import run_changes

# Keys of each rank in each step, against a queue of seven.
SIZES = ([4, 4], [4, 1], [2, 3], [3, 4], [4, 4])
QUEUE_SIZE, BATCH_SIZE = 7, 4


def make_steps() -> List[List[Tensor]]:
    """Keys of all ranks in each step."""
    generator = torch.Generator().manual_seed(5)
    return [[torch.randn(size, 3, generator=generator) for size in sizes] for sizes in SIZES]


def fresh_queue() -> KeyQueue:
    """The same on every rank."""
    torch.manual_seed(0)
    return KeyQueue(embed_dim=3, size=QUEUE_SIZE)


def take_steps(rank: int, batch_size) -> List[dict]:
    """Gather and commit, as the hook does."""
    queue, seen = fresh_queue(), []
    for step in make_steps():
        with mock.patch.object(dist, 'all_gather', wraps=dist.all_gather) as gather:
            queue.commit(*gather_keys(step[rank], batch_size))
        seen.append(
            dict(
                {key: value.clone() for key, value in queue.state_dict().items()},
                collectives=gather.call_count,
            )
        )
    return seen


class Spy(Hook):
    """Keeps the keys of every rank before they are gathered."""

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self.start, self.keys = None, []

    def before_train(self, runner) -> None:
        """The fresh queue."""
        self.start = {key: value.clone() for key, value in _queue(runner).state_dict().items()}

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        """What the forward pass left."""
        self.keys.append(_queue(runner).pending)


def _queue(runner) -> KeyQueue:
    return runner.model.module.cocord_loss.queue


def train_wrapped(folder: Path, rank: int) -> dict:
    """A real runner: 21 samples on two ranks, fresh weights on each."""
    spy = Spy()
    runner = small_runs.build(
        folder / 'runner',
        spy,
        **run_changes(),
        **runs.without_validation(),
        launcher='pytorch',
        randomness=dict(seed=0, diff_rank_seed=True),
        default_hooks__checkpoint=None,
        train_dataloader__dataset__dataset__num_train_per_class=3,
        train_dataloader__dataset__dataset__indices=21,
        train_cfg__max_epochs=2,
    )
    runner.train()
    model, queue = runner.model.module, _queue(runner)
    result = dict(
        start=spy.start,
        keys=spy.keys,
        queue={key: value.clone() for key, value in queue.state_dict().items()},
        averages={
            name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad
        },
        slow_statistics=model.slow_student.backbone.bn.running_mean.clone(),
        drift={},
    )
    (hook,) = [hook for hook in runner.hooks if isinstance(hook, CoCoRDHook)]
    for name in ('keys', 'pointer'):
        value = getattr(queue, name)
        good = value.clone()
        if rank == 1:
            value.view(-1)[-1] += 1
        try:
            hook.after_train_epoch(runner)
            result['drift'][name] = 'nothing was raised'
        except RuntimeError as error:
            result['drift'][name] = str(error)
        value.copy_(good)
    return result


def work(rank: int, folder: str) -> None:
    """Entry point of a process."""
    torch.set_num_threads(1)
    folder = Path(folder)
    os.environ['LOCAL_RANK'] = str(rank)
    dist.init_process_group('gloo', init_method=f'file://{folder}/init', rank=rank, world_size=2)
    result = {}
    try:
        result['known'] = take_steps(rank, BATCH_SIZE)
        result['unknown'] = take_steps(rank, None)
        result['wrapped'] = train_wrapped(folder, rank)
    except Exception:
        result['error'] = traceback.format_exc()
        raise
    finally:
        torch.save(result, folder / f'rank_{rank}.pth')
        dist.destroy_process_group()
