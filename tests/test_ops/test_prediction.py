"""Distance of a prediction from its target."""

import math

import pytest
import torch

from crd_plugin.ops import prediction_distance


def test_value_equals_a_loop():
    torch.manual_seed(0)
    prediction, target = torch.randn(2, 4, 5, dtype=torch.float64)
    found = prediction_distance(prediction, target)
    for a, b, value in zip(prediction.tolist(), target.tolist(), found):
        dot = math.fsum(x * y for x, y in zip(a, b))
        cosine = dot / math.hypot(*a) / math.hypot(*b)
        assert float(value) == pytest.approx(2 - 2 * cosine, rel=1e-12)


def test_ends_of_the_range():
    a = torch.tensor([[3.0, 4.0]])
    orthogonal = torch.tensor([[4.0, -3.0]])
    for target, expected in ((a, 0.0), (orthogonal, 2.0), (-2 * a, 4.0)):
        torch.testing.assert_close(prediction_distance(a, target), torch.tensor([expected]))


def test_gradient_reaches_the_prediction_alone():
    prediction, target = (
        torch.randn(4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2)
    )
    prediction_distance(prediction, target).sum().backward()
    assert target.grad is None
    assert torch.autograd.gradcheck(lambda x: prediction_distance(x, target), prediction)


def test_zero_vector_has_a_gradient_like_the_others():
    """With F.normalize it is 1e12 times as large."""
    prediction = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    found = prediction_distance(prediction, torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
    torch.testing.assert_close(found, torch.tensor([2.0, 0.4]))
    found.sum().backward()
    torch.testing.assert_close(prediction.grad[0], torch.tensor([0.0, -2.0]))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_full_precision_whatever_comes_in(dtype):
    prediction, target = torch.randn(2, 4, 64).to(dtype)
    with torch.autocast('cpu', dtype=dtype):
        # Its squares do not fit into half precision.
        found = prediction_distance(prediction * 1024, target)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, prediction_distance(prediction.float(), target.float()))
