"""EnsembleKDLoss: KL divergence from the mean of softened probabilities."""

import math

import pytest
import torch
from mmrazor.models.losses import KLDivergence

from crd_plugin.models import EnsembleKDLoss


def logits(number=3, dtype=torch.float64):
    student, *teachers = (torch.randn(4, 5, dtype=dtype).mul(3) for _ in range(number + 1))
    return student.requires_grad_(), [teacher.requires_grad_() for teacher in teachers]


def test_naive_loss():
    student, teachers = logits()
    tau, total = 3.0, 0.0
    for row in range(4):
        scores = [[math.exp(x / tau) for x in net[row].tolist()] for net in (student, *teachers)]
        own, *others = ([value / sum(row) for value in row] for row in scores)
        for column in range(5):
            mean = sum(other[column] for other in others) / len(others)
            total += mean * math.log(mean / own[column])
    value = EnsembleKDLoss(tau=tau, loss_weight=0.9)(student, teachers)
    assert value.item() == pytest.approx(0.9 * tau**2 * total / 4, rel=1e-9)
    value.backward()
    assert student.grad.abs().sum() > 0 and all(teacher.grad is None for teacher in teachers)


def test_one_teacher_is_mmrazors():
    student, (teacher,) = logits(1, torch.float32)
    expected = KLDivergence(tau=4, loss_weight=0.9)(student, teacher)
    for given in (teacher, [teacher]):
        torch.testing.assert_close(EnsembleKDLoss(4, 0.9)(student, given), expected)


def test_far_logits_stay_finite():
    student, teachers = logits(2, torch.float32)
    value = EnsembleKDLoss()(1e4 * student, [1e4 * teacher for teacher in teachers])
    assert value.isfinite()


def test_bad_arguments():
    student, teachers = logits()
    loss = EnsembleKDLoss()
    with pytest.raises(ValueError, match=r'\[5, 4, 5\] classes by the teachers and 5 by the stud'):
        loss.infer_width(student, [teachers[0], teachers[1][:, :4], teachers[2]])
    assert loss.needs_width
    loss.infer_width(student, teachers)
    assert not loss.needs_width
    with pytest.raises(ValueError, match='expected logits'):
        loss(student, [teachers[0][:, :4]])
