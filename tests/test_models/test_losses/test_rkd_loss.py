"""RKDLoss against the published numbers, and its contract."""

import pytest
import torch
from mmrazor.models.losses import AngleWiseRKD, DistanceWiseRKD

from crd_plugin.models.losses import RKDLoss
from tests import golden, method_cases

CASES = {
    'zoo_rkd': {},
    'zoo_rkd_distance_only': dict(distance_weight=1.0, angle_weight=0.0),
    'zoo_rkd_angle_only': dict(distance_weight=0.0, angle_weight=1.0),
}


def vectors(dtype=torch.float64):
    """Four samples."""
    return (
        method_cases.random_maps((4, 3), dtype=dtype),
        method_cases.random_maps((4, 5), dtype=dtype, seed=1),
    )


def razor(w_d=25.0, w_a=50.0):
    """MMRazor's two parts."""
    parts = (DistanceWiseRKD(w_d, with_l2_norm=False), AngleWiseRKD(w_a, with_l2_norm=False))
    return lambda s, t: sum(part(s, t) for part in parts)


@pytest.mark.parametrize('dtype', method_cases.DTYPES)
@pytest.mark.parametrize('name', CASES)
def test_published_numbers(name, dtype):
    case = golden.load(name)
    loss = RKDLoss(**CASES[name])
    assert loss.distance_weight == case['w_d']
    assert loss.angle_weight == case['w_a']
    method_cases.check(loss, case, dtype, one=True)


def test_against_a_loop():

    def smooth_l1(x, y):
        gap = abs(x - y)
        return gap**2 / 2 if gap < 1 else gap - 0.5

    def distances(x):
        d = [[((a - b) ** 2).sum() for b in x] for a in x]
        d = [
            [d[i][j].sqrt() if i != j else torch.zeros((), dtype=x.dtype) for j in range(len(x))]
            for i in range(len(x))
        ]
        mean = sum(map(sum, d)) / (len(x) * (len(x) - 1))
        return [value / mean for row in d for value in row]

    def angles(x):
        values = []
        for i in range(len(x)):
            for j in range(len(x)):
                for k in range(len(x)):
                    a, b = x[j] - x[i], x[k] - x[i]
                    if i in (j, k):
                        values.append((a * b).sum())  # Zero.
                    else:
                        values.append((a * b).sum() / a.norm() / b.norm())
        return values

    def loop(student, teacher):
        total = 0.0
        for weight, relation in ((3.0, distances), (2.0, angles)):
            pairs = list(zip(relation(student[0]), relation(teacher[0])))
            total = total + weight * sum(smooth_l1(*pair) for pair in pairs) / len(pairs)
        return total

    method_cases.check_against_loop(RKDLoss(3.0, 2.0), loop, *vectors())


def test_mmrazors_two_parts_are_the_same_in_float32():
    case = golden.load('zoo_rkd')
    student, teacher = method_cases.features(case, torch.float32)
    value = RKDLoss()(student, teacher)
    expected = razor()(student[0], teacher[0])
    torch.testing.assert_close(value, expected)
    for ours, theirs in zip(*(torch.autograd.grad(v, student) for v in (value, expected))):
        golden.assert_grad(ours, theirs)


def test_half_precision_where_mmrazors_is_nan():
    (s,), (t,) = vectors()
    s = (s * 300).half()
    with torch.autocast('cpu', torch.float16):
        assert not torch.isfinite(razor()(s, t))
        assert torch.isfinite(RKDLoss()(s, t))


def test_part_of_weight_zero_is_left_out():
    student, teacher = vectors(torch.float32)
    # Infinite distances; angles of weight 0 do not bring NaN in.
    loss = RKDLoss(angle_weight=0)
    huge = [s * 1e18 for s in student]
    assert torch.isfinite(loss(huge, teacher))
    assert torch.isfinite(RKDLoss(distance_weight=0)(huge, teacher))


def test_sample_given_twice_has_a_gradient_like_the_others():
    """That of MMRazor's is about 1e12 times as large."""
    (s,), (t,) = vectors(torch.float32)
    s.data[1] = s.data[0]
    RKDLoss(distance_weight=0)(s, t).backward()
    twice, others = s.grad[:2].abs().max(), s.grad[2:].abs().max()
    assert 0 < twice < 100 * others
    (gradient,) = torch.autograd.grad(AngleWiseRKD()(s, t), s)
    assert gradient.abs().max() > 1e6 * others
    s = torch.zeros(4, 3, requires_grad=True)
    RKDLoss()(s, t).backward()
    assert torch.isfinite(s.grad).all()


def test_a_batch_of_one_is_refused():
    (s,), (t,) = vectors()
    with pytest.raises(ValueError, match='drop_last=True'):
        RKDLoss()(s[:1], t[:1])
