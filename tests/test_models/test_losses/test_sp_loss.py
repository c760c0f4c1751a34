"""SPLoss against the published numbers, and its contract."""

import pytest
import torch

from crd_plugin.models.losses import SPLoss
from tests import golden, method_cases


def features(dtype=torch.float64):
    """Two layers of four samples; sizes need not agree."""
    return (
        method_cases.random_maps((4, 3, 3, 3), (4, 2, 1, 1), dtype=dtype),
        method_cases.random_maps((4, 5, 2, 2), (4, 2, 2, 1), dtype=dtype, seed=1),
    )


@pytest.mark.parametrize('dtype', method_cases.DTYPES)
def test_published_numbers(dtype):
    method_cases.check(SPLoss(), golden.load('zoo_sp'), dtype)


def test_against_a_loop():

    def similarity(x):
        rows = [[(a * b).sum() for b in x] for a in x]
        return [[g / sum(h**2 for h in row).sqrt() for g in row] for row in rows]

    def loop(student, teacher):
        total = 0.0
        for s, t in zip(student, teacher):
            g_s, g_t = similarity(s), similarity(t.detach())
            total = (
                total + sum((g_s[i][j] - g_t[i][j]) ** 2 for i in range(4) for j in range(4)) / 16
            )
        return total

    method_cases.check_against_loop(SPLoss(), loop, *features())


def test_loss_weight_counts():
    method_cases.check_weight(SPLoss, *features())


def test_half_precision():
    student, teacher = features()
    student = [s * 200 for s in student]
    flat = student[0].detach().half().flatten(1)
    assert torch.isinf(flat @ flat.t()).any()
    method_cases.check_half_precision(SPLoss(), student, teacher, rtol=1e-5)


def test_one_sample_is_only_like_itself():
    student, teacher = features()
    assert SPLoss()([s[:1] for s in student], [t[:1] for t in teacher]) == 0


def test_dead_sample_has_a_gradient_like_the_others():
    """That of the published code is about 1e12 times as large."""
    (s, _), (t, _) = features(torch.float32)
    s.data[0] = 0
    SPLoss()(s, t).backward()
    dead, others = s.grad[0].abs().max(), s.grad[1:].abs().max()
    assert 0 < dead < 100 * others


def test_errors():
    student, teacher = features()
    with pytest.raises(ValueError, match='1 layers and t_feats 2'):
        SPLoss()(student[0], teacher)
    with pytest.raises(ValueError, match='4 samples and .* 3'):
        SPLoss()(student[0], teacher[0][:3])
    with pytest.raises(ValueError, match='expected a map'):
        SPLoss()(student[0].flatten(1), teacher[0])
