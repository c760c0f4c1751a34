"""Memory banks of both kinds: rows, updates, scores, and what a checkpoint does to them."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from crd_plugin.engine.hooks._checks import bit_sum
from crd_plugin.models import MemoryBank, ShardedBank, memory_bank
from crd_plugin.models.memory_bank import PendingUpdate
from crd_plugin.ops import initial_rows

D, N = 4, 10
LABELS = torch.arange(N) % 3


@pytest.fixture(params=[MemoryBank, ShardedBank])
def kind(request):
    return request.param


def sized(kind, **arguments):
    bank = kind(D, **arguments)
    bank.resize(N, LABELS, seed=3)
    return bank


@pytest.fixture
def bank(kind):
    return sized(kind)


def unit(*shape):
    return F.normalize(torch.randn(*shape), dim=-1)


def expected(dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    return [next(initial_rows(N, D, generator))[1].to(dtype) for _ in '12']


def assert_rows(bank, rows):
    for name, given in zip(('student', 'teacher'), rows):
        assert torch.equal(getattr(bank, name), given)


def trained(kind):
    """A bank of another size, with constants, a pending update and draws."""
    bank = kind(D, num_samples=N + 5)
    ones = F.normalize(torch.ones(1, D))
    bank.stage(torch.tensor([2]), ones, ones, torch.zeros(2).double())
    bank.commit()
    bank.stage(torch.tensor([2]), ones, ones)
    assert bank.has_z
    return bank


def test_resized_as_if_new(kind):
    bank = trained(kind)
    bank.resize(N, LABELS, seed=3)
    assert_rows(bank, expected())
    assert bank.num_samples == N and bank.num_bytes == 2 * N * D * 4
    assert not bank.has_z and bank.pending is None
    assert bank.log_z.isnan().all()


@pytest.mark.parametrize(
    'arguments, error',
    [
        (dict(num_samples=1), ValueError),
        (dict(num_samples=10.5), ValueError),
        (dict(num_samples=N, labels=LABELS.double()), ValueError),
        (dict(num_samples=N, labels=LABELS[1:]), ValueError),
        (dict(num_samples=N, seed=2**70), (RuntimeError, ValueError)),
        (dict(num_samples=N, seed='seven'), ValueError),
    ],
)
def test_a_refused_size_changes_nothing(kind, arguments, error):
    bank = trained(kind)
    before = copy.deepcopy(bank.state_dict())
    with pytest.raises(error):
        bank.resize(**arguments)
    assert bank.has_z and bank.pending is not None
    for name, value in bank.state_dict().items():
        assert torch.equal(value, before[name])


def test_memory_that_is_too_small_can_be_tried_again(kind, monkeypatch):
    """Old rows are given up first: there may not be room for both."""
    bank, left = trained(kind), [1]
    original = memory_bank.initial_rows

    def rows(*arguments):
        assert len(bank.teacher) == 0
        if left:
            left.pop()
            return original(*arguments)
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(memory_bank, 'initial_rows', rows)
        with pytest.raises(MemoryError):
            bank.resize(N, LABELS, seed=3)
    assert bank.num_samples == 0 and not bank.has_z and bank.pending is None
    bank.resize(N, LABELS, seed=3)
    assert_rows(bank, expected())


def test_copies_have_rows_of_their_own(kind):
    model = nn.Sequential(nn.Linear(2, 2), sized(kind))
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    model[1].student.zero_()
    for twin in twins:
        assert_rows(twin[1], expected())


def test_a_moved_bank_has_the_rows_that_it_had(kind):
    assert_rows(sized(kind).double(), expected(torch.float64))
    assert_rows(sized(kind).half(), expected(torch.float16))
    assert_rows(sized(kind, dtype=torch.bfloat16), expected(torch.bfloat16))
    bank = sized(kind)
    bank.share_memory()
    # Rows of a sharded bank are no buffers, but they are passed on as well.
    for tensor in (bank.labels, bank.student, bank.teacher):
        assert tensor.is_shared()


def test_state_dict_round_trip(kind, bank):
    bank.stage(torch.tensor([3]), unit(1, D), unit(1, D), torch.ones(2))
    bank.commit()
    saved = bank.state_dict()
    for other in (kind(D), kind(D, num_samples=N), sized(kind)):
        other.load_state_dict(saved)
        assert other.has_z and other.num_samples == N
        for name, value in other.state_dict().items():
            assert torch.equal(value, saved[name])
        assert other.student.data_ptr() != bank.student.data_ptr()
        assert torch.equal(other.keys('class').key, bank.keys('class').key)


def test_evaluation_keeps_what_is_there(kind):
    bank = kind(D, num_samples=N + 1)
    before = bank.student.clone()
    bank.keep_rows = False
    bank.load_state_dict(sized(kind).state_dict())
    assert bank.num_samples == N + 1 and torch.equal(bank.student, before)


@pytest.mark.parametrize('lacking', ['student', 'teacher'])
def test_a_side_that_a_checkpoint_lacks_stays_fresh(kind, lacking):
    bank, saved = sized(kind), sized(kind).state_dict()
    saved.update({side: saved[side] * 0.5 for side in ('student', 'teacher')})
    wanted = {**saved, lacking: saved.pop(lacking) / 0.5}
    assert bank.load_state_dict(saved, strict=False).missing_keys == [lacking]
    assert_rows(bank, (wanted['student'], wanted['teacher']))


DAMAGED = '.*resume from an earlier checkpoint'


@pytest.mark.parametrize(
    'part, change, message',
    [
        ('labels', lambda labels: labels + 1, 'another data set or order'),
        ('student', lambda rows: torch.ones(7, D), 'has 7 rows of width 4, this one 10'),
        ('teacher', lambda rows: torch.ones(N, 5), 'has 10 rows of width 5, this one 10'),
        ('student', lambda rows: torch.full((N, D), 2.0), f'student rows with .* of 4, {DAMAGED}'),
        ('teacher', lambda rows: rows * math.nan, f'teacher rows with an L2 .* nan, exp{DAMAGED}'),
        ('student', lambda rows: rows * (torch.arange(N) < 5)[:, None], f'of 0,{DAMAGED}'),
        ('teacher', lambda rows: (rows / 2).long(), f'teacher rows with an L2 .* 0, exp{DAMAGED}'),
        ('student', lambda rows: rows[:, 0], 'has 10 rows of width 10, this one 10 of width 4'),
        ('log_z_teacher', lambda z: z * math.nan, f'log_z_teacher.: nan{DAMAGED}'),
        ('log_z_student', lambda z: z - math.inf, f'log_z_student.: -inf{DAMAGED}'),
    ],
)
def test_a_refused_checkpoint_changes_nothing(kind, part, change, message):
    """Of other data, half a bank, rows of another kind, what is not finite."""
    bank = sized(kind)
    state = bank.state_dict()
    state['log_z_student'] = state['log_z_teacher'] = torch.zeros(()).double()
    with pytest.raises(ValueError, match=message):
        bank.load_state_dict({**state, part: change(state[part])}, strict=False)
    assert bank.num_samples == N and not bank.has_z
    assert_rows(bank, expected())


def test_one_side_for_a_bank_without_a_size(kind):
    saved = sized(kind).state_dict()
    del saved['teacher']
    bank = kind(D)
    with pytest.raises(RuntimeError, match='size mismatch for student'):
        bank.load_state_dict(saved, strict=False)
    assert len(bank.student) == len(bank.teacher) == bank.num_samples == 0


def test_another_width_in_the_checkpoint_of_an_unsized_bank(kind):
    bank = kind(D + 1)
    with pytest.raises(ValueError, match='rows of width 4, this one .* 5'):
        bank.load_state_dict(sized(kind).state_dict())
    assert bank.num_samples == 0


@pytest.mark.parametrize('change', ['load_state_dict', 'resize'])
def test_loaded_or_sized_in_inference_mode(kind, change):
    """What a model is only tried with must be writable in training."""
    saved = sized(kind).state_dict()
    for bank in (sized(kind), kind(D)):
        with torch.inference_mode():
            bank.load_state_dict(saved) if change != 'resize' else bank.resize(N, LABELS, seed=3)
        bank.stage(torch.tensor([2]), torch.ones(1, D), torch.ones(1, D))
        bank.commit()
        assert not torch.equal(bank.student[2], saved['student'][2])


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_bit_sum_adds_all_bits(monkeypatch, dtype):
    rows = torch.randn(10, D).to(dtype)
    whole = bit_sum(rows)
    monkeypatch.setattr('crd_plugin.engine.hooks._checks._ROWS_AT_ONCE', 3)
    assert torch.equal(bit_sum(rows), whole)
    words = rows.view(torch.int16 if dtype.itemsize == 2 else torch.int32).long()
    assert whole == (words.sum(1) * torch.arange(1, 11)).sum()
    rows[7, 1] += 1
    assert not torch.equal(bit_sum(rows), whole)


def test_commit_writes_only_its_rows(bank):
    before = copy.deepcopy(bank)
    ids, student, teacher = torch.tensor([7, 2]), unit(2, 4), unit(2, 4)
    bank.stage(ids, student, teacher, torch.tensor([3.0, 4.0]).double())
    assert torch.equal(bank.student, before.student)
    assert not bank.has_z and torch.isnan(bank.log_z_student)
    bank.commit()
    assert bank.pending is None and bank.has_z and bank.log_z.tolist() == [3, 4]
    for name, new in (('student', student), ('teacher', teacher)):
        old, rows = getattr(before, name), getattr(bank, name)
        torch.testing.assert_close(rows[ids], F.normalize(old[ids] + new, dim=1))
        untouched = [i for i in range(10) if i not in (2, 7)]
        assert torch.equal(rows[untouched], old[untouched])


def test_a_repeated_id_counts_once_and_last(bank):
    other = copy.deepcopy(bank)
    student, teacher = unit(3, 4), unit(3, 4)
    bank.write(PendingUpdate(torch.tensor([5, 1, 5]), student, teacher))
    other.write(PendingUpdate(torch.tensor([1, 5]), student[1:], teacher[1:]))
    assert torch.equal(bank.student, other.student)
    assert torch.equal(bank.teacher, other.teacher)


def test_stage_detaches_and_refuses_a_second_time(bank):
    student = unit(1, 4).requires_grad_()
    bank.stage(torch.tensor([0]), student, unit(1, 4))
    assert not bank.pending.student.requires_grad
    with pytest.raises(RuntimeError, match='MemoryBankHook is missing'):
        bank.stage(torch.tensor([0]), student, unit(1, 4))
    bank.discard()
    with pytest.raises(RuntimeError, match='no staged update'):
        bank.commit()


def test_keys(bank):
    assert bank.keys('class').key.tolist() == [i % 3 for i in range(10)]
    assert bank.keys('class').smallest_pool == 6
    assert bank.keys('instance').key.tolist() == list(range(10))
    assert bank.keys('class') is bank.keys('class')
    bank.resize(5)
    assert bank.keys('instance').key.tolist() == list(range(5))
    with pytest.raises(ValueError, match="MemoryBankHook.*'instance'"):
        bank.keys('class')


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(momentum=1.0), r'momentum is 1.0, expected 0 <= momentum < 1'),
        (dict(dtype=torch.int32), 'dtype is torch.int32, expected'),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        MemoryBank(4, **kwargs)


def test_labels_are_any_integers():
    bank = MemoryBank(4)
    bank.resize(3, [0, 1, 1])
    assert bank.labels.dtype == torch.int64 and bank.labels.tolist() == [0, 1, 1]


def test_rows_of_ranks_that_are_seeded_differently_are_equal():
    banks = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        banks.append(MemoryBank(4, num_samples=6))
    assert torch.equal(banks[0].student, banks[1].student)
    banks[1].resize(6, seed=1)
    assert not torch.equal(banks[0].student, banks[1].student)


@pytest.mark.parametrize('dtype, most', [(torch.bfloat16, 1 - 2**-5), (torch.float16, 1 - 2**-8)])
def test_rows_reach_what_is_written(dtype, most):
    """With the largest momentum that the type allows; a larger one is refused."""
    torch.manual_seed(0)
    bank = MemoryBank(8, most, 4, dtype)
    student, teacher = F.normalize(torch.randn(2, 4, 8), dim=2)
    for _ in range(int(10 / (1 - most))):
        bank.stage(torch.arange(4), student, teacher)
        bank.commit()
    assert F.cosine_similarity(bank.student.float(), student).min() > 0.995
    with pytest.raises(ValueError, match=f'momentum is .*{dtype} need at most {most:.6g}.*float32'):
        MemoryBank(8, most + 1e-3, 4, dtype)


def test_labels_can_be_shared():
    first, second = MemoryBank(4), MemoryBank(3)
    for bank in (first, second):
        bank.resize(6, torch.arange(6) % 3)
    second.share_labels(first)
    assert second.labels is first.labels and second.keys('class') is first.keys('class')
    # What is loaded is compared with what is shared, and stays shared.
    second.load_state_dict(second.state_dict())
    assert second.labels is first.labels
