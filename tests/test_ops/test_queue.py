"""The key queue's functions against plain loops."""

import math
import random

import pytest
import torch
import torch.nn.functional as F

from crd_plugin.ops import enqueue, queue_logits


def one_by_one(rows, pointer, keys):
    """Write one key after the other, as the definition says."""
    rows = list(rows)
    for key in keys:
        rows[pointer] = key
        pointer = (pointer + 1) % len(rows)
    return torch.stack(rows), pointer


@pytest.fixture(params=[False, True], ids=['in order', 'backwards'])
def order_of_writing(request, monkeypatch):
    """A device may write the rows in any order."""
    write = torch.Tensor.index_copy_
    if request.param:
        monkeypatch.setattr(
            torch.Tensor,
            'index_copy_',
            lambda rows, dim, index, source: write(rows, dim, index.flip(0), source.flip(0)),
        )


@pytest.mark.parametrize('seed', range(15))
def test_enqueue_equals_a_loop(seed, order_of_writing):
    """Wrapping around, exact fits, more keys than rows, several steps."""
    torch.manual_seed(seed)
    draw = random.Random(seed)
    size = draw.randint(1, 9)
    rows = torch.randn(size, 3)
    pointer = torch.tensor(draw.randrange(size))
    expected, place = rows.clone(), int(pointer)
    for _ in range(5):
        keys = torch.randn(draw.randint(1, 2 * size + 3), 3)
        expected, place = one_by_one(expected, place, keys)
        enqueue(rows, pointer, keys)
        assert torch.equal(rows, expected)
        assert int(pointer) == place


@pytest.mark.parametrize('seed', range(10))
def test_padding_is_skipped(seed, order_of_writing):
    """Batches of unequal ranks, padded with anything, in front too."""
    torch.manual_seed(seed)
    draw = random.Random(seed)
    size, length = draw.randint(1, 20), 5
    rows, pointer = torch.randn(size, 3), torch.tensor(draw.randrange(size))
    keys, is_new = torch.randn(3 * length, 3), torch.rand(3 * length) < 0.6
    is_new[draw.randrange(3 * length)] = True
    expected, place = one_by_one(rows, int(pointer), keys[is_new])
    enqueue(rows, pointer, keys, is_new)
    assert torch.equal(rows, expected)
    assert int(pointer) == place


def test_half_keys_are_stored_in_the_type_of_the_queue():
    rows, pointer = torch.zeros(4, 2), torch.tensor(0)
    enqueue(rows, pointer, torch.ones(1, 2, dtype=torch.float16))
    assert rows.dtype == torch.float32 and rows.sum() == 2


def test_logits_equal_a_loop():
    query, key, rows = (F.normalize(torch.randn(n, 5, dtype=torch.float64)) for n in (3, 3, 7))
    logits = queue_logits(query, key, rows, 0.2)
    assert logits.shape == (3, 8)
    for i in range(3):
        others = [key[i], *rows]
        for j, other in enumerate(others):
            dot = math.fsum((query[i] * other).tolist())
            assert float(logits[i, j]) == pytest.approx(dot / 0.2, rel=1e-12)


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
