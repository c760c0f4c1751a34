"""FTLoss against the published numbers, and its contract."""

import pytest
import torch
from mmrazor.models.losses import FTLoss as RazorFTLoss

from crd_plugin.models.losses import FTLoss
from crd_plugin.models.losses.ft_loss import factor_loss
from tests import golden, method_cases


def build(case):
    """A loss with the networks of the golden case."""
    loss = FTLoss(8, 16, float(case['k']), int(case['p1']), int(case['p2']))
    for name in ('paraphraser', 'translator'):
        method_cases.load_parameters(getattr(loss, name), case, name)
    return loss


def pair(dtype=torch.float64):
    """Maps of a student of three and a teacher of six channels."""
    return method_cases.random_maps((2, 3, 4, 4), (2, 6, 4, 4), dtype=dtype)


@pytest.mark.parametrize('dtype', method_cases.DTYPES)
def test_published_numbers(dtype):
    case = golden.load('zoo_ft')
    loss = build(case)
    method_cases.check(loss, case, dtype, one=True)
    method_cases.check_parameters(loss.translator, case, 'translator')
    assert all(p.grad is None for p in loss.paraphraser.parameters())


def test_published_factors_and_reconstruction():
    case = golden.load('zoo_ft')
    loss = build(case)
    golden.assert_value(loss.translator(case['s0']), case['factor_s'])
    factor = loss.paraphraser.encoder(case['t0'])
    golden.assert_value(factor, case['factor_t'])
    golden.assert_value(loss.paraphraser(case['t0']), case['reconstruction'])
    golden.assert_value(loss.reconstruction(case['t0']), case['paraphraser_loss'])


@pytest.mark.parametrize('dtype', method_cases.DTYPES)
@pytest.mark.parametrize('name', ['zoo_ft_pool', 'zoo_ft_p2'])
def test_published_numbers_without_networks(name, dtype):
    case = golden.load(name)
    powers = int(case['p1']), int(case['p2'])
    method_cases.check(lambda s, t: factor_loss(s, t, *powers), case, dtype, one=True)


def test_mmrazor_compares_all_channels():
    case = golden.load('zoo_ft')
    value = RazorFTLoss()(case['factor_s'], case['factor_t'])
    assert not torch.isclose(value, case['loss'], rtol=0.1)


@pytest.mark.parametrize('p1, p2', [(2, 1), (1, 2), (3, 1.5)])
def test_against_a_loop(p1, p2):
    torch.manual_seed(0)
    loss = FTLoss(3, 6, p1=p1, p2=p2).double().eval()
    student, teacher = pair()

    def attention(factor):
        rows = []
        for sample in factor:
            row = [
                sum(sample[c, i, j].abs() ** p1 for c in range(3)) / 3
                for i in range(4)
                for j in range(4)
            ]
            norm = sum(x**2 for x in row) ** 0.5
            rows.append([x / norm for x in row])
        return rows

    def loop(s_feats, t_feats):
        q_s = attention(loss.translator(s_feats[0]))
        q_t = attention(loss.paraphraser.encoder(t_feats[0]))
        gaps = [(a - b).abs() ** p2 for rows in zip(q_s, q_t) for a, b in zip(*rows)]
        return sum(gaps) / len(gaps)

    method_cases.check_against_loop(loss, loop, [student], [teacher])


def test_reconstruction_trains_the_paraphraser_alone():
    torch.manual_seed(0)
    student, teacher = pair()
    loss = FTLoss(3, 6, loss_weight=200).double()
    value = loss.reconstruction(teacher)
    value.backward()
    assert teacher.grad is None
    assert all(p.grad is None for p in loss.translator.parameters())
    for name, parameter in loss.paraphraser.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    # Neither of the weights is the other's.
    doubled = FTLoss(3, 6, reconstruction_weight=2.0).double()
    doubled.load_state_dict(loss.state_dict())
    torch.testing.assert_close(doubled.reconstruction(teacher), 2 * value)
    torch.testing.assert_close(loss(student, teacher), 200 * doubled(student, teacher))


def test_channels_are_inferred():
    student, teacher = pair()
    loss = FTLoss(rate=0.4, t_channels=[6])
    loss.infer_width(s_feats=student, t_feats=teacher)
    # Two of six channels.
    assert loss.translator(student.float()).shape == (2, 2, 4, 4)
    assert loss.paraphraser.encoder(teacher.float()).shape == (2, 2, 4, 4)
    assert loss.paraphraser(teacher.float()).shape == teacher.shape


def test_reconstruction_is_in_full_precision():
    torch.manual_seed(0)
    loss, (_, t) = FTLoss(3, 6), pair()
    with torch.autocast('cpu', torch.bfloat16):
        value = loss.reconstruction(t.float() * 1e4)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss.reconstruction(t.float() * 1e4), rtol=0.02, atol=0)


def test_features_that_do_not_fit():
    s, t = pair(torch.float32)
    with pytest.raises(ValueError, match='s_channels and t_channels of FTLoss are not known'):
        FTLoss().reconstruction(t)
    loss = FTLoss(3, 6)
    with pytest.raises(ValueError, match='s_channels is 3, but .* have 6'):
        loss(t, t)
    with pytest.raises(ValueError, match='t_channels is 6, but .* have 3'):
        loss.reconstruction(s)
    with pytest.raises(ValueError, match='2 layers, FTLoss takes one'):
        loss([s, s], [t, t])
