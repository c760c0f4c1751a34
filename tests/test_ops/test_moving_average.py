"""Moving averages of parameters."""

import pytest
import torch
from torch import nn

from crd_plugin.ops import move_averages


@pytest.mark.parametrize('momentum', [0.0, 0.9, 0.999])
def test_momentum_weighs_the_old_value(momentum):
    old = [torch.randn(3, 2), torch.randn(4)]
    new = [torch.randn(3, 2), torch.randn(4)]
    averages = [tensor.clone() for tensor in old]
    places = [tensor.data_ptr() for tensor in averages]
    move_averages(averages, new, momentum)
    for average, before, source in zip(averages, old, new):
        torch.testing.assert_close(average, momentum * before + (1 - momentum) * source)
    assert places == [tensor.data_ptr() for tensor in averages]


def test_parameters_of_modules_leave_no_graph():
    slow, fast = nn.Linear(3, 2).requires_grad_(False), nn.Linear(3, 2)
    weight = fast.weight.detach().clone()
    expected = slow.weight * 0.5 + weight * 0.5
    move_averages(slow.parameters(), fast.parameters(), 0.5)
    torch.testing.assert_close(slow.weight, expected)
    assert not slow.weight.requires_grad and slow.weight.grad_fn is None
    assert torch.equal(fast.weight, weight)


def test_equal_values_stay_what_they_are():
    value = torch.randn(100)
    average = value.clone()
    for _ in range(10):
        move_averages([average], [value], 0.9)
    assert torch.equal(average, value)
