"""The two ways to a matrix product give one result."""

import pytest
import torch

from crd_plugin.ops import matmul
from crd_plugin.ops.matmul import times_transposed


def factors(rows, width, columns, dtype=torch.float32):
    """Two random factors whose product has the given sides."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, width, generator=generator).to(dtype) for size in (rows, columns)]


# Scores of a tile, slopes times rows, odd sizes, and one that is small.
@pytest.mark.parametrize(
    'rows, width, columns',
    [(64, 128, 4096), (64, 4096, 128), (3, 1021, 353), (1, 128, 9000), (4, 3, 2)],
)
@pytest.mark.parametrize('transposed', [False, True])
def test_product(rows, width, columns, transposed):
    left, right = factors(rows, width, columns)
    expected = left.double() @ right.double().t()
    if transposed:
        right = right.t().contiguous().t()
    scale = width**0.5
    product = times_transposed(left, right)
    assert product.shape == (rows, columns) and product.is_contiguous()
    torch.testing.assert_close(product.double() / scale, expected / scale, rtol=0, atol=5e-6)


def test_float64_stays_exact():
    left, right = factors(64, 128, 4096, torch.float64)
    assert torch.equal(times_transposed(left, right), left @ right.t())


# torch says that it cannot switch oneDNN for Intel's GPUs as well.
@pytest.mark.filterwarnings('ignore:TF32 acceleration')
def test_onednn_is_taken_where_it_is_and_can_be_switched_off(monkeypatch):
    left, right = factors(64, 128, 4096)
    calls = []
    product = torch.ops.mkldnn._linear_pointwise
    monkeypatch.setattr(
        torch.ops.mkldnn, '_linear_pointwise', lambda *args: calls.append(0) or product(*args)
    )
    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: 'AVX512')
    first = times_transposed(left, right)
    assert len(calls) == 1
    small = factors(4, 3, 2)
    assert torch.equal(times_transposed(*small), small[0] @ small[1].t())
    with torch.backends.mkldnn.flags(enabled=False):
        torch.testing.assert_close(times_transposed(left, right), first, rtol=0, atol=1e-4)
    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: 'DEFAULT')
    times_transposed(left, right)
    assert len(calls) == 1


def test_equal_runs_are_equal_to_the_last_bit():
    left, right = factors(64, 128, 4096)
    assert torch.equal(times_transposed(left, right), times_transposed(left, right))
    assert matmul.__all__ == ['times_transposed']
