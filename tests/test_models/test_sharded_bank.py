"""A bank split by rows: each rank's part, updates, checkpoints.

Several ranks are played by one process here; real ones are in
test_collectives.py.
"""

import copy

import pytest
import torch
import torch.nn.functional as F

from crd_plugin.models import CRDLoss, MemoryBank
from crd_plugin.models import sharded_bank as module
from crd_plugin.models.memory_bank import PendingUpdate
from crd_plugin.models.sharded_bank import ShardedBank
from crd_plugin.ops import bank as bank_ops

N, D, WORLD = 11, 4, 3
SIDES = ('student', 'teacher')


@pytest.fixture
def be(monkeypatch):
    def become(rank, world=WORLD):
        monkeypatch.setattr(module, 'get_rank', lambda: rank)
        monkeypatch.setattr(module, 'get_world_size', lambda: world)

    return become


def whole_bank():
    bank = MemoryBank(D)
    bank.resize(N, torch.arange(N) // 4, seed=5)
    return bank


def ranks(be):
    """The bank of each rank in turn; the process is that rank meanwhile."""
    for rank in range(WORLD):
        be(rank)
        bank = ShardedBank(D)
        bank.resize(N, torch.arange(N) // 4, seed=5)
        yield rank, bank


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator), dim=-1)


@pytest.mark.parametrize('rows_at_once', [1 << 16, 4])
def test_ranks_keep_every_third_row(be, monkeypatch, rows_at_once):
    """Drawn alike everywhere, in parts that fit no number of ranks."""
    monkeypatch.setattr(bank_ops, '_ROWS_AT_ONCE', rows_at_once)
    whole = whole_bank()
    for rank, bank in ranks(be):
        assert bank.num_samples == N and bank.shards().world == WORLD
        for side in SIDES:
            assert torch.equal(getattr(bank, side), getattr(whole, side)[rank::WORLD])
        assert bank.num_bytes == 2 * len(bank.student) * D * 4
        assert torch.equal(bank.labels, whole.labels)


@pytest.mark.parametrize('ids', [[7, 2, 7, 10], [0, 3, 6, 9], [1], [2, 5]])
def test_each_rank_writes_the_rows_that_it_keeps(be, ids):
    update = PendingUpdate(
        torch.tensor(ids),
        unit(len(ids), D),
        unit(len(ids), D, seed=1),
        torch.tensor([3.0, 4.0]).double(),
    )
    whole = whole_bank()
    whole.write(update)
    for rank, bank in ranks(be):
        before = copy.deepcopy(bank)
        bank.write(update)
        touched = sorted({i // WORLD for i in ids if i % WORLD == rank})
        for side in SIDES:
            new, old = getattr(bank, side), getattr(before, side)
            assert torch.equal(new, getattr(whole, side)[rank::WORLD])
            assert (new != old).any(1).nonzero().view(-1).tolist() == touched
        assert bank.has_z and bank.log_z_teacher == 4


def test_rows_are_no_buffers(be):
    """Nothing may average or broadcast them."""
    names = ['log_z_student', 'log_z_teacher', 'labels']
    for _, bank in ranks(be):
        assert [name for name, _ in bank.named_buffers()] == names
        assert list(bank.state_dict()) == names
    be(0, 1)
    alone = ShardedBank(D, num_samples=N)
    assert [name for name, _ in alone.named_buffers()] == names
    assert set(alone.state_dict()) == {*names, *SIDES}


def test_any_number_of_ranks_loads_the_whole(be):
    whole = whole_bank()
    whole.write(
        PendingUpdate(
            torch.arange(N), unit(N, D), unit(N, D, seed=1), torch.tensor([3.0, 4.0]).double()
        )
    )
    state = whole.state_dict()
    for world in (1, 2, 3):
        for rank in range(world):
            be(rank, world)
            sized = ShardedBank(D)
            sized.resize(N, whole.labels, seed=9)
            for bank in (sized, ShardedBank(D)):
                bank.load_state_dict(copy.deepcopy(state))
                assert bank.num_samples == N and bank.has_z
                for side in SIDES:
                    own = getattr(bank, side)
                    assert torch.equal(own, state[side][rank::world])
                    assert own.untyped_storage().nbytes() == own.nbytes
    be(0, 1)
    # A bank in one piece takes what one rank has.
    plain, alone = MemoryBank(D), ShardedBank(D)
    alone.load_state_dict(state)
    plain.load_state_dict(alone.state_dict())
    assert torch.equal(plain.teacher, state['teacher'])


def test_what_is_not_loaded(be):
    """Rows of one rank; in evaluation no rows at all."""
    for _, bank in ranks(be):
        with pytest.raises(RuntimeError, match='Missing key.*student'):
            bank.load_state_dict(bank.state_dict())
    bank = ShardedBank(D)
    bank.keep_rows = False
    bank.load_state_dict(whole_bank().state_dict())
    assert bank.num_samples == 0 and len(bank.student) == 0


def test_all_rows_within_a_checkpoint(be, monkeypatch):
    """Gathered a few at a time; outside, several ranks save no rows."""
    whole, parts = whole_bank(), [bank for _, bank in ranks(be)]
    monkeypatch.setattr(module, '_ROWS_AT_ONCE', 3)
    seen = []

    def gather(part):
        """What rank 0 receives when it sends its next rows."""
        side, start = SIDES[len(seen) // 2], 3 * (len(seen) % 2)
        seen.append(part)
        sent = [getattr(bank, side)[start : start + 3] for bank in parts]
        return [F.pad(rows, (0, 0, 0, len(part) - len(rows))) for rows in sent]

    monkeypatch.setattr(module, 'gather', gather)
    be(0)
    with parts[0].gather_rows_for_checkpoint():
        state = parts[0].state_dict()
    for side in SIDES:
        assert torch.equal(state[side], getattr(whole, side))
    assert not set(SIDES) & set(parts[0].state_dict())


def test_too_few_rows_for_the_ranks(be):
    be(0)
    with pytest.raises(ValueError, match='num_samples is 5, expected at least 6'):
        ShardedBank(D, num_samples=5)


@pytest.mark.parametrize('sharded', [False, True])
@pytest.mark.parametrize('word', ['float16', 'bfloat16'])
def test_narrow_rows(sharded, word):
    """Half the memory; the maths stays in float32."""
    dtype = getattr(torch, word)
    losses = []
    for given in (word, None):
        loss = CRDLoss(
            D, negatives='all', num_samples=N, exclude='instance', sharded=sharded, bank_dtype=given
        )
        loss.bank.resize(N, seed=5)
        losses.append(loss)
    narrow, wide = losses
    assert narrow.bank.student.dtype == dtype
    assert narrow.bank.num_bytes * 2 == wide.bank.num_bytes
    ids = torch.tensor([1, 5])
    for _ in range(2):
        for loss in losses:
            value = loss(unit(2, D), unit(2, D, seed=1), ids)
            assert value.dtype == torch.float32
            loss.bank.commit()
        assert narrow.bank.teacher.dtype == dtype
        torch.testing.assert_close(
            narrow.bank.teacher.float(), wide.bank.teacher, rtol=0, atol=4e-3
        )
        assert not torch.equal(narrow.bank.teacher.float(), wide.bank.teacher)
    # The two kinds of checkpoint are read by each other.
    narrow.load_state_dict(wide.state_dict())
    assert torch.equal(narrow.bank.student, wide.bank.student.to(dtype))
