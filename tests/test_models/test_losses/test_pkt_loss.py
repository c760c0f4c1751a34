"""PKTLoss against the published numbers, and its contract."""

import pytest
import torch

from crd_plugin.models.losses import PKTLoss
from tests import golden, method_cases


def vectors(dtype=torch.float64):
    """Four samples."""
    return (
        method_cases.random_maps((4, 3), dtype=dtype),
        method_cases.random_maps((4, 5), dtype=dtype, seed=1),
    )


@pytest.mark.parametrize('dtype', method_cases.DTYPES)
def test_published_numbers(dtype):
    method_cases.check(PKTLoss(), golden.load('zoo_pkt'), dtype, one=True)


def test_against_a_loop():

    def neighbours(x):
        units = [row / ((row**2).sum().sqrt() + 1e-7) for row in x]
        rows = [[((a * b).sum() + 1) / 2 for b in units] for a in units]
        return [k / sum(row) for row in rows for k in row]

    def loop(student, teacher):
        pairs = zip(neighbours(student[0]), neighbours(teacher[0]))
        return sum(t * ((t + 1e-7) / (s + 1e-7)).log() for s, t in pairs) / 16

    method_cases.check_against_loop(PKTLoss(), loop, *vectors())


def test_one_sample_is_its_only_neighbour():
    (s,), (t,) = vectors()
    assert PKTLoss()(s[:1], t[:1]) == 0


def test_maps_are_flattened():
    s, t = method_cases.random_maps((4, 3, 2, 2), (4, 5, 1, 1))
    assert torch.equal(PKTLoss()((s,), t), PKTLoss()(s.flatten(1), t.flatten(1)))
