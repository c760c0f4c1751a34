"""CCLoss, PKTLoss, RKDLoss and SPLoss against plain loops."""

import pytest
import torch

from crd_plugin.models.losses import CCLoss, PKTLoss, RKDLoss, SPLoss
from tests import method_cases


def vectors(dtype=torch.float64):
    return method_cases.random_pair([(4, 3)], [(4, 5)], dtype)


def maps():
    """Two layers of four samples; sizes need not agree."""
    return method_cases.random_pair([(4, 3, 3, 3), (4, 2, 1, 1)], [(4, 5, 2, 2), (4, 2, 2, 1)])


def build_cc(**kwargs):
    torch.manual_seed(0)
    return CCLoss(3, 5, **kwargs)


def test_cc_against_a_loop():
    loss = build_cc(embed_dim=3).double()

    def loop(student, teacher):
        s, t = loss.embed_s(student[0]), loss.embed_t(teacher[0])
        total = 0.0
        for i in range(3):
            for k in range(3):
                total = total + abs(s[i, k] - t[i, k]) * abs(s[i + 1, k] - t[i + 1, k])
        return total / 3

    method_cases.check_against_loop(loss, loop, *vectors())
    assert all(p.grad.abs().max() > 0 for p in loss.parameters())


def test_pkt_against_a_loop():

    def neighbours(x):
        units = [row / ((row**2).sum().sqrt() + 1e-7) for row in x]
        rows = [[((a * b).sum() + 1) / 2 for b in units] for a in units]
        return [k / sum(row) for row in rows for k in row]

    def loop(student, teacher):
        pairs = zip(neighbours(student[0]), neighbours(teacher[0]))
        return sum(t * ((t + 1e-7) / (s + 1e-7)).log() for s, t in pairs) / 16

    method_cases.check_against_loop(PKTLoss(), loop, *vectors())


def test_rkd_against_a_loop():

    def smooth_l1(x, y):
        gap = abs(x - y)
        return gap**2 / 2 if gap < 1 else gap - 0.5

    def distances(x):
        zero = torch.zeros((), dtype=x.dtype)
        d = [
            zero if i == j else ((x[i] - x[j]) ** 2).sum().sqrt()
            for i in range(len(x))
            for j in range(len(x))
        ]
        return [value * len(x) * (len(x) - 1) / sum(d) for value in d]

    def angles(x):
        values = []
        for i in range(len(x)):
            for j in range(len(x)):
                for k in range(len(x)):
                    a, b = x[j] - x[i], x[k] - x[i]
                    norms = 1 if i in (j, k) else a.norm() * b.norm()  # One vector is zero.
                    values.append((a * b).sum() / norms)
        return values

    def loop(student, teacher):
        total = 0.0
        for weight, relation in ((3.0, distances), (2.0, angles)):
            pairs = list(zip(relation(student[0]), relation(teacher[0])))
            total = total + weight * sum(smooth_l1(*pair) for pair in pairs) / len(pairs)
        return total

    method_cases.check_against_loop(RKDLoss(3.0, 2.0), loop, *vectors())


def test_sp_against_a_loop():

    def similarity(x):
        rows = [[(a * b).sum() for b in x] for a in x]
        return [g / sum(h**2 for h in row).sqrt() for row in rows for g in row]

    def loop(student, teacher):
        total = 0.0
        for s, t in zip(student, teacher):
            gaps = [(p - q) ** 2 for p, q in zip(similarity(s), similarity(t))]
            total = total + sum(gaps) / 16
        return total

    method_cases.check_against_loop(SPLoss(), loop, *maps())


def test_one_sample():
    (s,), (t,) = vectors()
    one_map = [[x[:1] for x in side] for side in maps()]
    for loss in (build_cc(), RKDLoss(), PKTLoss(), SPLoss()):
        with pytest.raises(ValueError, match='has 1 sample, expected at least 2.*drop_last=True'):
            loss(*(one_map if isinstance(loss, SPLoss) else (s[:1], t[:1])))


def test_maps_are_flattened():
    s, t = method_cases.random_maps((4, 3, 2, 2), (4, 5, 1, 1))
    for loss in (PKTLoss(), RKDLoss(), CCLoss(12, 5).double()):
        assert torch.equal(loss((s,), t), loss(s.flatten(1), t.flatten(1)))


def test_cc_heads():
    """Their width is published, and the order of the batch counts."""
    assert build_cc().embed_s.out_features == 128
    (s,), (t,) = vectors()
    loss = build_cc().double()
    order = torch.tensor([2, 0, 1, 3])
    assert not torch.isclose(loss(s, t), loss(s[order], t[order]))


def test_rkd_part_of_weight_zero_is_left_out():
    student, teacher = vectors(torch.float32)
    # Infinite distances; angles of weight 0 do not bring NaN in.
    huge = [s * 1e18 for s in student]
    assert torch.isfinite(RKDLoss(angle_weight=0)(huge, teacher))
    assert torch.isfinite(RKDLoss(distance_weight=0)(huge, teacher))


def test_sample_given_twice_to_rkd_has_a_gradient_like_the_others():
    (s,), (t,) = vectors(torch.float32)
    s.data[1] = s.data[0]
    RKDLoss(distance_weight=0)(s, t).backward()
    twice, others = s.grad[:2].abs().max(), s.grad[2:].abs().max()
    assert 0 < twice < 100 * others
    s = torch.zeros(4, 3, requires_grad=True)
    RKDLoss()(s, t).backward()
    assert torch.isfinite(s.grad).all()
