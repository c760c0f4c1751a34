"""Options that make a step faster change none of its numbers."""

import copy

import pytest
import torch
from torch import nn

from crd_plugin.models.algorithms import speed
from crd_plugin.models.backbones import build_cifar_classifier_cfg
from crd_plugin.registry import MODELS
from tests import small_runs

# Without code generation, which takes long, but traced in the same way. A break of the graph, such
# as a hook that cannot be traced, is an error.
TRACED = dict(backend='eager', fullgraph=True)


def model(**options):
    """CRD with every kind of recorder, inside the backbones too."""
    net = build_cifar_classifier_cfg('resnet8', 10, out_indices=(0, 1, 2))
    net['data_preprocessor'] = dict(type='mmpretrain.ClsDataPreprocessor', num_classes=10)
    cfg = small_runs.model(num_samples=20, exclude='instance')
    cfg.update(architecture=net, teacher=copy.deepcopy(net), input_shape=(3, 16, 16))
    inner = dict(
        stages=dict(type='crd_plugin.StageOutputs', source='backbone', stem=True),
        inner=dict(type='mmrazor.ModuleOutputs', source='backbone.layer2.0.conv1'),
        logits=dict(type='mmrazor.ModuleOutputs', source='head.fc'),
    )
    for feature in ('s_feats', 't_feats'):
        mappings = cfg['distiller']['loss_forward_mappings']
        mappings['loss_crd'][feature]['data_idx'] = -1
    cfg['distiller']['student_recorders'].update(inner)
    cfg['distiller']['teacher_recorders'].update(copy.deepcopy(inner))
    cfg.update(copy.deepcopy(options))
    torch.manual_seed(0)
    return MODELS.build(cfg).double().train()


def batch(size=4, seed=1):
    torch.manual_seed(seed)
    images, samples = small_runs.batch(size, 16)
    return images.double(), samples


def step(net, images, samples):
    # Negatives are drawn.
    torch.manual_seed(5)
    net.zero_grad()
    losses = net(images, samples, mode='loss')
    sum(losses.values()).backward()
    net.distiller.distill_losses['loss_crd'].bank.discard()
    gradients = {
        name: parameter.grad
        for name, parameter in net.named_parameters()
        if parameter.grad is not None
    }
    return losses, gradients, recorded(net)


def recorded(net):
    """Every record of both networks by side and name, as a flat list."""
    found = {}
    for side in ('student', 'teacher'):
        manager = getattr(net.distiller, f'{side}_recorders')
        for name, recorder in manager.recorders.items():
            flat = []
            for record in recorder.data_buffer:
                flat += record if isinstance(record, (tuple, list)) else [record]
            found[side, name] = flat
    return found


@pytest.fixture(autouse=True)
def forget_compiled():
    torch._dynamo.reset()


@pytest.fixture(scope='module')
def plain():
    return model()


@pytest.mark.parametrize('compile', [False, TRACED], ids=['plain', 'compiled'])
def test_step_and_prediction_equal_the_plain_ones(plain, compile):
    fast = model(channels_last=True, compile=compile)
    assert list(fast.state_dict()) == list(plain.state_dict())
    # The second batch is smaller, as the last of an epoch.
    for size in (4, 3):
        expected = step(plain, *batch(size))
        given = step(fast, *batch(size))
        for one, other in zip(expected, given):
            assert list(one) == list(other) and one
            for key, value in one.items():
                torch.testing.assert_close(other[key], value, rtol=1e-8, atol=1e-10)
    sizes = {key: len(value) for key, value in given[2].items()}
    for side in ('student', 'teacher'):
        # The stem and three stages.
        assert sizes[side, 'stages'] == 4
        assert sizes[side, 'inner'] == sizes[side, 'logits'] == 1
        assert sizes[side, 'feat'] == 3
    assert sizes['student', 'ids'] == sizes['student', 'labels'] == 1
    for key, records in given[2].items():
        # Features of the student carry gradient, the teacher's do not.
        feature = records[0].dtype == torch.float64
        assert records[0].requires_grad == (feature and key[0] == 'student')
    # Running statistics are those after two steps.
    images, samples = batch()
    fast.load_state_dict(plain.state_dict())
    with torch.no_grad():
        expected, given = (net.eval()(images, samples, mode='predict') for net in (plain, fast))
        for one, other in zip(expected, given):
            torch.testing.assert_close(other.pred_score, one.pred_score)
    plain.train()


def test_weights_have_their_channels_last():
    net = model(channels_last=True)
    for side in (net.teacher, net.student):
        for name, value in side.named_parameters():
            if value.dim() == 4:
                assert value.is_contiguous(memory_format=torch.channels_last), name
    # A checkpoint of the usual layout does not bring it back.
    net.load_state_dict(model().state_dict())
    weight = net.student.backbone.layer2[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    step(net, *batch())
    # What comes out of the backbone has kept the layout.
    stages = net.distiller.student_recorders.get_recorder('stages')
    for feature in stages.data_buffer[0]:
        assert feature.is_contiguous(memory_format=torch.channels_last)


def test_compiled_backbones_are_called(monkeypatch):
    traced = []

    def backend(graph, inputs):
        traced.append(graph)
        return graph.forward

    net = model(compile=dict(backend=backend))
    assert copy.deepcopy(net).student.backbone._compiled_call_impl is None
    step(net, *batch())
    # Teacher's and student's, once each; not again for equal shapes.
    assert len(traced) == 2
    step(net, *batch(seed=2))
    assert len(traced) == 2


def test_each_forward_pass_is_a_step_of_cuda_graphs(monkeypatch):
    """Else the student's pass takes the memory of the teacher's maps."""
    net, order = model(compile=TRACED), []
    monkeypatch.setattr(torch.compiler, 'cudagraph_mark_step_begin', lambda: order.append('step'))
    for name in ('teacher', 'student'):
        getattr(net, name).register_forward_pre_hook(lambda *_, name=name: order.append(name))
    for _ in range(2):
        step(net, *batch())
    assert order == 2 * ['step', 'teacher', 'student']


@pytest.mark.parametrize(
    'given, kind, message',
    [
        (dict(compile=dict(mood='fast')), ValueError, 'torch.compile refuses: .*mood'),
        (dict(compile='inductor'), TypeError, "compile is 'inductor', expected True, False or"),
        (dict(compile=dict(backend='fast')), ValueError, 'refuses: .*fast'),
        (dict(channels_last='no'), TypeError, "channels_last is 'no', expected True or False"),
        (dict(channels_last=1), TypeError, 'channels_last is 1, expected'),
    ],
)
def test_wrong_options(given, kind, message):
    with pytest.raises(kind, match=message):
        model(**given)


def test_network_without_a_backbone():
    with pytest.raises(ValueError, match='the student, a Linear, has no backbone'):
        speed.compile_backbone(nn.Linear(2, 2), 'student', True)


def test_both_networks_run_under_autocast_and_the_objective_does_not():
    net = model().float()
    images, samples = batch()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = net(images.float(), samples, mode='loss')
    for side in ('student', 'teacher'):
        assert recorded(net)[side, 'logits'][0].dtype == torch.bfloat16
    assert losses['distill.loss_crd'].dtype == torch.float32
