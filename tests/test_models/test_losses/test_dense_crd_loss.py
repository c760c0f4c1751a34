"""DenseCRDLoss against plain loops, in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from crd_plugin.models.losses import CRDLoss, DenseCRDLoss
from crd_plugin.registry import MODELS

B, D, H, W = 3, 5, 2, 4
IDS = torch.tensor([7, 2, 5])
TAU = 0.3


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return F.normalize(x, dim=-1 if len(shape) == 2 else 1).requires_grad_()


def build(num_locations=H * W, **kwargs):
    batch = dict(embed_dim=D, negatives='batch', objective='infonce', temperature=TAU)
    return DenseCRDLoss(num_locations, **{**batch, **kwargs})


def info_nce_loop(students, teachers, keys):
    """Both directions over all pairs, what shares the key left out, the rest weighted as all."""
    n, total = len(keys), 0
    for anchors, others in ((students, teachers), (teachers, students)):
        for i in range(n):
            negatives = [j for j in range(n) if keys[j] != keys[i]]
            weight = (n - 1) / len(negatives)
            positive = torch.exp(anchors[i] @ others[i] / TAU)
            rest = sum(weight * torch.exp(anchors[i] @ others[j] / TAU) for j in negatives)
            total = total - torch.log(positive / (positive + rest)) / n
    return total


def assert_same(value, expected, *leaves):
    torch.testing.assert_close(value, expected)
    grads = zip(torch.autograd.grad(value, leaves), torch.autograd.grad(expected, leaves))
    for one, other in grads:
        torch.testing.assert_close(one, other)


def test_local_student_and_global_teacher():
    """All locations against the teacher's one vector; other locations of an image are no rivals."""
    s, t = unit(B, D, H, W), unit(B, D, seed=1)
    places = [(b, y, x) for b in range(B) for y in range(H) for x in range(W)]
    expected = info_nce_loop(
        [s[b, :, y, x] for b, y, x in places],
        [t[b] for b, _, _ in places],
        [int(IDS[b]) for b, _, _ in places],
    )
    loss = build(exclude='instance')
    assert_same(loss(s, t, IDS), expected, s, t)
    # Tokens are the same in another layout; so is the class of an image as a key.
    tokens = s.flatten(2).transpose(1, 2)
    torch.testing.assert_close(loss(tokens, t, IDS), expected)
    torch.testing.assert_close(build(exclude='class')(s, t, labels=IDS), expected)


def test_local_teacher_and_global_student():
    s, t = unit(B, D), unit(B, D, H, W, seed=1)
    loss = build(exclude='instance')
    torch.testing.assert_close(loss(s, t, IDS), loss(t, s, IDS))


def test_pixels_of_both_sides_with_a_label_map():
    """The key is the class of the nearest pixel; unlabelled locations count on neither side."""
    s, t = unit(B, D, H, W), unit(B, D, H, W, seed=1)
    small = torch.randint(0, 3, (B, H, W), generator=torch.Generator().manual_seed(2))
    small[0, 0, 1] = small[2, 1, 3] = 255
    places = torch.cartesian_prod(*map(torch.arange, (B, H, W))).tolist()
    places = [(b, y, x) for b, y, x in places if small[b, y, x] != 255]
    expected = info_nce_loop(
        [s[b, :, y, x] for b, y, x in places],
        [t[b, :, y, x] for b, y, x in places],
        [int(small[b, y, x]) for b, y, x in places],
    )
    large = small.repeat_interleave(3, 1).repeat_interleave(3, 2).to(torch.uint8)
    assert_same(build(exclude='class')(s, t, labels=large), expected, s, t)
    assert build(exclude='class')(s, t, labels=torch.full_like(large, 255)) == 0


def test_drawn_locations_are_a_part_and_change():
    """Each image has as many, without repetition, the same on both sides."""
    s, t = unit(B, D, H, W), unit(B, D, H, W, seed=1)
    seen = []

    def spy(student, teacher, ids, labels):
        for number, (x, y) in enumerate(zip(student, teacher)):
            image = number // 3
            flat = s[image].flatten(1).t()
            (place,) = ((flat - x).abs().sum(1) < 1e-12).nonzero().flatten().tolist()
            assert torch.equal(t[image].flatten(1)[:, place], y)
            assert ids[number] == IDS[image]
            seen.append((image, place))
        return student.sum()

    loss = build(3, exclude='instance')
    loss.crd.forward = spy
    for _ in range(20):
        loss(s, t, IDS)
        drawn = seen[-3 * B :]
        assert len({*drawn}) == 3 * B
    counts = torch.tensor([sum(place == p for _, place in seen) for p in range(H * W)])
    assert (counts > 0).all() and counts.max() < 60


def test_a_bank_has_one_row_per_image():
    """Loss of the repeated samples; the row becomes that of the last location."""
    s, t = unit(B, D, H, W).float(), unit(B, D, seed=1).float()
    settings = dict(
        embed_dim=D, negatives='all', exclude='instance', num_samples=9, num_negatives=4
    )
    dense, plain = DenseCRDLoss(H * W, **settings), CRDLoss(**settings)
    plain.load_state_dict(dense.crd.state_dict())
    seen = []
    inner = dense.crd.forward
    dense.crd.forward = lambda *args: seen.append(args) or inner(*args)
    value = dense(s, t, IDS)
    ((students, teachers, ids, _),) = seen
    assert torch.equal(ids, IDS.repeat_interleave(H * W))
    torch.testing.assert_close(value, plain(students, teachers, ids))
    before = dense.crd.bank.student.clone()
    dense.crd.bank.commit()
    after = dense.crd.bank.student
    for b, image in enumerate(IDS.tolist()):
        row = F.normalize(0.5 * before[image] + 0.5 * students[(b + 1) * H * W - 1], dim=0)
        torch.testing.assert_close(after[image], row)
    others = [i for i in range(9) if i not in IDS.tolist()]
    assert torch.equal(after[others], before[others])


@pytest.mark.parametrize(
    'args, kwargs, message',
    [
        ((unit(B, D, 2, 2), unit(B, D, 2, 4), IDS), {}, 'as many locations on both sides'),
        ((unit(B, D, 2, 4), unit(B, D, 4, 2), IDS), {}, 'as many locations on both sides'),
        ((unit(B, D, 2, 2), unit(2, D), IDS), {}, 'expected one batch and as many'),
        ((torch.ones(4), unit(B, D), IDS), {}, r's_feats has shape \(4,\), expected embeddings'),
        ((unit(B, D, 2, 2), unit(B, D)), {}, "sample_idx is None, .*exclude='instance' need"),
        (
            (unit(B, D, 2, 2), unit(B, D), None, torch.zeros(B, 4, 4)),
            dict(exclude='class'),
            r'labels has shape \(3, 4, 4\), but label maps .* need maps',
        ),
        ((unit(0, D, 2, 2), unit(0, D), IDS[:0]), {}, 's_feats holds no sample'),
        ((unit(B, 4, 2, 2), unit(B, 4), IDS), {}, r'expected \(6, 5\): one embedding of width'),
    ],
)
def test_what_does_not_fit(args, kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(2, **{'exclude': 'instance', **kwargs})(*args)


def test_arguments_go_to_the_loss():
    with pytest.raises(ValueError, match="negatives is 'some', expected one of"):
        MODELS.build(dict(type='crd_plugin.DenseCRDLoss', negatives='some'))


def test_nce_fixes_its_constant_over_all_locations():
    loss = build(objective='nce', exclude='instance')
    s, t = unit(B, D, H, W), unit(B, D, seed=1)
    value = loss(s, t, IDS)
    n, kept = B * H * W, math.exp(float(loss.crd.log_mean[0]))
    flat = s.detach().flatten(2).transpose(1, 2).flatten(0, 1)
    scores = torch.exp(flat @ t.detach().repeat_interleave(H * W, 0).t() / TAU)
    other = torch.arange(n)[:, None] // (H * W) != torch.arange(n) // (H * W)
    weights = other * ((n - 1) / other.sum(1, keepdim=True)) + torch.eye(n)
    assert kept == pytest.approx(float((scores * weights).sum() / n**2), rel=1e-9)
    assert value.isfinite()
