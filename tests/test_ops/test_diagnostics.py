"""Measures of embeddings and gradients against plain loops in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from crd_plugin.ops import alignment, gradient_norm, uniformity


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=1)


def squared_distance(x, y):
    return sum((float(a) - float(b)) ** 2 for a, b in zip(x, y, strict=True))


def test_alignment_and_uniformity_equal_plain_loops():
    x, y = unit(7, 5), unit(7, 5, seed=1)
    distances = [squared_distance(a, b) for a, b in zip(x, y, strict=True)]
    assert float(alignment(x, y)) == pytest.approx(sum(distances) / 7, rel=1e-12)
    kernel = [math.exp(-2 * squared_distance(x[i], x[j])) for i in range(7) for j in range(i)]
    assert float(uniformity(x)) == pytest.approx(math.log(sum(kernel) / 21), rel=1e-12)


def test_known_cases():
    x = unit(3, 4)
    assert float(alignment(x, -x)) == pytest.approx(4)
    assert float(uniformity(x[:1].expand(5, -1))) == pytest.approx(0)
    assert float(uniformity(torch.eye(6))) == pytest.approx(-4)  # all at a distance of sqrt(2)


def test_gradient_norm():
    a, b, unused = (torch.full((2,), 1.0, requires_grad=True) for _ in range(3))
    loss = (3 * a).sum() + (4 * b * b).sum() / 2
    for _ in range(2):  # the graph stays
        assert gradient_norm(loss, [a, b, unused]) == pytest.approx(math.sqrt(2 * 9 + 2 * 16))
    assert a.grad is None
    loss.backward()
    assert gradient_norm(loss, [unused]) is None and gradient_norm(loss, []) is None
    assert gradient_norm(torch.tensor(1.0), [a]) is None
