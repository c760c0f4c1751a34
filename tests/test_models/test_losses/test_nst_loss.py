"""NSTLoss against the published numbers, and its contract."""

import pytest
import torch
from torch.overrides import TorchFunctionMode

from crd_plugin.models.losses import NSTLoss
from tests import golden, method_cases

# More positions than channels, and more channels than positions.
FORMS = {'positions': ((2, 6, 2, 2), (2, 7, 2, 2)), 'channels': ((2, 2, 3, 3), (2, 3, 3, 3))}


def features(form='channels', dtype=torch.float64):
    """One layer."""
    return [
        method_cases.random_maps(shape, dtype=dtype, seed=i) for i, shape in enumerate(FORMS[form])
    ]


def loop(student, teacher):
    """All pairs of channels of each sample."""

    def kernel(a, b):
        units = [[c.flatten() / (c**2).sum().sqrt() for c in x] for x in (a, b)]
        values = [(p * q).sum() ** 2 for p in units[0] for q in units[1]]
        return sum(values) / len(values)

    total = 0.0
    for s, t in zip(student, teacher):
        if t.size(2) == 2 * s.size(2):
            t = sum(t[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4
        total = total + sum(
            kernel(b, b) + kernel(a, a) - 2 * kernel(a, b) for a, b in zip(s, t)
        ) / len(s)
    return total


@pytest.mark.parametrize('dtype', method_cases.DTYPES)
def test_published_numbers(dtype):
    method_cases.check(NSTLoss(), golden.load('zoo_nst'), dtype)


@pytest.mark.parametrize('form', FORMS)
def test_against_a_loop(form):
    method_cases.check_against_loop(NSTLoss(), loop, *features(form))


def test_several_layers_and_heights_against_a_loop():
    student = method_cases.random_maps((2, 3, 2, 2), (2, 2, 3, 3))
    teacher = method_cases.random_maps((2, 4, 4, 4), (2, 3, 3, 3), seed=1)
    method_cases.check_against_loop(NSTLoss(), loop, student, teacher)


class Products(TorchFunctionMode):
    """Note how many numbers per sample each matrix product gives."""

    def __init__(self):
        self.sizes = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.Tensor.matmul:
            self.sizes.append(result[0].numel())
        return result


@pytest.mark.parametrize('form', FORMS)
def test_the_smaller_product_is_taken(form):
    """Per sample, as many numbers as a square of positions or of channels."""
    with Products() as products:
        NSTLoss()(*features(form))
    (_, c_s, height, width), (_, c_t, *_) = FORMS[form]
    expected = {'positions': [(height * width) ** 2] * 2, 'channels': [c_s**2, c_t**2, c_s * c_t]}
    assert products.sizes == expected[form]


@pytest.mark.parametrize('form', FORMS)
def test_no_product_is_in_half_precision(form):
    sides = [[x.float() * 300 for x in side] for side in features(form)]
    with torch.autocast('cpu', torch.float16):
        value = NSTLoss()(*sides)
    torch.testing.assert_close(value, NSTLoss()(*sides), rtol=1e-5, atol=0)


@pytest.mark.parametrize('form', FORMS)
def test_dead_channel_has_gradient_zero(form):
    (s,), (t,) = features(form, torch.float32)
    s.data[:, 0] = 0
    NSTLoss()(s, t).backward()
    assert torch.equal(s.grad[:, 0], torch.zeros_like(s[:, 0]))
    assert torch.isfinite(s.grad).all() and s.grad.abs().max() > 0


def test_equal_maps_have_no_discrepancy():
    for form in FORMS:
        student, _ = features(form)
        assert NSTLoss()(student, student).abs() < 1e-15
