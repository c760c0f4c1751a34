"""The memory bank: sizing, scores, updates, checkpoints."""

import copy

import pytest
import torch
import torch.nn.functional as F

from crd_plugin.models import MemoryBank
from crd_plugin.models.memory_bank import PendingUpdate
from tests import golden


def unit(*shape):
    return F.normalize(torch.randn(*shape), dim=-1)


@pytest.fixture
def bank():
    bank = MemoryBank(4)
    bank.resize(10, torch.arange(10) % 3, seed=0)
    return bank


def test_commit_writes_only_its_rows(bank):
    before = copy.deepcopy(bank)
    ids, student, teacher = torch.tensor([7, 2]), unit(2, 4), unit(2, 4)
    bank.stage(ids, student, teacher)
    assert torch.equal(bank.student, before.student)
    bank.commit()
    assert bank.pending is None
    for name, new in (('student', student), ('teacher', teacher)):
        old, rows = getattr(before, name), getattr(bank, name)
        torch.testing.assert_close(rows[ids], F.normalize(old[ids] + new, dim=1))
        untouched = [i for i in range(10) if i not in (2, 7)]
        assert torch.equal(rows[untouched], old[untouched])


def test_a_repeated_id_counts_once_and_last(bank):
    other = copy.deepcopy(bank)
    student, teacher = unit(3, 4), unit(3, 4)
    bank.commit(PendingUpdate(torch.tensor([5, 1, 5]), student, teacher))
    other.commit(PendingUpdate(torch.tensor([1, 5]), student[1:], teacher[1:]))
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


def test_constants_are_set_by_commit(bank):
    log_z = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert not bank.has_z
    bank.stage(torch.tensor([0]), unit(1, 4), unit(1, 4), log_z)
    assert not bank.has_z and torch.isnan(bank.log_z_student)
    bank.commit()
    assert bank.has_z
    assert (bank.log_z_student.item(), bank.log_z_teacher.item()) == (3, 4)


@pytest.mark.parametrize('side', ['student', 'teacher'])
def test_scores_are_the_published_ones(side):
    case = golden.load('crd_medium')
    bank = MemoryBank(32, num_samples=500)
    bank.student.copy_(case['memory_v1_init'])
    bank.teacher.copy_(case['memory_v2_init'])
    bank.log_z_student.copy_(case['call1_Z_v1'].log())
    bank.log_z_teacher.copy_(case['call1_Z_v2'].log())
    letter = side[0]
    out = bank.scores(
        case[f'call1_f_{letter}'], side, case['call1_contrast_idx'], float(case['T_eff'])
    )
    golden.assert_value(out, case[f'call1_out_{letter}'])
    with pytest.raises(ValueError, match="side is 'both', expected 'student'"):
        bank.scores(unit(1, 32), 'both', torch.zeros(1, 1).long(), 0.07)


def test_state_dict_round_trip(bank):
    bank.stage(torch.tensor([3]), unit(1, 4), unit(1, 4), torch.ones(2))
    bank.commit()
    for other in (MemoryBank(4), MemoryBank(4, num_samples=10)):
        other.load_state_dict(bank.state_dict())
        assert other.has_z and other.num_samples == 10
        for name, value in bank.state_dict().items():
            assert torch.equal(getattr(other, name), value)
        assert torch.equal(other.keys('class').key, bank.keys('class').key)


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
        (dict(num_samples=1), 'num_samples is 1, expected at least'),
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
    for wrong in (torch.ones(3), torch.ones(4).long()):
        with pytest.raises(ValueError, match=r'labels is .*, expected integers of shape \(3,\)'):
            bank.resize(3, wrong)


def test_labels_can_be_shared():
    first, second = MemoryBank(4), MemoryBank(3)
    for bank in (first, second):
        bank.resize(6, torch.arange(6) % 3)
    second.share_labels(first)
    assert second.labels is first.labels and second.keys('class') is first.keys('class')
    # What is loaded is compared with what is shared, and stays shared.
    second.load_state_dict(second.state_dict())
    assert second.labels is first.labels
    with pytest.raises(ValueError, match='has 6 rows, this one 5'):
        MemoryBank(4, num_samples=5).share_labels(first)
