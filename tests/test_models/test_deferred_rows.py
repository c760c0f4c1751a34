"""Rows of a bank are drawn when they are first looked at, and only then."""
import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from crd_plugin.models import MemoryBank, ShardedBank
from crd_plugin.models.losses import CRDLoss
from crd_plugin.ops import initial_rows

D, N = 4, 10
LABELS = torch.arange(N) % 3


@pytest.fixture(params=[MemoryBank, ShardedBank])
def kind(request):
    """A class of banks."""
    return request.param


@pytest.fixture
def draws(monkeypatch):
    """The banks whose rows were drawn, in order."""
    seen = []
    for cls in (MemoryBank, ShardedBank):

        def fresh(bank, generator, original=cls._fresh_rows):
            seen.append(bank)
            return original(bank, generator)

        monkeypatch.setattr(cls, '_fresh_rows', fresh)
    return seen


def sized(kind, **arguments):
    """A bank whose rows nobody has looked at."""
    bank = kind(D, **arguments)
    bank.resize(N, LABELS, seed=3)
    return bank


def expected(dtype=torch.float32):
    """The rows of seed 3."""
    generator = torch.Generator().manual_seed(3)
    return [initial_rows(N, D, generator).to(dtype) for _ in '12']


def assert_rows(bank, rows):
    """The bank has these rows."""
    for name, given in zip(('student', 'teacher'), rows):
        assert torch.equal(getattr(bank, name), given)


def test_sizes_are_known_without_rows(kind, draws):
    bank = sized(kind, num_samples=N)
    assert (bank.num_samples, bank.num_own_rows) == (N, N)
    assert bank.num_bytes == 2 * N * D * 4
    assert f'num_samples={N}' in repr(bank)
    assert bank.label_index.smallest_pool == N - 4
    other = kind(D, num_samples=N)
    other.share_labels(bank)
    sum(buffer.numel() for buffer in nn.ModuleList([bank]).buffers())
    bank.resize(N + 2)
    assert not draws


@pytest.mark.parametrize('look', [
    lambda bank: bank.student,
    lambda bank: bank.teacher,
    lambda bank: bank.state_dict(),
    lambda bank: copy.deepcopy(bank),
    lambda bank: pickle.dumps(bank),
    lambda bank: bank.scores(torch.ones(1, D), 'student',
                             torch.tensor([[0, 1]]), 1.0),
    lambda bank: bank.draw_rows(),
    lambda bank: bank.to('cpu'),
])
def test_whoever_looks_finds_them(kind, draws, look):
    bank = sized(kind)
    look(bank)
    assert len(draws) == 2
    assert_rows(bank, expected())
    assert not bank.draw_rows() and len(draws) == 2
    assert not bank.student.requires_grad


def test_draw_rows_says_whether_it_did(kind):
    bank = kind(D)
    assert not bank.draw_rows() and len(bank.student) == 0
    bank.resize(N, seed=3)
    assert bank.draw_rows() and not bank.draw_rows()


def test_copies_have_the_same_rows_and_their_own(kind, draws):
    bank = nn.Sequential(nn.Linear(2, 2), sized(kind))
    twins = [copy.deepcopy(bank), pickle.loads(pickle.dumps(bank))]
    assert len(draws) == 2
    bank[1].student.zero_()
    for twin in twins:
        assert_rows(twin[1], expected())


def test_a_buffer_that_is_copied_is_whole():
    """As EMAHook copies a model and then keeps its buffers alike."""
    model = nn.Sequential(sized(MemoryBank))
    twin = copy.deepcopy(model)
    model[0].student.zero_()
    for target, source in zip(twin.buffers(), model.buffers()):
        target.copy_(source)
    assert torch.equal(twin[0].student, torch.zeros(N, D))


def test_a_loaded_bank_is_never_drawn(kind, draws):
    saved = sized(kind).state_dict()
    saved['student'] += 1
    draws.clear()
    for bank in (kind(D), kind(D, num_samples=N), sized(kind)):
        bank.load_state_dict(saved)
        assert_rows(bank, (saved['student'], saved['teacher']))
        assert bank.student.data_ptr() != saved['student'].data_ptr()
    assert not draws


def test_evaluation_draws_nothing(kind, draws):
    saved = sized(kind).state_dict()
    draws.clear()
    bank = kind(D, num_samples=N + 1)
    bank.keep_rows = False
    bank.load_state_dict(saved)
    assert not draws and bank.num_samples == N + 1


@pytest.mark.parametrize('lacking', ['student', 'teacher'])
def test_a_side_that_a_checkpoint_lacks_stays_fresh(kind, lacking):
    saved = {
        name: value + 1 if name in ('student', 'teacher') else value
        for name, value in sized(kind).state_dict().items()
    }
    del saved[lacking]
    bank = sized(kind)
    result = bank.load_state_dict(saved, strict=False)
    assert result.missing_keys == [lacking]
    for name, fresh in zip(('student', 'teacher'), expected()):
        wanted = fresh if name == lacking else saved[name]
        assert torch.equal(getattr(bank, name), wanted)


@pytest.mark.parametrize('change, message', [
    (dict(labels=LABELS + 1), 'another data set or order'),
    (dict(student=torch.ones(7, D)), 'has 7 rows of width 4, this one 10'),
    (dict(teacher=torch.ones(7, D)), 'has 7 rows of width 4, this one 10'),
    (dict(teacher=torch.ones(N, 5)), 'has 10 rows of width 5, this one 10'),
    (dict(student=None, teacher=torch.ones(7, D)), 'has 7 rows of width 4'),
])
@pytest.mark.parametrize('drawn', [False, True])
def test_a_refused_checkpoint_changes_nothing(kind, drawn, change, message):
    saved = {**sized(kind).state_dict(), **change}
    saved = {name: value for name, value in saved.items() if value is not None}
    bank = sized(kind)
    if drawn:
        bank.draw_rows()
    with pytest.raises(ValueError, match=message):
        bank.load_state_dict(saved, strict=False)
    assert bank.num_samples == N and not bank.has_z
    assert_rows(bank, expected())


def test_one_side_for_a_bank_without_a_size():
    saved = sized(ShardedBank).state_dict()
    del saved['teacher']
    bank = ShardedBank(D)
    assert bank.load_state_dict(saved, strict=False).missing_keys == [
        'teacher'
    ]
    assert len(bank.student) == len(bank.teacher) == bank.num_samples == 0


def test_loaded_in_inference_mode(kind):
    saved = sized(kind).state_dict()
    for bank in (sized(kind), kind(D)):
        with torch.inference_mode():
            bank.load_state_dict(saved)
        bank.stage(torch.tensor([2]), torch.ones(1, D), torch.ones(1, D))
        bank.commit()
        assert not torch.equal(bank.student[2], saved['student'][2])


def test_another_width_in_the_checkpoint_of_an_unsized_bank(kind):
    bank = kind(D + 1)
    with pytest.raises(ValueError, match='rows of width 4, this one .* 5'):
        bank.load_state_dict(sized(kind).state_dict())


def test_a_moved_bank_has_the_rows_that_it_had(kind):
    bank = sized(kind).double()
    assert_rows(bank, expected(torch.float64))
    bank = sized(kind).half()
    assert_rows(bank, expected(torch.float16))
    bank.share_memory()
    assert bank.labels.is_shared()
    # Rows of a sharded bank are no buffers, but they are passed on as well.
    assert bank.student.is_shared() and bank.teacher.is_shared()
    bank = sized(kind, dtype=torch.bfloat16)
    assert_rows(bank, expected(torch.bfloat16))


def test_first_look_in_inference_mode(kind):
    """What is drawn there must be writable in training."""
    bank = sized(kind)
    with torch.inference_mode():
        assert len(bank.student) == N
    ones = F.normalize(torch.ones(1, D))
    bank.stage(torch.tensor([2]), ones, ones)
    bank.commit()
    mixed = F.normalize(expected()[0][2:3] + ones)
    torch.testing.assert_close(bank.student[2:3], mixed)


def test_rows_that_are_given_stay(kind):
    bank, rows = sized(kind), torch.ones(N, D)
    bank.student = rows
    assert_rows(bank, (rows, expected()[1]))
    bank.double()
    assert_rows(bank, (rows.double(), expected(torch.float64)[1]))
    bank.teacher = rows.half()
    assert bank.teacher.dtype == torch.float64
    with pytest.raises(
            ValueError, match=r'teacher has shape \(9, 4\), expected \(10, 4'):
        bank.teacher = torch.ones(N - 1, D)


def test_memory_that_is_too_small_can_be_tried_again(kind, monkeypatch):
    bank, left = sized(kind), [1]
    original = kind._fresh_rows

    def fresh(bank, generator):
        if left:
            left.pop()
            return original(bank, generator)
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(kind, '_fresh_rows', fresh)
        with pytest.raises(MemoryError):
            bank.draw_rows()
    assert_rows(bank, expected())


@pytest.mark.parametrize('seed', [2**70, 'seven'])
def test_what_is_no_seed_is_refused_at_once(kind, seed):
    with pytest.raises((RuntimeError, ValueError, OverflowError)):
        kind(D).resize(N, seed=seed)
    bank = kind(D)
    bank.resize(N, seed=torch.tensor(3))
    assert_rows(bank, expected())


def test_several_readers_find_the_same(kind):
    """The first one draws, the others wait for it."""
    for _ in range(5):
        bank = kind(D)
        bank.resize(20000, seed=3)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: bank.student, range(4)))
        assert len({rows.data_ptr() for rows in found}) == 1


def test_of_several_processes_each_draws_at_once(kind, draws, monkeypatch):
    """Before DistributedDataParallel makes their buffers alike."""
    monkeypatch.setattr('crd_plugin.models.memory_bank.get_world_size',
                        lambda: 2)
    bank = sized(kind)
    assert len(draws) == 2
    assert_rows(bank, expected())


def test_the_first_step_draws(kind, draws):
    loss = CRDLoss(D, 4, num_samples=N, sharded=kind is ShardedBank)
    loss.bank.resize(N, LABELS, seed=3)
    assert not draws
    feats = F.normalize(torch.randn(3, D))
    assert loss(feats, feats, torch.arange(3)).isfinite()
    assert len(draws) == 2
