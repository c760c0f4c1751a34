"""VIDLoss against the published numbers, and its contract."""

import math

import pytest
import torch

from crd_plugin.models.losses import VIDLoss
from tests import golden, method_cases

CASES = ['zoo_vid', 'zoo_vid_pool_s', 'zoo_vid_pool_t']
SHAPES = [(2, 3, 2, 2), (2, 2, 4, 4)], [(2, 2, 2, 2), (2, 3, 2, 2)]


def features(dtype=torch.float64):
    """Two layers; the second student map is higher."""
    return [
        method_cases.random_maps(*shapes, dtype=dtype, seed=i) for i, shapes in enumerate(SHAPES)
    ]


def build(**kwargs):
    """A loss for them."""
    torch.manual_seed(0)
    return VIDLoss([3, 2], [2, 3], **kwargs)


@pytest.mark.parametrize('dtype', method_cases.DTYPES)
@pytest.mark.parametrize('name', CASES)
def test_published_numbers(name, dtype):
    case = golden.load(name)
    loss = VIDLoss(case['s0'].size(1), case['t0'].size(1))
    torch.testing.assert_close(loss.layers[0].log_scale.detach(), case['default_log_scale'])
    method_cases.load_parameters(loss.layers[0], case, 'vid')
    method_cases.check(loss, case, dtype, one=True)
    method_cases.check_parameters(loss.layers[0], case, 'vid')


def test_against_a_loop():
    loss = build(init_variance=0.3, eps=0.01).double()

    def regress(layer, pixel):
        for i in (0, 2, 4):
            weight = layer.regressor[i].weight[:, :, 0, 0]
            pixel = [(row * torch.stack(pixel)).sum() for row in weight]
            if i < 4:
                pixel = [x.clamp(min=0) for x in pixel]
        return pixel

    def loop(student, teacher):
        total = 0.0
        for layer, s, t in zip(loss.layers, student, teacher):
            if s.size(2) == 4:
                s = sum(s[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4
            terms = []
            for b in range(2):
                for i in range(2):
                    for j in range(2):
                        mean = regress(layer, list(s[b, :, i, j]))
                        for c, mu in enumerate(mean):
                            v = (1 + layer.log_scale[c].exp()).log() + 0.01
                            y = t[b, c, i, j]
                            terms.append(0.5 * ((mu - y) ** 2 / v + v.log()))
            total = total + sum(terms) / len(terms)
        return total

    method_cases.check_against_loop(loss, loop, *features())
    assert all(p.grad.abs().max() > 0 for p in loss.parameters())


@pytest.mark.parametrize('variance, eps', [(5.0, 1e-5), (0.5, 0.1), (2000.0, 1.0)])
def test_first_variance(variance, eps):
    student, teacher = features()
    loss = build(init_variance=variance, eps=eps).double()
    for parameter in loss.parameters():
        if parameter.dim() > 1:
            parameter.data.zero_()  # The regressors predict zero.
    expected = sum(0.5 * (t.square().mean() / variance + math.log(variance)) for t in teacher)
    torch.testing.assert_close(loss(student, teacher), expected, rtol=1e-6, atol=0)


def test_channels_are_inferred():
    student, teacher = features()
    loss = VIDLoss(t_channels=[2, 3])
    loss.infer_width(s_feats=student, t_feats=teacher)
    assert [layer.regressor[0].weight.shape[:2] for layer in loss.layers] == [(2, 3), (3, 2)]
    assert set(loss.state_dict()) == set(build().state_dict())


def test_features_that_do_not_fit():
    student, teacher = features(torch.float32)
    loss = build()
    with pytest.raises(ValueError, match=r't_channels is \(2, 3\), but'):
        loss(student, student)
    with pytest.raises(ValueError, match=r's_channels is \(3, 2\), but .* 3'):
        loss(student[0], teacher[0])
