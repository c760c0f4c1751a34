"""NSTLoss against the published numbers, and its contract."""

import pytest
import torch

from crd_plugin.models.losses import NSTLoss, nst_loss
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
        t = t.detach()
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


@pytest.mark.parametrize('form', FORMS)
def test_the_smaller_product_is_taken(form, monkeypatch):
    """No more numbers than a square of channels or positions a sample."""
    sizes = []
    gram = nst_loss._gram

    def listen(a, b, over):
        product = gram(a, b, over)
        sizes.append(product[0].numel())
        return product

    monkeypatch.setattr(nst_loss, '_gram', listen)
    NSTLoss()(*features(form))
    (_, c_s, height, width), (_, c_t, *_) = FORMS[form]
    expected = {'positions': [(height * width) ** 2] * 2, 'channels': [c_s**2, c_t**2, c_s * c_t]}
    assert sizes == expected[form]


def test_loss_weight_counts():
    method_cases.check_weight(NSTLoss, *features())


@pytest.mark.parametrize('form', FORMS)
def test_half_precision(form):
    student, teacher = features(form)
    student = [s * 300 for s in student]  # Squares are beyond float16.
    method_cases.check_half_precision(NSTLoss(), student, teacher, rtol=1e-5)


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


def test_errors():
    (s,), (t,) = features()
    with pytest.raises(ValueError, match='2 layers and t_feats 1'):
        NSTLoss()([s, s], [t])
    with pytest.raises(ValueError, match='expected a map'):
        NSTLoss()(s.flatten(1), t)
