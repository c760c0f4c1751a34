"""CCLoss against the published numbers, and its contract."""

import pytest
import torch

from crd_plugin.models.losses import CCLoss
from tests import golden, method_cases


def vectors(dtype=torch.float64):
    """Four samples."""
    return (
        method_cases.random_maps((4, 5), dtype=dtype),
        method_cases.random_maps((4, 6), dtype=dtype, seed=1),
    )


def build(**kwargs):
    """A loss for them."""
    torch.manual_seed(0)
    return CCLoss(5, 6, **kwargs)


@pytest.mark.parametrize('dtype', method_cases.DTYPES)
def test_published_numbers(dtype):
    case = golden.load('zoo_cc')
    loss = CCLoss(24, 40, embed_dim=16)
    for side in ('embed_s', 'embed_t'):
        method_cases.load_parameters(getattr(loss, side), case, f'{side}.linear')
    method_cases.check(loss, case, dtype, one=True)
    for side in ('embed_s', 'embed_t'):
        method_cases.check_parameters(getattr(loss, side), case, f'{side}.linear')
    golden.assert_value(loss.embed_s(case['s0'].to(dtype)).float(), case['emb_s'])
    golden.assert_value(loss.embed_t(case['t0'].to(dtype)).float(), case['emb_t'])


def test_against_a_loop():
    loss = build(embed_dim=3).double()

    def loop(student, teacher):
        s, t = loss.embed_s(student[0]), loss.embed_t(teacher[0])
        total = 0.0
        for i in range(3):
            for k in range(3):
                total = total + abs(s[i, k] - t[i, k]) * abs(s[i + 1, k] - t[i + 1, k])
        return total / 3

    method_cases.check_against_loop(loss, loop, *vectors())
    assert all(p.grad.abs().max() > 0 for p in loss.parameters())


def test_order_of_the_batch_counts():
    (s,), (t,) = vectors()
    loss = build().double()
    order = torch.tensor([2, 0, 1, 3])
    assert not torch.isclose(loss(s, t), loss(s[order], t[order]))


def test_widths_are_inferred_from_flattened_features():
    s, t = method_cases.random_maps((2, 5), (2, 6, 2, 2))
    loss = CCLoss(embed_dim=7)
    loss.infer_width(s_feats=(s,), t_feats=t)
    assert loss.embed_s.weight.shape == (7, 5)
    assert loss.embed_t.weight.shape == (7, 24)
    assert loss.double()((s,), t) > 0


def test_published_width_of_the_heads():
    assert build().embed_s.out_features == 128


def test_features_that_do_not_fit():
    (s,), (t,) = vectors(torch.float32)
    with pytest.raises(ValueError, match='t_channels is 6, but the .* 5'):
        build()(s, s)
    with pytest.raises(ValueError, match='drop_last=True'):
        build()(s[:1], t[:1])
