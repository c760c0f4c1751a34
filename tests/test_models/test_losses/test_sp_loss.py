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
            g_s, g_t = similarity(s), similarity(t)
            total = (
                total + sum((g_s[i][j] - g_t[i][j]) ** 2 for i in range(4) for j in range(4)) / 16
            )
        return total

    method_cases.check_against_loop(SPLoss(), loop, *features())


def test_one_sample_is_only_like_itself():
    student, teacher = features()
    assert SPLoss()([s[:1] for s in student], [t[:1] for t in teacher]) == 0
