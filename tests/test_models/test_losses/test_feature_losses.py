"""What every loss that compares features has in common; taken from the registry."""

import inspect

import pytest
import torch

from crd_plugin.models import losses
from crd_plugin.models.losses._common import SizedLoss
from crd_plugin.registry import MODELS
from tests import method_cases

LOSSES = {
    name: cls
    for name, cls in MODELS.module_dict.items()
    if cls.__module__.startswith(losses.__name__)
    and not name.startswith('Ensemble')  # features of several teachers
    and list(inspect.signature(cls.forward).parameters) == ['self', 's_feats', 't_feats']
}
SIZED = [name for name, cls in LOSSES.items() if issubclass(cls, SizedLoss)]
# Losses that compare neighbouring layers, channel by channel.
NEIGHBOURS = ('FSPLoss', 'KDSVDLoss')
# Losses that compare logits of the same classes.
LOGITS = ('LSKDLoss',)


def features(name, dtype=torch.float32, scale=1.0):
    """Student's and teacher's maps; their channels differ where they may."""
    shapes = [[(4, 3, 4, 4)], [(4, 5, 4, 4)]]
    if name in NEIGHBOURS:
        shapes = [[(4, 3, 4, 4), (4, 3, 4, 4)]] * 2
    elif name in LOGITS:
        shapes = [[(4, 7)]] * 2
    sides = [method_cases.random_maps(*shapes[i], seed=i) for i in (0, 1)]
    return [method_cases.leaves([x * scale for x in side], dtype) for side in sides]


def build(name, dtype=torch.float32, **kwargs):
    torch.manual_seed(0)
    loss = LOSSES[name](**kwargs)
    if getattr(loss, 'needs_width', False):
        loss.infer_width(*features(name))
    return loss.to(dtype)


def test_losses_are_found():
    assert len(LOSSES) >= 12 and len(SIZED) >= 6


@pytest.mark.parametrize('name', LOSSES)
def test_loss_weight_is_a_factor(name):
    student, teacher = features(name, torch.float64)
    one, more, none = (
        build(name, torch.float64, loss_weight=weight)(student, teacher).detach()
        for weight in (1.0, 2.5, 0.0)
    )
    assert one != 0 and none == 0
    torch.testing.assert_close(more, 2.5 * one)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize('name', LOSSES)
def test_half_precision_features(name, dtype):
    """Features whose squares are beyond float16 give the numbers of float32.

    Outside autocast exactly; under it, layers of the loss may run in half precision.
    """
    # FSP's products of products would leave no room for a gradient in float16.
    halves = features(name, dtype, scale=50 if name == 'FSPLoss' else 300)
    singles = [method_cases.leaves(side, torch.float32) for side in halves]
    loss = build(name).eval()  # A queue stays as it is.
    expected = loss(*singles)
    gradients = torch.autograd.grad(expected, singles[0])
    assert torch.isfinite(expected)
    has_layers = any(True for _ in loss.parameters())
    for autocast, features_of in ((False, halves), (True, halves), (True, singles)):
        with torch.autocast('cpu', dtype, enabled=autocast):
            value = loss(*features_of)
        tolerance = 0.05 if autocast and has_layers else 1e-5
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected, rtol=tolerance, atol=0)
        for found, reference in zip(torch.autograd.grad(value, features_of[0]), gradients):
            largest = float(reference.abs().max())
            assert largest > 0
            tolerance = max(tolerance, 0.01)  # The gradient's own type is half precision.
            torch.testing.assert_close(
                found.float(), reference, rtol=tolerance, atol=tolerance * largest
            )


@pytest.mark.parametrize('name', LOSSES)
def test_dead_sample_has_a_gradient_like_the_others(name):
    """In published code it is NaN (PKT) or 1e12 times as large (SP)."""
    student, teacher = features(name)
    for s in student:
        s.data[0] = 0
    build(name)(student, teacher).backward()
    for s in student:
        dead, others = s.grad[0].abs().max(), s.grad[1:].abs().max()
        assert torch.isfinite(s.grad).all() and others > 0 and dead < 100 * others


@pytest.mark.parametrize('name', LOSSES)
def test_features_that_cannot_be_paired(name):
    student, teacher = features(name)
    loss = build(name)
    with pytest.raises(ValueError, match='layers and t_feats|is a sequence of 2 tensors'):
        loss([*student, student[0]], teacher)
    with pytest.raises(ValueError, match='has 3 samples and t_feats.* 4'):
        loss([s[:3] for s in student], teacher)
    with pytest.raises(ValueError, match=r's_feats.* holds no sample, expected at least one'):
        loss(*([x[:0] for x in side] for side in (student, teacher)))


def arguments_of(loss):
    """The sizes of a loss as arguments; one for a single layer, in the singular, is no tuple."""
    return {name: size if name.endswith('s') else size[0] for name, size in loss.sizes.items()}


@pytest.mark.parametrize('name', SIZED)
def test_layers_are_built_for_the_features(name):
    student, teacher = features(name)
    loss = LOSSES[name]()
    assert loss.needs_width and not list(loss.parameters())
    if name != 'FSPLoss':  # It has no layers to wait for.
        with pytest.raises(ValueError, match=f'{" and ".join(loss.sizes)} of {name} are not known'):
            loss(student, teacher)
    loss.infer_width(s_feats=student, t_feats=teacher)
    assert not loss.needs_width
    loss(student, teacher).backward()
    # The paraphraser has a loss of its own.
    named = loss.named_parameters()
    trained = [p for key, p in named if p.requires_grad and not key.startswith('paraphraser')]
    assert all(p.grad is not None for p in trained) and bool(trained) == (name != 'FSPLoss')

    given = LOSSES[name](**arguments_of(loss))
    assert not given.needs_width
    shapes = [{key: x.shape for key, x in net.state_dict().items()} for net in (given, loss)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize('name', SIZED)
def test_a_given_size_must_be_that_of_the_features(name):
    student, teacher = features(name)
    right, wrong = build(name), LOSSES[name]()
    wrong.infer_width(*[[x[:, :2] for x in side] for side in (student, teacher)])
    for argument, size in arguments_of(right).items():
        loss = LOSSES[name](**{argument: size})
        assert loss.needs_width
        loss.infer_width(student, teacher)
        assert loss.sizes == right.sizes
        with pytest.raises(ValueError, match=f'{argument} is .* but the recorded features have'):
            LOSSES[name](**{argument: arguments_of(wrong)[argument]}).infer_width(student, teacher)


# Losses with an argument out of range, and what the error says.
ARGUMENTS = [
    ('ABLoss', dict(s_shapes=[(3, 4)]), r's_shapes\[0\] is \(3, 4\), expected channels'),
    ('ABLoss', dict(t_shapes=[]), r't_shapes is \[\], expected a list'),
    ('ABLoss', dict(s_shapes=7), 's_shapes is 7, expected a list'),
    (
        'ABLoss',
        dict(s_shapes=[(3, 4, 4), (4, 2, 2)], t_shapes=[(3, 4, 4)]),
        's_shapes has 2 layers and t_shapes 1',
    ),
    ('ABLoss', dict(s_shapes=[(3, 2, 2)], t_shapes=[(3, 7, 7)]), 'cannot be brought'),
    ('CCLoss', dict(s_channels=[3, 4]), 's_channels is .*one width'),
    ('FSPLoss', dict(t_shapes=[]), r't_shapes is \[\], expected a list'),
    ('FTLoss', dict(t_channels=[3, 4]), r't_channels is \[3, 4\], expected one'),
    ('FTLoss', dict(s_channels=3, t_channels=6, rate=0.1), 'rate is 0.1, of 6 teacher'),
    ('FitNetLoss', dict(s_shape=(3, 4)), r's_shape is \(3, 4\), expected channels'),
    ('FitNetLoss', dict(t_shape=()), r't_shape is \(\)'),
    ('FitNetLoss', dict(s_shape=(3, 4, 4), t_shape=(3, 9, 9)), 'cannot be brought'),
    ('RKDLoss', dict(distance_weight=0, angle_weight=0), 'both 0'),
    ('VIDLoss', dict(t_channels=[2, -1]), r't_channels is \[2, -1\]'),
    ('VIDLoss', dict(s_channels=[2, 3], t_channels=4), '2 layers and t_channels 1'),
    ('VIDLoss', dict(eps=2.0, init_variance=1.0), 'eps is 2.0 and init_variance 1.0'),
]


@pytest.mark.parametrize('name, kwargs, text', ARGUMENTS)
def test_arguments_out_of_range(name, kwargs, text):
    with pytest.raises(ValueError, match=text):
        LOSSES[name](**kwargs)
