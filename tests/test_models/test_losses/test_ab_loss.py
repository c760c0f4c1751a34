"""ABLoss against the published numbers, and its contract."""

import pytest
import torch
from mmrazor.models.losses import ABLoss as RazorABLoss
from torch import nn

from crd_plugin.models.losses import ABLoss
from tests import golden, method_cases

S_SHAPES, T_SHAPES = [(3, 4, 4), (4, 2, 2)], [(3, 4, 4), (6, 2, 2)]


def build(case):
    """A loss with the connectors of the golden case."""
    shapes = [[tuple(case[f'{side}{i}'].shape[1:]) for i in range(3)] for side in 'st']
    loss = ABLoss(*shapes, margin=float(case['margin']))
    method_cases.load_parameters(loss.connectors, case, 'connector.connectors')
    return loss


def maps(shapes, batch=2, **kwargs):
    """Random maps of some shapes."""
    return method_cases.random_maps(*((batch, *shape) for shape in shapes), **kwargs)


@pytest.mark.parametrize('dtype', method_cases.DTYPES)
def test_published_numbers(dtype):
    case = golden.load('zoo_ab')
    loss = build(case)
    method_cases.check(loss, case, dtype, by_layer=False)
    method_cases.check_parameters(loss.connectors, case, 'connector.connectors')


def test_connected_maps_and_layer_weights():
    case = golden.load('zoo_ab')
    loss = build(case)
    assert isinstance(loss.connectors[0], nn.Identity)
    student, teacher = method_cases.features(case, torch.float32)
    for i, (connector, s, t) in enumerate(zip(loss.connectors, student, teacher)):
        connected = connector(s)
        golden.assert_value(connected, case[f'connected_{i}'])
        # What mmrazor has lacks the weight of the layer alone.
        razor = RazorABLoss(margin=1.0)(connected, t)
        golden.assert_value(razor * case['w'][i].float(), case[f'loss_{i}'])


@pytest.mark.parametrize('margin', [1.0, 0.3])
def test_against_a_loop(margin):
    shapes = [(1, 2, 2), (2, 1, 1)]
    loss = ABLoss(shapes, shapes, margin=margin).double()
    student, teacher = maps(shapes, 3), maps(shapes, 3, seed=1)
    with torch.no_grad():  # the edges, too
        student[0][0, 0, 0, 0], student[0][0, 0, 0, 1] = margin, -margin
        teacher[0][0, 0, 0, 1] = 0.0

    def loop(s_feats, t_feats):
        total = 0.0
        for i, (s_map, t_map) in enumerate(zip(s_feats, t_feats)):
            for s, t in zip(s_map.flatten(), t_map.flatten()):
                if t <= 0 and s > -margin:
                    total = total + (s + margin) ** 2 * 2.0 ** (i - 1)
                elif t > 0 and s <= margin:
                    total = total + (s - margin) ** 2 * 2.0 ** (i - 1)
        return total / 3 * 3 / 1000

    method_cases.check_against_loop(loss, loop, student, teacher)


def test_maps_of_another_size_of_the_same_scale():
    loss = ABLoss(S_SHAPES, T_SHAPES).double()
    assert list(loss.state_dict())[0] == 'connectors.1.conv.weight'
    larger = [[(c, 2 * h, 2 * w) for c, h, w in side] for side in (S_SHAPES, T_SHAPES)]
    assert loss(maps(larger[0]), maps(larger[1])) > 0


def test_sum_over_maps_of_one_shape_is_in_full_precision():
    """Without a connector nothing but the sum is computed, and it is beyond float16."""
    loss = ABLoss(*[[(3, 16, 16)]] * 2)
    student, teacher = ([x * 300 for x in maps([(3, 16, 16)], 4, seed=i)] for i in (0, 1))
    halves = [[x.half() for x in side] for side in (student, teacher)]
    with torch.autocast('cpu', torch.float16):
        value = loss(*halves)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(*[[x.float() for x in side] for side in halves]))


def test_features_that_do_not_fit():
    student, teacher = maps(S_SHAPES), maps(T_SHAPES)
    loss = ABLoss(S_SHAPES, T_SHAPES)
    for s, t in ((student[:1], teacher[:1]), (teacher, teacher), (student, student)):
        with pytest.raises(ValueError, match='made for.*model.input_shape'):
            loss(s, t)
