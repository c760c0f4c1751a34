"""FitNetLoss against the published numbers, and its contract."""

import pytest
import torch
import torch.nn.functional as F
from mmrazor.models.losses import L2Loss

from crd_plugin.models.losses import FitNetLoss
from tests import golden, method_cases

CASES = ['zoo_hint_same', 'zoo_hint_down', 'zoo_hint_up', 'zoo_hint_shrink']


def build(case):
    """A loss with the regressor of a case."""
    loss = FitNetLoss(*(tuple(case[side].shape[1:]) for side in ('s0', 't0')))
    method_cases.load_parameters(loss.regressor, case, 'regress')
    return loss


@pytest.mark.parametrize('dtype', method_cases.DTYPES)
@pytest.mark.parametrize('name', CASES)
def test_published_numbers(name, dtype):
    case = golden.load(name)
    loss = build(case)
    method_cases.check(loss, case, dtype, one=True)
    method_cases.check_parameters(loss.regressor, case, 'regress')


def test_against_a_loop():
    (student,), (teacher,) = (
        method_cases.random_maps((3, 2, 2, 2), seed=0),
        method_cases.random_maps((3, 4, 2, 2), seed=1),
    )
    torch.manual_seed(0)
    loss = FitNetLoss((2, 2, 2), (4, 2, 2)).double()

    def loop(s, t):
        weight, bias = loss.regressor.conv.weight, loss.regressor.conv.bias
        total = 0.0
        for c in range(4):
            raw = [
                sum(weight[c, k, 0, 0] * s[0][b, k, i, j] for k in range(2)) + bias[c]
                for b in range(3)
                for i in range(2)
                for j in range(2)
            ]
            mean = sum(raw) / 12
            var = sum((x - mean) ** 2 for x in raw) / 12
            target = t[0][:, c].flatten()
            for x, y in zip(raw, target):
                x = ((x - mean) / (var + 1e-5).sqrt()).clamp(min=0)
                total = total + (x - y) ** 2
        return total / (3 * 4 * 2 * 2)

    method_cases.check_against_loop(loss, loop, [student], [teacher])


def test_what_mmrazor_has_after_the_same_regressor():
    case = golden.load('zoo_hint_same')
    loss = build(case)
    regressed = loss.regressor(case['s0'])
    razor = L2Loss(normalize=False, div_element=True)
    torch.testing.assert_close(razor(regressed, case['t0']), F.mse_loss(regressed, case['t0']))
    golden.assert_value(razor(regressed, case['t0']), case['loss'])


def test_shapes_are_inferred():
    student, teacher = method_cases.random_maps((2, 3, 4, 4), (2, 5, 8, 8))
    loss = FitNetLoss(t_shape=[5, 8, 8])
    loss.infer_width(s_feats=student, t_feats=teacher)
    assert loss.sizes == dict(s_shape=((3, 4, 4),), t_shape=((5, 8, 8),))
    assert isinstance(loss.regressor.conv, torch.nn.ConvTranspose2d)
    assert 'regressor.conv.weight' in loss.state_dict()


def test_features_that_do_not_fit():
    s, t = method_cases.random_maps((2, 3, 4, 4), (2, 5, 4, 4), dtype=torch.float32)
    loss = FitNetLoss((3, 4, 4), (5, 4, 4))
    with pytest.raises(ValueError, match='2 layers, FitNetLoss takes one'):
        loss([s, s], [t, t])
    for pair in ((t, t), (s, s)):
        with pytest.raises(ValueError, match='made for.*model.input_shape'):
            loss(*pair)


def test_maps_of_another_size():
    """Images larger than those that the shapes were inferred with."""
    s, t = method_cases.random_maps((2, 3, 6, 6), (2, 5, 3, 3), dtype=torch.float32)
    assert FitNetLoss((3, 4, 4), (5, 2, 2))(s, t) > 0
    # A kernel without padding belongs to one difference.
    with pytest.raises(ValueError, match='6, 6.* and .*1, 1.*input_shape'):
        FitNetLoss((3, 5, 5), (5, 2, 2))(s, t[..., :1, :1])
