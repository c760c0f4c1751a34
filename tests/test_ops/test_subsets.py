"""Random subsets: distinct and uniform."""

from unittest import mock

import pytest
import torch
from scipy import stats

from crd_plugin.ops.subsets import random_rows, random_subsets

CPU = torch.device('cpu')


def test_few_of_many_rows():
    """Distinct, uniform over rows and pairs, also where draws ran out."""
    torch.manual_seed(9)
    size, number, rounds = 170, 20, 4000
    total, both = torch.zeros(size), 0
    for _ in range(rounds):
        drawn = random_rows(size, number, CPU, None)
        assert drawn.shape == (number,) and drawn.dtype == torch.int64
        assert drawn.unique().numel() == number
        total += torch.bincount(drawn, minlength=size)
        both += bool((drawn == 3).any() and (drawn == 141).any())
    expected = rounds * number / size
    statistic = ((total - expected) ** 2 / expected).sum()
    p = stats.chi2.sf(float(statistic / (1 - number / size)), size - 1)
    assert 1e-3 < p < 1 - 1e-3
    p = number * (number - 1) / (size * (size - 1))
    assert abs(both - rounds * p) < 4 * (rounds * p * (1 - p)) ** 0.5

    all_alike = mock.patch.object(torch, 'randint', return_value=torch.full((30,), 7))
    with all_alike:
        drawn = random_rows(size, number, CPU, None)
    assert drawn.unique().numel() == number and drawn.max() < size


def test_many_of_few_rows():
    drawn = random_rows(9, 30, CPU, None)
    assert sorted(drawn.tolist()) == list(range(9))


@pytest.mark.parametrize('size, length', [(20, 7), (20, 20), (1300, 200), (1300, 1299), (2, 1)])
def test_subsets_are_distinct_and_in_range(size, length):
    torch.manual_seed(0)
    drawn = random_subsets(33, size, length, CPU, None)
    assert drawn.shape == (33, length)
    assert drawn.min() >= 0 and drawn.max() < size
    assert all(len(set(row.tolist())) == length for row in drawn)


def test_subsets_are_uniform():
    torch.manual_seed(1)
    size, length, rounds = 1300, 200, 600
    total = torch.zeros(size)
    for _ in range(rounds):
        total += torch.bincount(
            random_subsets(2, size, length, CPU, None)[1].long(), minlength=size
        )
    expected = rounds * length / size
    statistic = ((total - expected) ** 2 / expected).sum()
    p = stats.chi2.sf(float(statistic / (1 - length / size)), size - 1)
    assert 1e-3 < p < 1 - 1e-3
