"""CoCoRD in two processes, on CPU."""

import copy
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from mmengine.hooks import Hook
from torch import Tensor

from crd_plugin.engine.hooks.cocord_hook import CoCoRDHook
from crd_plugin.models import KeyQueue
from tests import small_runs
from tests.cocord import run_changes
from tests.test_ops.test_queue import one_by_one

# Number of keys of each rank in each step, for a queue of seven.
SIZES = ([4, 4], [4, 1], [2, 3], [3, 4], [4, 4], [0, 2])
QUEUE_SIZE = 7


def make_steps() -> list[list[Tensor]]:
    """Return the keys of all ranks in each step."""
    generator = torch.Generator().manual_seed(5)
    return [[torch.randn(size, 3, generator=generator) for size in sizes] for sizes in SIZES]


def fresh_queue() -> KeyQueue:
    """Return a queue that is the same on every rank."""
    torch.manual_seed(0)
    return KeyQueue(embed_dim=3, size=QUEUE_SIZE)


def take_steps(rank: int) -> list[dict]:
    """Stage and commit, as a loop of one's own does."""
    queue, seen = fresh_queue(), []
    for step in make_steps():
        with mock.patch.object(dist, 'all_gather', wraps=dist.all_gather) as gather:
            queue.stage(step[rank])
            queue.commit()
        seen.append(dict(copy.deepcopy(queue.state_dict()), collectives=gather.call_count))
    return seen


class Spy(Hook):
    """Records the first state and the keys of this rank before they are gathered."""

    priority = 'VERY_HIGH'

    def before_train(self, runner) -> None:
        """Record the fresh queue."""
        self.start, self.keys = copy.deepcopy(runner.model.module.cocord_loss.queue), []

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        """Record the staged keys."""
        self.keys.append(runner.model.module.cocord_loss.queue.pending)


def train_wrapped(folder: Path, rank: int) -> dict:
    """Train for real: 21 samples on two ranks, which start from different weights."""
    spy = Spy()
    runner = small_runs.train(
        folder / 'runner',
        spy,
        **run_changes(),
        launcher='pytorch',
        randomness=dict(seed=0, diff_rank_seed=True),
        default_hooks__checkpoint=None,
        train_dataloader__dataset__dataset__num_train_per_class=3,
        train_dataloader__dataset__dataset__indices=21,
        train_cfg__max_epochs=2,
    )
    model = runner.model.module
    queue = model.cocord_loss.queue
    result = dict(
        start=spy.start.keys,
        keys=spy.keys,
        queue=copy.deepcopy(queue.state_dict()),
        averages={
            name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad
        },
        slow_statistics=model.slow_student.backbone.bn.running_mean.clone(),
        drift={},
    )
    (hook,) = [hook for hook in runner.hooks if isinstance(hook, CoCoRDHook)]
    for name, value in queue.named_buffers():
        good = value.clone()
        if rank == 1:
            value.view(-1)[-1] += 1
        try:
            hook.after_train_epoch(runner)
        except RuntimeError as error:
            result['drift'][name] = str(error)
        value.copy_(good)
    return result


def work(rank: int, folder: str) -> None:
    """Run everything in one process and save what it saw."""
    with small_runs.process_group(rank, folder) as result:
        result['steps'] = take_steps(rank)
        result['wrapped'] = train_wrapped(Path(folder), rank)


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    """What each rank saw."""
    return small_runs.run_ranks(work, tmp_path_factory.mktemp('ranks'))


def test_keys_of_all_ranks_enter_in_rank_order(ranks):
    """Batches of unequal sizes, more keys than the queue is long."""
    rows, pointer = fresh_queue().keys, 0
    for i, step in enumerate(make_steps()):
        rows, pointer = one_by_one(rows, pointer, torch.cat(step))
        for rank in ranks:
            state = rank['steps'][i]
            assert torch.equal(state['keys'], rows)
            assert int(state['pointer']) == pointer


def test_two_collectives_per_step(ranks):
    """How many keys, and the keys."""
    for rank in ranks:
        assert [step['collectives'] for step in rank['steps']] == [2] * len(SIZES)


def test_wrapped_model_keeps_equal_queues_and_averages(ranks):
    first, second = (rank['wrapped'] for rank in ranks)
    assert torch.equal(first['start'], second['start'])
    # 11 samples per rank (one is read twice) in batches of 6 and 5.
    assert [len(keys) for keys in first['keys']] == [6, 5, 6, 5]
    rows, pointer = first['start'], 0
    for keys in zip(first['keys'], second['keys']):
        assert not torch.equal(*keys)
        rows, pointer = one_by_one(rows, pointer, torch.cat(keys))
    for rank in (first, second):
        assert torch.equal(rank['queue']['keys'], rows)
        assert int(rank['queue']['pointer']) == pointer == 44 % 15
    assert any('slow_student' in name for name in first['averages'])
    for name, value in first['averages'].items():
        assert torch.equal(value, second['averages'][name]), name
    # Each rank has the statistics of its own batches, as without sync_bn.
    assert not torch.equal(first['slow_statistics'], second['slow_statistics'])


def test_drifted_rank_is_noticed(ranks):
    for number, rank in enumerate(ranks):
        drift = rank['wrapped']['drift']
        assert set(drift) == {'keys', 'pointer'}
        for message in drift.values():
            assert message.startswith(
                f'The key queue differs between rank 0 and rank 1 (seen on rank {number}); '
                'something other than CoCoRDHook'
            )
