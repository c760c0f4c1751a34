"""ABLoss, FitNetLoss, FTLoss and VIDLoss against plain loops."""

import math

import pytest
import torch
from torch import nn

from crd_plugin.models.losses import ABLoss, FitNetLoss, FTLoss, VIDLoss
from tests import golden, method_cases
from tests.test_models.test_losses.test_published_numbers import published

S_SHAPES, T_SHAPES = [(3, 4, 4), (4, 2, 2)], [(3, 4, 4), (6, 2, 2)]


def maps(shapes, batch=2, **kwargs):
    return method_cases.random_maps(*((batch, *shape) for shape in shapes), **kwargs)


def test_ab_layers_with_and_without_a_connector():
    case, loss = published('zoo_ab')
    assert isinstance(loss.connectors[0], nn.Identity)
    student, _ = method_cases.features(case, torch.float32)
    for i, (connector, s) in enumerate(zip(loss.connectors, student)):
        golden.assert_value(connector(s), case[f'connected_{i}'])


@pytest.mark.parametrize('margin', [1.0, 0.3])
def test_ab_against_a_loop(margin):
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


def test_fitnet_against_a_loop():
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
            for x, y in zip(raw, t[0][:, c].flatten()):
                x = ((x - mean) / (var + 1e-5).sqrt()).clamp(min=0)
                total = total + (x - y) ** 2
        return total / (3 * 4 * 2 * 2)

    pair = method_cases.random_pair([(3, 2, 2, 2)], [(3, 4, 2, 2)])
    method_cases.check_against_loop(loss, loop, *pair)


def ft_pair(dtype=torch.float64):
    return method_cases.random_maps((2, 3, 4, 4), (2, 6, 4, 4), dtype=dtype)


@pytest.mark.parametrize('p1, p2', [(2, 1), (1, 2), (3, 1.5)])
def test_ft_against_a_loop(p1, p2):
    torch.manual_seed(0)
    loss = FTLoss(3, 6, p1=p1, p2=p2).double().eval()
    student, teacher = ft_pair()

    def attention(factor):
        rows = []
        for sample in factor:
            row = [
                sum(sample[c, i, j].abs() ** p1 for c in range(3)) / 3
                for i in range(4)
                for j in range(4)
            ]
            norm = sum(x**2 for x in row) ** 0.5
            rows += [x / norm for x in row]
        return rows

    def loop(s_feats, t_feats):
        q_s = attention(loss.translator(s_feats[0]))
        q_t = attention(loss.paraphraser.encoder(t_feats[0]))
        return sum((a - b).abs() ** p2 for a, b in zip(q_s, q_t)) / len(q_s)

    method_cases.check_against_loop(loss, loop, [student], [teacher])


def vid_maps(dtype=torch.float64):
    shapes = [(2, 3, 2, 2), (2, 2, 4, 4)], [(2, 2, 2, 2), (2, 3, 2, 2)]
    return method_cases.random_pair(*shapes, dtype)


def build_vid(**kwargs):
    torch.manual_seed(0)
    return VIDLoss([3, 2], [2, 3], **kwargs)


def test_vid_against_a_loop():
    loss = build_vid(init_variance=0.3, eps=0.01).double()

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
            s = method_cases.halved(s) if s.size(2) == 4 else s
            terms = []
            for b in range(2):
                for i in range(2):
                    for j in range(2):
                        mean = regress(layer, list(s[b, :, i, j]))
                        for c, mu in enumerate(mean):
                            v = (1 + layer.log_scale[c].exp()).log() + 0.01
                            terms.append(0.5 * ((mu - t[b, c, i, j]) ** 2 / v + v.log()))
            total = total + sum(terms) / len(terms)
        return total

    method_cases.check_against_loop(loss, loop, *vid_maps())
    assert all(p.grad.abs().max() > 0 for p in loss.parameters())


@pytest.mark.parametrize('variance, eps', [(5.0, 1e-5), (0.5, 0.1), (2000.0, 1.0)])
def test_first_variance_of_vid(variance, eps):
    student, teacher = vid_maps()
    loss = build_vid(init_variance=variance, eps=eps).double()
    for parameter in loss.parameters():
        if parameter.dim() > 1:
            parameter.data.zero_()  # The regressors predict zero.
    expected = sum(0.5 * (t.square().mean() / variance + math.log(variance)) for t in teacher)
    torch.testing.assert_close(loss(student, teacher), expected, rtol=1e-6, atol=0)


def test_reconstruction_trains_the_paraphraser_alone():
    torch.manual_seed(0)
    student, teacher = ft_pair()
    loss = FTLoss(3, 6, loss_weight=200).double()
    value = loss.reconstruction(teacher)
    value.backward()
    assert teacher.grad is None
    assert all(p.grad is None for p in loss.translator.parameters())
    for name, parameter in loss.paraphraser.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    # The weight is not that of the reconstruction.
    other = FTLoss(3, 6).double()
    other.load_state_dict(loss.state_dict())
    assert other.reconstruction(teacher) == value
    torch.testing.assert_close(loss(student, teacher), 200 * other(student, teacher))


def test_sums_are_in_full_precision():
    """Without a connector nothing but AB's sum is computed, and it is beyond float16."""
    torch.manual_seed(0)
    halves = [[(x * 300).half() for x in maps([(3, 16, 16)], 4, seed=i)] for i in (0, 1)]
    ab, ft, large = ABLoss(*[[(3, 16, 16)]] * 2), FTLoss(3, 6), ft_pair()[1].float() * 1e4
    with torch.autocast('cpu', torch.float16):
        boundary = ab(*halves)
    with torch.autocast('cpu', torch.bfloat16):
        reconstruction = ft.reconstruction(large)
    assert boundary.dtype == reconstruction.dtype == torch.float32
    torch.testing.assert_close(boundary, ab(*[[x.float() for x in side] for side in halves]))
    torch.testing.assert_close(reconstruction, ft.reconstruction(large), rtol=0.02, atol=0)


def test_rate_of_a_factor():
    student, teacher = ft_pair()
    loss = FTLoss(3, 6, rate=0.4)  # two of six channels
    assert loss.translator(student.float()).shape == (2, 2, 4, 4)
    assert loss.paraphraser.encoder(teacher.float()).shape == (2, 2, 4, 4)


def test_maps_of_another_size():
    """Images larger than those that the shapes were inferred with."""
    larger = [[(c, 2 * h, 2 * w) for c, h, w in side] for side in (S_SHAPES, T_SHAPES)]
    assert ABLoss(S_SHAPES, T_SHAPES).double()(maps(larger[0]), maps(larger[1])) > 0
    s, t = method_cases.random_maps((2, 3, 6, 6), (2, 5, 3, 3), dtype=torch.float32)
    assert FitNetLoss((3, 4, 4), (5, 2, 2))(s, t) > 0
    # A kernel without padding belongs to one difference.
    with pytest.raises(ValueError, match='becomes .*3, 3.*, but t_feats has .*1, 1.*input_shape'):
        FitNetLoss((3, 5, 5), (5, 2, 2))(s, t[..., :1, :1])


AB, FITNET = ABLoss(S_SHAPES, T_SHAPES), FitNetLoss(S_SHAPES[1], T_SHAPES[1])
FT, VID = FTLoss(4, 6), VIDLoss([3, 4], [3, 6])
STUDENT, TEACHER = maps(S_SHAPES), maps(T_SHAPES)
UNFIT = [
    (AB, STUDENT[:1], TEACHER[:1], r's_shapes is \(\(3, .*\), but .* have \(3, 4, 4\);'),
    (AB, TEACHER, TEACHER, 's_shapes is .*set s_shapes='),
    (AB, STUDENT, STUDENT, 't_shapes is .*set t_shapes='),
    (FITNET, STUDENT, TEACHER, '2 layers, FitNetLoss takes one'),
    (FITNET, TEACHER[1], TEACHER[1], r's_shape is \(4, 2, 2\), but .* have \(6, 2, 2\)'),
    (FITNET, STUDENT[1], STUDENT[1], 't_shape is '),
    (FT, STUDENT, TEACHER, '2 layers, FTLoss takes one'),
    (FT, TEACHER[1], TEACHER[1], 's_channels is 4, but .* have 6'),
    (VID, STUDENT, STUDENT, r't_channels is \(3, 6\), but'),
    (VID, STUDENT[0], TEACHER[0], r's_channels is \(3, 4\), but .* 3'),
]


@pytest.mark.parametrize('loss, student, teacher, text', UNFIT)
def test_features_that_do_not_fit(loss, student, teacher, text):
    with pytest.raises(ValueError, match=text):
        loss(student, teacher)


def test_maps_that_cannot_be_reconstructed():
    with pytest.raises(ValueError, match='s_channels and t_channels of FTLoss are not known'):
        FTLoss().reconstruction(TEACHER[1])
    with pytest.raises(ValueError, match='t_channels is 6, but .* have 4'):
        FT.reconstruction(STUDENT[1])


@pytest.mark.parametrize('loss', [AB, FITNET, FT, VID], ids=lambda loss: type(loss).__name__)
def test_layers_of_known_sizes_stay_when_sizes_are_inferred(loss):
    """An optimizer may hold their parameters."""
    layer = slice(1, 2) if isinstance(loss, (FitNetLoss, FTLoss)) else slice(None)
    before = list(loss.parameters())
    loss.infer_width(STUDENT[layer], TEACHER[layer])
    assert list(map(id, loss.parameters())) == list(map(id, before))
