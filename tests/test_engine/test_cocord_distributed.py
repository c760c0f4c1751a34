"""CoCoRD in two processes, on CPU."""

import os
from unittest import mock

import pytest
import torch
import torch.multiprocessing as mp

from tests import cocord_worker, small_runs
from tests.test_ops.test_queue import one_by_one


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    """What each rank saw."""
    folder = tmp_path_factory.mktemp('ranks')
    mp.set_forkserver_preload(['tests.cocord_worker'])
    with mock.patch.dict(os.environ, PYTHONPATH=str(small_runs.REPO)):
        mp.start_processes(
            cocord_worker.work, args=(str(folder),), nprocs=2, start_method='forkserver'
        )
    return [torch.load(folder / f'rank_{rank}.pth') for rank in range(2)]


@pytest.mark.parametrize('batch_size', ['known', 'unknown'])
def test_keys_of_all_ranks_enter_in_rank_order(ranks, batch_size):
    """Batches of unequal sizes, more keys than the queue is long."""
    rows, pointer = cocord_worker.fresh_queue().keys, 0
    for i, step in enumerate(cocord_worker.make_steps()):
        rows, pointer = one_by_one(rows, pointer, torch.cat(step))
        for rank in ranks:
            state = rank[batch_size][i]
            assert torch.equal(state['keys'], rows)
            assert int(state['pointer']) == pointer


def test_one_collective_per_step(ranks):
    """One more where the sizes of the batches have to be exchanged."""
    for rank in ranks:
        assert [step['collectives'] for step in rank['known']] == [1] * 5
        assert [step['collectives'] for step in rank['unknown']] == [2] * 5


def test_wrapped_model_keeps_equal_queues_and_averages(ranks):
    first, second = (rank['wrapped'] for rank in ranks)
    assert torch.equal(first['start']['keys'], second['start']['keys'])
    # 11 samples per rank (one is read twice) in batches of 6 and 5.
    assert [len(keys) for keys in first['keys']] == [6, 5, 6, 5]
    rows, pointer = first['start']['keys'], 0
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
