"""ATLoss against the published numbers, and its contract."""

import pytest
import torch
from mmrazor.models.losses import ATLoss as RazorATLoss

from crd_plugin.models.losses import ATLoss
from tests import golden, method_cases

S_SHAPES = [(2, 3, 4, 4), (2, 2, 2, 2)]
T_SHAPES = [(2, 4, 4, 4), (2, 3, 4, 4)]


def features(dtype=torch.float64):
    """Two layers; the second teacher map is higher."""
    return (
        method_cases.random_maps(*S_SHAPES, dtype=dtype),
        method_cases.random_maps(*T_SHAPES, dtype=dtype, seed=1),
    )


def attention(x, power):
    """Unit attention of one map (C, H, W), number by number."""
    a = [
        sum(x[c, i, j].abs() ** power for c in range(x.size(0))) / x.size(0)
        for i in range(x.size(1))
        for j in range(x.size(2))
    ]
    norm = sum(value**2 for value in a).sqrt()
    return [value / norm for value in a]


@pytest.mark.parametrize('dtype', method_cases.DTYPES)
def test_published_numbers(dtype):
    method_cases.check(ATLoss(), golden.load('zoo_at'), dtype)


@pytest.mark.parametrize('power', [1, 2])
def test_against_a_loop(power):

    def loop(student, teacher):
        total = 0.0
        for s, t in zip(student, teacher):
            if t.size(2) == 2 * s.size(2):
                t = sum(t[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4
            gaps = [
                (p - q) ** 2
                for b in range(len(s))
                for p, q in zip(attention(s[b], power), attention(t[b], power))
            ]
            total = total + sum(gaps) / len(gaps)
        return total

    method_cases.check_against_loop(ATLoss(power=power), loop, *features())


def test_mmrazors_is_the_same_for_one_size():
    case = golden.load('zoo_at')
    for i in (0, 1):
        pair = case[f's{i}'], case[f't{i}']
        torch.testing.assert_close(ATLoss()(*pair), RazorATLoss()(*pair))
