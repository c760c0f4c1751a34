"""Fresh rows of a bank, and what a checkpoint does to them, of both kinds."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from crd_plugin.engine.hooks._checks import bit_sum
from crd_plugin.models import MemoryBank, ShardedBank, memory_bank
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
    assert f'num_samples={N}, embed_dim={D}, momentum=0.5' in repr(bank)
    assert not bank.has_z and bank.pending is None
    assert bank.log_z.isnan().all()
    assert bank.keys('class').smallest_pool == N - 4
    bank.resize(N, seed=3)
    with pytest.raises(ValueError, match='the memory bank has none'):
        bank.keys('class')


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


def test_a_loaded_bank_has_rows_of_its_own(kind):
    saved = sized(kind).state_dict()
    saved['student'] *= 0.5
    for bank in (kind(D), kind(D, num_samples=N), sized(kind)):
        bank.load_state_dict(saved)
        assert bank.num_samples == N and not bank.has_z
        assert_rows(bank, (saved['student'], saved['teacher']))
        assert bank.student.data_ptr() != saved['student'].data_ptr()


def test_evaluation_keeps_what_is_there(kind):
    bank = kind(D, num_samples=N + 1)
    before = bank.student.clone()
    bank.keep_rows = False
    bank.load_state_dict(sized(kind).state_dict())
    assert bank.num_samples == N + 1 and torch.equal(bank.student, before)


@pytest.mark.parametrize('lacking', ['student', 'teacher'])
def test_a_side_that_a_checkpoint_lacks_stays_fresh(kind, lacking):
    saved = {
        name: value * 0.5 if name in ('student', 'teacher') else value
        for name, value in sized(kind).state_dict().items()
    }
    del saved[lacking]
    bank = sized(kind)
    result = bank.load_state_dict(saved, strict=False)
    assert result.missing_keys == [lacking]
    for name, fresh in zip(('student', 'teacher'), expected()):
        wanted = fresh if name == lacking else saved[name]
        assert torch.equal(getattr(bank, name), wanted)


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(labels=LABELS + 1), 'another data set or order'),
        (dict(student=torch.ones(7, D)), 'has 7 rows of width 4, this one 10'),
        (dict(teacher=torch.ones(7, D)), 'has 7 rows of width 4, this one 10'),
        (dict(teacher=torch.ones(N, 5)), 'has 10 rows of width 5, this one 10'),
        (dict(student=None, teacher=torch.ones(7, D)), 'has 7 rows of width 4'),
        (dict(student=torch.full((N, D), 2.0)), 'has student rows with an L2 norm of 4, expected'),
        (dict(teacher=torch.full((N, D), math.nan)), 'teacher rows with an L2 norm of nan, exp'),
    ],
)
def test_a_refused_checkpoint_changes_nothing(kind, change, message):
    saved = {**sized(kind).state_dict(), **change}
    saved = {name: value for name, value in saved.items() if value is not None}
    bank = sized(kind)
    with pytest.raises(ValueError, match=message):
        bank.load_state_dict(saved, strict=False)
    assert bank.num_samples == N and not bank.has_z
    assert_rows(bank, expected())


def test_one_side_for_a_bank_without_a_size():
    saved = sized(ShardedBank).state_dict()
    del saved['teacher']
    bank = ShardedBank(D)
    assert bank.load_state_dict(saved, strict=False).missing_keys == ['teacher']
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
    halves = rows.view(torch.int16).long()
    if dtype.itemsize > 2:
        halves = rows.view(torch.int32).long()
    expected = (halves.sum(1) * torch.arange(1, 11)).sum()
    assert torch.equal(whole, expected)
    rows[7, 1] += 1
    assert not torch.equal(bit_sum(rows), whole)


@pytest.mark.parametrize(
    'part, change, message',
    [
        ('student', lambda rows: None, 'student rows that are NoneType, expected floating point'),
        ('teacher', lambda rows: rows.long(), r'teacher rows that are int64 of shape \(10, 4\)'),
        ('student', lambda rows: rows[:, 0], r'student rows that are float32 of shape \(10,\)'),
        ('student', lambda rows: rows * (torch.arange(N) < 5)[:, None], 'an L2 norm of 0,'),
        (
            'log_z_teacher',
            lambda z: z * math.nan,
            'log_z_student 0 and log_z_teacher nan, expected',
        ),
        ('log_z_student', lambda z: z - math.inf, 'log_z_student -inf and log_z_teacher 0'),
    ],
)
def test_damaged_state_is_refused(part, change, message):
    """Half a bank, rows of another kind, what is not finite."""
    bank = sized(MemoryBank)
    state = bank.state_dict()
    state['log_z_student'] = state['log_z_teacher'] = torch.zeros(()).double()
    bank.load_state_dict(state)
    with pytest.raises(ValueError, match=f'{message}.*resume from an earlier checkpoint'):
        bank.load_state_dict({**state, part: change(state[part])})
