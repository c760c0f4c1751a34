"""Banks in several processes, on CPU."""

import pytest
import torch

from crd_plugin.models import MemoryBank
from crd_plugin.models.memory_bank import PendingUpdate
from tests import dist_worker, small_runs
from tests.contrast_worker import join
from tests.dist_worker import WIDTHS

WORLDS = (2, 4)
STEPS = range(5)


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
    """Folder of the group of two ranks, which is in that of the four."""
    folder = tmp_path_factory.mktemp('ranks') / 'pair'
    folder.mkdir()
    return folder


@pytest.fixture(scope='module')
def results(pair):
    """What the ranks saw, by world size."""
    four = small_runs.run_ranks(dist_worker.work, pair.parent, 4)
    return {4: four, 2: [torch.load(pair / f'rank_{rank}.pth') for rank in range(2)]}


@pytest.fixture(scope='module')
def single():
    """The same embeddings in one process, by number of ranks they are of."""
    seen = {}
    for world in WORLDS:
        batches = [join(step) for step in dist_worker.make_steps(world)]
        trainer = dist_worker.make_trainer(batch_size=999)
        seen[world] = dist_worker.take_steps(trainer, batches)
    return seen


@pytest.mark.parametrize('world', WORLDS)
@pytest.mark.parametrize('step', STEPS)
def test_ranks_hold_the_same_bits(results, world, step):
    first, *others = [rank['steps'][step]['banks'] for rank in results[world]]
    for other in others:
        for name in WIDTHS:
            for key, value in first[name].items():
                assert _same_bits(value, other[name][key]), (name, key)


@pytest.mark.parametrize('world', WORLDS)
@pytest.mark.parametrize('step', STEPS)
def test_ranks_equal_a_single_process(results, single, world, step):
    ranks = results[world][0]['steps'][step]['banks']
    alone = single[world][step]['banks']
    for name in WIDTHS:
        for side in ('student', 'teacher'):
            assert _same_bits(ranks[name][side], alone[name][side])
            torch.testing.assert_close(
                ranks[name][f'log_z_{side}'].exp(),
                alone[name][f'log_z_{side}'].exp(),
                rtol=1e-12,
                atol=0,
            )


@pytest.mark.parametrize('world', WORLDS)
def test_mean_loss_of_the_ranks_is_that_of_a_single_process(results, single, world):
    """Holds where batches are of one size; that is how DDP averages."""
    for step in (1, 3):
        for name in WIDTHS:
            ranks = [rank['steps'][step]['losses'][name] for rank in results[world]]
            torch.testing.assert_close(
                torch.stack(ranks).mean(), single[world][step]['losses'][name], rtol=1e-10, atol=0
            )


@pytest.mark.parametrize('world', WORLDS)
def test_two_banks_take_two_collectives_per_step(results, world):
    """How many rows, and the rows."""
    for rank in results[world]:
        assert [step['collectives'] for step in rank['steps']] == [2] * 5


@pytest.mark.parametrize('world', WORLDS)
def test_drifted_rank_is_noticed(results, world):
    for rank, result in enumerate(results[world]):
        messages = dict(result['drift'])
        assert messages.pop('none') == 'nothing was raised'
        assert set(messages) == {'student', 'teacher', 'log_z'}
        for message in messages.values():
            assert message.startswith(
                'RuntimeError: loss_b.bank differs between rank 0 and rank 1 '
                f'(seen on rank {rank}); something other than MemoryBankHook'
            )


@pytest.mark.parametrize('broadcast_buffers', [False, True])
def test_wrapped_model_keeps_equal_banks(results, broadcast_buffers):
    first, second = (rank['wrapped'][broadcast_buffers] for rank in results[2])
    assert first['broadcast_buffers'] is broadcast_buffers
    # 11 samples a rank in batches of 6 and 5, in two epochs, 21 in all.
    for rank in (first, second):
        sizes = [update[0].numel() for update in rank['updates']]
        assert sizes == [6, 5] * 2
    epoch = torch.cat([u[0] for u in first['updates'][:2]] + [u[0] for u in second['updates'][:2]])
    assert epoch.unique().numel() == 21

    replay = MemoryBank(embed_dim=8, num_samples=21)
    replay.load_state_dict(first['start'])
    for updates in zip(first['updates'], second['updates']):
        replay.write(
            PendingUpdate(
                *(torch.cat(parts) for parts in zip(*(update[:3] for update in updates))),
                updates[0][3],
            )
        )
    for key, value in replay.state_dict().items():
        assert _same_bits(first['bank'][key], value), key
        assert _same_bits(second['bank'][key], value), key


def test_broadcasting_buffers_changes_no_training(results):
    """Batch statistics are those of the batch; only running ones differ."""
    kept, broadcast = results[2][0]['wrapped']
    for key in ('student', 'teacher', 'log_z_student'):
        assert _same_bits(kept['bank'][key], broadcast['bank'][key])
    # It did broadcast: without it each rank has running statistics of its own.
    ranks = [
        [rank['wrapped'][i]['student']['backbone.bn.running_mean'] for rank in results[2]]
        for i in range(2)
    ]
    assert not torch.equal(*ranks[0])
    gap = [(a - b).abs().max() for a, b in ranks]
    assert gap[1] < gap[0]


def test_online_kd_trains_equal_weights(results):
    first, second = (rank['online'] for rank in results[2])
    assert {name.split('.')[0] for name in first['end']} == {'architecture', 'branches', 'gate'}
    for name, value in first['end'].items():
        assert _same_bits(value, second['end'][name]), name
        assert value.isfinite().all()
        assert not torch.equal(value, first['start'][name]), name


def test_what_is_validated_is_what_is_saved(results, pair):
    """Each rank predicts a part of the set, and the file has the statistics of rank 0."""
    ranks = [rank['validated'] for rank in results[2]]
    for epoch in (1, 2):
        path = pair / f'validated/epoch_{epoch}.pth'
        saved = small_runs.student_of(small_runs.load(path))
        for rank in ranks:
            for key, value in rank['statistics'][epoch - 1].items():
                assert _same_bits(value, saved[f'backbone.bn.{key}']), (epoch, key)
        tested = small_runs.build(pair / 'tested', load_from=str(path)).test()
        assert ranks[0]['metrics'][epoch - 1] == tested


def test_a_resumed_run_validates_as_an_uninterrupted_one(results):
    """All its ranks begin with the statistics of rank 0; training does not read them."""
    for rank in results[2]:
        whole, resumed = rank['validated'], rank['resumed']
        assert resumed['metrics'] == whole['metrics']
        for found, expected in zip(resumed['statistics'], whole['statistics'], strict=True):
            assert all(_same_bits(found[key], expected[key]) for key in expected)


def _same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    return (
        first.dtype == second.dtype
        and first.shape == second.shape
        and first.numpy().tobytes() == second.numpy().tobytes()
    )
