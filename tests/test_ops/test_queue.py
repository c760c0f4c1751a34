"""The key queue's functions against plain loops; moving averages."""

import random

import pytest
import torch
import torch.nn.functional as F

from crd_plugin.ops import enqueue, move_averages, queue_logits


def one_by_one(rows, pointer, keys):
    rows = list(rows)
    for key in keys:
        rows[pointer] = key
        pointer = (pointer + 1) % len(rows)
    return torch.stack(rows), pointer


@pytest.mark.parametrize('seed', range(15))
def test_enqueue_equals_a_loop(seed):
    """Wrapping around, exact fits, more keys than rows, several steps."""
    torch.manual_seed(seed)
    draw = random.Random(seed)
    size = draw.randint(1, 9)
    rows = torch.randn(size, 3)
    pointer = torch.tensor(draw.randrange(size))
    expected, place = rows.clone(), int(pointer)
    for _ in range(5):
        keys = torch.randn(draw.randint(0, 2 * size + 3), 3)
        expected, place = one_by_one(expected, place, keys)
        enqueue(rows, pointer, keys)
        assert torch.equal(rows, expected)
        assert int(pointer) == place


def test_gradient_reaches_the_query_alone():
    query, key, rows = (torch.randn(n, 5, requires_grad=True) for n in (3, 3, 7))
    queue_logits(query, key, rows, 0.1).sum().backward()
    assert key.grad is None and rows.grad is None
    torch.testing.assert_close(query.grad, (key + rows.sum(0)).detach() / 0.1)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_logits_of_half_inputs_are_float32(dtype):
    torch.manual_seed(0)
    query, key, rows = (F.normalize(torch.randn(n, 64)) for n in (4, 4, 9))
    low = [query.to(dtype), key.to(dtype), rows]
    expected = queue_logits(low[0].float(), low[1].float(), rows, 0.01)
    with torch.autocast('cpu', dtype=dtype):
        logits = queue_logits(*low, 0.01)
        assert torch.mm(low[0], rows.T.to(dtype)).dtype == dtype  # it is on
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected)


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


def test_equal_values_stay_what_they_are():
    value = torch.randn(100)
    average = value.clone()
    for _ in range(10):
        move_averages([average], [value], 0.9)
    assert torch.equal(average, value)
