"""Pairing, resizing and attention of feature maps."""

import pytest
import torch
import torch.nn.functional as F

from crd_plugin.ops import (
    absolute_power,
    match_heights,
    pair_logits,
    pair_maps,
    pair_vectors,
    prediction_distance,
    unit_vectors,
)


def maps(*shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def test_maps_are_paired_in_order_and_the_teacher_is_detached():
    s0, s1, t0, t1 = maps((2, 3, 4, 4), (2, 5, 2, 2), (2, 4, 4, 4), (2, 6, 2, 2))
    (a, b), (c, d) = pair_maps((s0, s1), [t0, t1])
    assert a is s0 and c is s1
    assert torch.equal(b, t0) and torch.equal(d, t1)
    assert not b.requires_grad and not d.requires_grad
    ((a, b),) = pair_maps(s0.half(), t0.bfloat16())
    assert a.dtype == b.dtype == torch.float32
    a.sum().backward()
    assert torch.equal(s0.grad, torch.ones_like(s0))


@pytest.mark.parametrize(
    's, t, text',
    [
        ([(2, 3, 4, 4)], [(2, 3, 4, 4)] * 2, 's_feats has 1 layers and t_feats 2'),
        ([(2, 3)], [(2, 3, 4, 4)], r's_feats\[0\] has shape \(2, 3\)'),
        ([(2, 3, 4, 4)] * 2, [(2, 3, 4, 4), (2, 3)], r't_feats\[1\] has shape'),
        ([(2, 3, 4, 4)], [(1, 3, 4, 4)], r's_feats\[0\] has 2 samples and t_feats\[0\] 1'),
        ([], [], 's_feats is empty'),
    ],
)
def test_maps_that_cannot_be_paired(s, t, text):
    with pytest.raises(ValueError, match=text):
        pair_maps(maps(*s), maps(*t))


def test_what_is_no_tensor():
    with pytest.raises(TypeError, match='t_feats holds tuple'):
        pair_maps(maps((1, 2, 2, 2)), [tuple(maps((1, 2, 2, 2)))])
    with pytest.raises(TypeError, match='s_feats holds NoneType'):
        pair_vectors(None, maps((2, 3)))


def test_vectors_and_logits():
    s, t = maps((3, 2, 2, 2), (3, 5))
    a, b = pair_vectors((s,), t.double())
    assert torch.equal(a, s.flatten(1)) and a.requires_grad
    assert b.dtype == torch.float64 and not b.requires_grad
    a, b = pair_logits(t, (t.bfloat16(),))
    assert a is t and b.dtype == torch.float32 and not b.requires_grad


@pytest.mark.parametrize(
    's, t, text',
    [
        ([(2, 3)] * 2, [(2, 3)], 's_feats is a sequence of 2 tensors'),
        ([(2, 3)], [(3,)], r't_feats has shape \(3,\)'),
        ([(2, 3)], [(3, 3)], 's_feats has 2 samples and t_feats 3'),
    ],
)
def test_vectors_that_cannot_be_paired(s, t, text):
    with pytest.raises(ValueError, match=text):
        pair_vectors(maps(*s), maps(*t))


def loop_pool(x, height, width):
    """Mean of the pixels that each cell of the lower map covers."""
    rows = torch.zeros(*x.shape[:2], height, width, dtype=x.dtype)
    for i in range(height):
        for j in range(width):
            h, w = x.shape[2:]
            top, bottom = i * h // height, -(-(i + 1) * h // height)
            left, right = j * w // width, -(-(j + 1) * w // width)
            rows[:, :, i, j] = x[:, :, top:bottom, left:right].mean((2, 3))
    return rows


@pytest.mark.parametrize(
    'high, low',
    [((8, 8), (4, 4)), ((5, 5), (3, 3)), ((8, 12), (4, 4)), ((6, 4), (3, 4)), ((12, 12), (5, 7))],
)
def test_higher_map_is_reduced(high, low):
    """To means; by whole windows where sizes divide: the general pooling is not deterministic."""
    s, t = maps((2, 3, *high), (2, 5, *low), dtype=torch.float64)
    found, unchanged = match_heights(s, t)
    assert unchanged is t
    torch.testing.assert_close(found, loop_pool(s, *low))
    swapped = match_heights(t, s)
    assert swapped[0] is t
    torch.testing.assert_close(swapped[1], found)
    weight = torch.arange(found.numel(), dtype=torch.float64).view_as(found)
    gradients = [
        torch.autograd.grad((value * weight).sum(), s)[0]
        for value in (found, F.adaptive_avg_pool2d(s, low))
    ]
    torch.testing.assert_close(*gradients)
    divides = not (high[0] % low[0] or high[1] % low[1])
    assert ('Adaptive' not in found.grad_fn.name()) == divides


def test_equal_maps_are_left_alone():
    s, t = maps((2, 3, 4, 4), (2, 5, 4, 4))
    assert match_heights(s, t) == (s, t)


@pytest.mark.parametrize('s, t', [((4, 2), (2, 4)), ((2, 4), (4, 2)), ((4, 4), (4, 2))])
def test_maps_that_no_scale_relates(s, t):
    with pytest.raises(ValueError, match='must not be narrower'):
        match_heights(*maps((1, 2, *s), (1, 2, *t)))


@pytest.mark.parametrize('power', [0.5, 1, 1.5, 2, 3])
def test_absolute_power(power):
    x = torch.tensor([-4.0, 0.0, 0.25], dtype=torch.float64)
    x.requires_grad_()
    y = absolute_power(x, power)
    expected = torch.tensor([4.0**power, 0.0, 0.25**power]).double()
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    slope = power * torch.tensor([-(4.0 ** (power - 1)), 0, 0.25 ** (power - 1)])
    torch.testing.assert_close(x.grad, slope.double())


def test_unit_vectors():
    """A zero vector stays zero and passes the gradient on unchanged."""
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    unit = unit_vectors(x, dim=1)
    torch.testing.assert_close(unit, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    unit.sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([[0.032, -0.024], [1.0, 1.0]]))
    (y,) = maps((2, 3, 4))
    for dim in (0, 1, 2):
        torch.testing.assert_close(unit_vectors(y, dim), F.normalize(y, dim=dim))


def test_zero_prediction_has_a_gradient_like_the_others():
    """With F.normalize it is 1e12 times as large."""
    prediction = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    found = prediction_distance(prediction, torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
    torch.testing.assert_close(found, torch.tensor([2.0, 0.4]))
    found.sum().backward()
    torch.testing.assert_close(prediction.grad[0], torch.tensor([0.0, -2.0]))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_prediction_distance_is_in_full_precision(dtype):
    prediction, target = torch.randn(2, 4, 64).to(dtype)
    with torch.autocast('cpu', dtype=dtype):
        # Its squares do not fit into half precision.
        found = prediction_distance(prediction * 1024, target)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, prediction_distance(prediction.float(), target.float()))
