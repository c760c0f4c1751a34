"""CoCoRDLoss on features.

Two steps of the public code are compared in test_algorithms/test_cocord_distill.py.
"""

import copy

import pytest
import torch
import torch.nn.functional as F

from crd_plugin.registry import MODELS
from tests.cocord import SIZES

NAMES = ('s_feats', 's_feats_2', 'slow_feats', 'slow_feats_2', 't_feats')
AVERAGES = dict(
    slow_connector='connector', slow_projector='projector', teacher_projector='projector'
)


def build(s_channels=6, t_channels=6, **changes):
    torch.manual_seed(0)
    cfg = dict(type='crd_plugin.CoCoRDLoss', s_channels=s_channels, t_channels=t_channels, **SIZES)
    loss = MODELS.build({**cfg, **changes}).double().train()
    # Averages that differ from what they follow, so that a swap shows.
    for parameter in loss.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return loss


def features(s_channels=6, t_channels=6, batch=5):
    generator = torch.Generator().manual_seed(1)
    widths = [t_channels if name == 't_feats' else s_channels for name in NAMES]
    return {
        name: torch.randn(batch, width, generator=generator, dtype=torch.float64)
        for name, width in zip(NAMES, widths)
    }


def by_hand(loss, feats):
    def mlp(part, x):
        x = part[0](x)
        mean, var = x.mean(0), x.var(0, unbiased=False)
        x = (x - mean) / (var + 1e-5).sqrt() * part[1].weight + part[1].bias
        return part[3](x.relu())

    q, q_2 = (mlp(loss.projector, loss.connector(feats[name])) for name in NAMES[:2])
    slow, slow_2 = (
        mlp(loss.slow_projector, loss.slow_connector(feats[name])).detach() for name in NAMES[2:4]
    )
    keys = F.normalize(mlp(loss.teacher_projector, feats['t_feats']).detach())
    predicted, predicted_2 = mlp(loss.predictor, q), mlp(loss.predictor, q_2)
    contrast = prediction = 0
    for i in range(len(q)):
        query = q[i] / q[i].norm()
        scores = torch.stack([query @ key for key in (keys[i], *loss.queue.keys)])
        contrast = contrast - (scores / loss.temperature).log_softmax(0)[0] / len(q)
        for a, b in ((predicted[i], slow_2[i]), (predicted_2[i], slow[i])):
            prediction = prediction + (2 - 2 * F.cosine_similarity(a, b, dim=0)) / len(q)
    return contrast, prediction, keys


@pytest.mark.parametrize('t_channels', [6, 9])
def test_value_and_gradient_equal_the_formula(t_channels):
    loss, feats = build(t_channels=t_channels), features(6, t_channels)
    for feature in feats.values():
        feature.requires_grad_()
    contrast, prediction, keys = by_hand(loss, feats)
    value = loss(**feats)
    torch.testing.assert_close(value, contrast + 4 * prediction)
    torch.testing.assert_close(loss.terms.contrast, contrast.detach())
    torch.testing.assert_close(loss.terms.prediction, prediction.detach())
    torch.testing.assert_close(loss.queue.pending, keys)
    wanted = [*feats.values(), *(p for p in loss.parameters() if p.requires_grad)]
    found, expected = (
        torch.autograd.grad(x, wanted, allow_unused=True)
        for x in (value, contrast + 4 * prediction)
    )
    assert found[2:5] == expected[2:5] == (None,) * 3  # targets and keys
    for a, b in zip(found[:2] + found[5:], expected[:2] + expected[5:]):
        torch.testing.assert_close(a, b)


def test_zero_query_passes_a_gradient_of_ordinary_size():
    loss, feats = build(), features()
    for parameter in loss.projector[3].parameters():
        parameter.data.zero_()
    loss(**feats).backward()
    assert 0 < loss.projector[3].weight.grad.abs().max() < 1e4


def test_every_setting_counts():
    feats = features()
    loss = build()
    loss(**feats)
    contrast, prediction, _ = loss.terms
    for changes, expected in (
        (dict(contrast_weight=0.5), 0.5 * contrast + 4 * prediction),
        (dict(prediction_weight=0.5), contrast + 0.5 * prediction),
        (dict(loss_weight=0.5), 0.5 * contrast + 2 * prediction),
    ):
        torch.testing.assert_close(build(**changes)(**feats), expected)
    for changes in (dict(temperature=0.5), dict(queue_size=4)):
        other = build(**changes)
        other(**feats)
        assert not torch.isclose(other.terms.contrast, contrast)
    assert build(queue_size=4).queue.keys.shape == (4, 8)
    other = build(hidden_dim=7, embed_dim=5, predictor_dim=3)
    shapes = [tuple(p.shape) for p in other.parameters() if p.dim() == 2]
    assert shapes == [(3, 5), (5, 3)] + 3 * [(7, 6), (5, 7)]


def test_forward_changes_neither_queue_nor_averages():
    loss = build()
    before = copy.deepcopy(loss.state_dict())
    loss(**features())
    for name, value in loss.state_dict().items():
        if 'running' not in name and 'num_batches' not in name:
            assert torch.equal(value, before[name]), name


def test_evaluation_stages_nothing():
    loss = build().eval()
    values = [loss(**features()) for _ in range(2)]
    assert torch.equal(*values) and loss.queue.pending is None
    assert loss(**features(batch=1)) > 0  # running statistics suffice


def test_averages_follow_what_is_trained():
    loss = build(t_channels=9, slow_momentum=0.7, teacher_momentum=0.95)
    before = copy.deepcopy(loss)
    loss.update_averages()
    for name, source in AVERAGES.items():
        momentum = 0.95 if name == 'teacher_projector' else 0.7
        old, new, trained = (
            list(getattr(owner, part).parameters())
            for owner, part in ((before, name), (loss, name), (before, source))
        )
        assert new
        for a, b, c in zip(old, new, trained):
            torch.testing.assert_close(b, momentum * a + (1 - momentum) * c)
            assert not b.requires_grad
    for name in ('connector', 'projector', 'predictor'):
        for a, b in zip(getattr(before, name).parameters(), getattr(loss, name).parameters()):
            assert torch.equal(a, b) and b.requires_grad


def test_averages_that_never_move_are_an_error():
    loss = build()
    loss(**features())  # A step may end with update_averages().
    loss.queue.commit()
    with pytest.raises(RuntimeError, match=r'were never moved.*CoCoRDHook.*update_averages\(\)'):
        loss(**features())
    loss.queue.commit()
    resumed = build()
    resumed.load_state_dict(loss.state_dict())
    loss.update_averages()
    for one in (loss, resumed):
        for _ in range(2):  # Gradients may be accumulated.
            one(**features())
            one.queue.commit()


def test_connector_is_there_only_for_different_widths():
    assert not any('connector' in key for key in build().state_dict())
    loss = MODELS.build(dict(type='crd_plugin.CoCoRDLoss', s_channels=6, t_channels=9, **SIZES))
    assert loss.connector.weight.shape == (9, 6)
    # Averages start as copies.
    for average, source in AVERAGES.items():
        own, other = (getattr(loss, name).state_dict() for name in (average, source))
        assert own and set(own) == set(other)
        for key, value in own.items():
            assert torch.equal(value, other[key])
            assert value.data_ptr() != other[key].data_ptr()


@pytest.mark.parametrize('given', [(None, None), (6, None), (None, 9)])
def test_widths_are_inferred(given):
    loss = build(*given)
    assert loss.needs_width
    with pytest.raises(ValueError, match='of CoCoRDLoss are not known'):
        loss(**features(6, 9))
    loss.infer_width(**features(6, 9))
    assert not loss.needs_width
    assert loss.sizes == dict(s_channels=(6,), t_channels=(9,))
    assert loss.double()(**features(6, 9)) > 0


def test_feature_in_a_tuple_of_one():
    loss, feats = build().eval(), features()
    assert torch.equal(loss(**{name: (x,) for name, x in feats.items()}), loss(**feats))


@pytest.mark.parametrize(
    'name, change, message',
    [
        ('s_feats_2', lambda x: x[:3], r's_feats has 3 samples and t_feats 5'),
        ('slow_feats', lambda x: x[:, :4], 'set s_channels=4'),
        ('t_feats', lambda x: x[:, :4], 'set t_channels=4'),
        ('s_feats', lambda x: (x, x), 's_feats is a sequence of 2 tensors'),
        (None, None, 'set train_dataloader.drop_last'),
    ],
)
def test_bad_features(name, change, message):
    feats = features(batch=5 if name else 1)
    if name:
        feats[name] = change(feats[name])
    with pytest.raises(ValueError, match=message):
        build()(**feats)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_mixed_precision(dtype):
    """With autocast; and half features without it are as if they had been cast before."""
    loss = build(t_channels=9).float()
    others = [copy.deepcopy(loss) for _ in range(3)]
    feats = {key: x.float() for key, x in features(6, 9).items()}
    with torch.autocast('cpu', dtype=dtype):
        value = loss(**feats)
    assert value.dtype == loss.queue.pending.dtype == torch.float32
    torch.testing.assert_close(value, others[0](**feats), rtol=0.05, atol=0)
    norms = loss.queue.pending.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))
    half = {key: x.to(dtype) for key, x in feats.items()}
    value, expected = others[1](**half), others[2](**{key: x.float() for key, x in half.items()})
    assert value.dtype == torch.float32 and torch.equal(value, expected)
