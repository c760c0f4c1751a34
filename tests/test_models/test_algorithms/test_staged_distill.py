"""StagedDistill: what each stage computes, runs and trains."""

import copy
from unittest import mock

import pytest
import torch

from crd_plugin.models import CIFARWideResNet
from crd_plugin.registry import MODELS
from tests import small_runs, staged

AB = 'distiller.distill_losses.loss_ab'


def build(method='ab', stages=None, **changes):
    """The model, in training mode; a bank of twenty rows."""
    torch.manual_seed(0)
    cfg = staged.model(method, **changes)
    if stages is not None:
        cfg['stages'] = stages
    losses = cfg['distiller']['distill_losses']
    if 'loss_crd' in losses:
        losses['loss_crd'].update(num_samples=20, exclude='instance')
    return MODELS.build(copy.deepcopy(cfg)).train()


def losses_of(model):
    torch.manual_seed(1)
    return model(*small_runs.batch(), mode='loss')


def trained(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def stage_of(name='init', **kwargs):
    """Two stages, one of them described."""
    other = 'main' if name == 'init' else 'init'
    return [dict(name=name, **kwargs), dict(name=other)]


@pytest.mark.parametrize(
    'method, init, main',
    [
        ('ab', {'distill.loss_ab'}, {'student.loss', 'distill.loss_crd'}),
        (
            'ft',
            {'distill.loss_ft_reconstruction'},
            {'student.loss', 'distill.loss_crd', 'distill.loss_ft'},
        ),
    ],
)
def test_losses_of_each_stage(method, init, main):
    net = MODELS.build(staged.model(method)['architecture'])
    net.backbone.conv.weight.requires_grad_(False)  # what a config holds still stays so
    model = build(method, architecture=net)
    for name, expected in (('init', init), ('main', main), ('init', init)):
        model.set_stage(name)
        model.distiller.distill_losses['loss_crd'].bank.discard()
        assert 'architecture.backbone.conv.weight' not in trained(model)
        losses = losses_of(model)
        assert set(losses) == expected
        assert all(parameter.grad is None for parameter in model.parameters())
        sum(losses.values()).backward()
        # What trains, and nothing else, has a gradient.
        grads = {n for n, p in model.named_parameters() if p.grad is not None}
        assert grads == trained(model)


def test_stages_sum_up_to_the_plain_losses():
    """The same numbers as without stages, from the same features."""
    model = build('ft', stages=[dict(name='all')])
    model.set_stage('all')
    found = losses_of(model)
    cfg = staged.model('ft')
    cfg.pop('stages')
    cfg['type'] = 'crd_plugin.FrozenTeacherDistill'
    cfg['distiller']['distill_losses']['loss_crd'].update(num_samples=20, exclude='instance')
    reference = MODELS.build(cfg).train()
    reference.load_state_dict(model.state_dict())
    expected = losses_of(reference)
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


@pytest.mark.parametrize(
    'method, stage, teacher, student',
    [('ab', 'init', 1, 1), ('ab', 'main', 0, 1), ('ft', 'init', 1, 0), ('ft', 'main', 1, 1)],
)
def test_a_network_that_no_loss_looks_at_is_not_run(method, stage, teacher, student):
    model = build(method, with_crd=False)
    model.set_stage(stage)
    calls = []
    for net in (model.teacher, model.student):
        hook = mock.Mock(return_value=None)
        net.register_forward_hook(hook)
        calls.append(hook)
    losses_of(model)
    assert [hook.call_count for hook in calls] == [teacher, student]


def test_deliveries_need_both_networks():
    model = build('ab', with_crd=False)
    model.set_stage('main')
    model.distiller.deliveries.deliveries['any'] = mock.MagicMock()
    hook = mock.Mock(return_value=None)
    model.teacher.register_forward_hook(hook)
    losses_of(model)
    assert hook.call_count == 1


def test_losses_that_are_left_out():
    model = build('ab')
    model.set_stage('main')
    model.distillation_stopped = True
    assert set(losses_of(model)) == {'student.loss'}
    model = build('ab', calculate_student_loss=False)
    model.set_stage('main')
    assert set(losses_of(model)) == {'distill.loss_crd'}


def test_testing_needs_no_stage():
    model = build('ab').eval()
    assert len(model(*small_runs.batch(), mode='predict')) == 6
    with pytest.raises(ValueError, match='none was begun; train it with'):
        losses_of(model)
    with pytest.raises(ValueError, match="no stage 'x', expected one of"):
        model.set_stage('x')


def test_modes_and_statistics():
    model = build('ab')
    backbone, head = model.student.backbone, model.student.head
    ours = model.distiller.distill_losses['loss_ab']
    for name, modes in (('init', (True, False, True)), ('main', (True, True, False))):
        model.set_stage(name)
        model.eval()
        assert not any(m.training for m in (backbone, head, ours))
        model.train()  # as a loop does after each validation
        assert tuple(m.training for m in (backbone, head, ours)) == modes
        assert not model.teacher.training
        before = {k: v.clone() for k, v in model.state_dict().items()}
        losses_of(model)
        moved = staged.changed(before, model.state_dict())
        # The running statistics of what is in training mode and was run.
        assert any(key.startswith('architecture.backbone') for key in moved)
        assert any(key.startswith(AB) for key in moved) is (name == 'init')


def test_what_lies_behind_the_last_stage_waits_for_the_head():
    net = small_runs.net(16)
    net['backbone'] = dict(type='crd_plugin.CIFARWideResNet', depth=10, out_indices=(0, 1, 2))
    net['head']['in_channels'] = 64
    model = build('ab', architecture=net, teacher=net, with_crd=False)
    assert CIFARWideResNet.tail_names == ('bn1',)
    tail = model.student.backbone.bn1
    model.set_stage('init')
    assert not tail.training and not tail.weight.requires_grad
    assert model.student.backbone.block3.training
    model.set_stage('main')
    assert tail.training and tail.weight.requires_grad


def _build_with(stages):
    return MODELS.build({**staged.model('ab', with_crd=False), 'stages': stages})


@pytest.mark.parametrize(
    'stages, text',
    [
        (None, 'stages is None, expected a list'),
        ([], r'stages is \[\], expected a list'),
        (dict(init=dict()), 'expected a list with a dict for each'),
        (['init'], "stages has 'init', expected a dict"),
        ([dict(name='init', epochs=3)], "'epochs': 3.*expected a dict with some of "),
        ([dict(losses=['loss_ab'])], 'stages has the name None, expected a different word'),
        ([dict(name='a'), dict(name='a')], "has the name 'a', expected a different word"),
        (
            stage_of(losses=['loss_ba']),
            r"stages.init: unknown loss 'loss_ba'; distill_losses defines \('loss_ab',\)",
        ),
        (stage_of('main', without_losses=['loss_x']), "stages.main: unknown loss 'loss_x'"),
        (stage_of(losses=[], student_loss=False), 'stages.init computes nothing'),
        (
            stage_of(losses=dict(loss_ab='guess')),
            "stages.init.losses.loss_ab is 'guess', which is not a method of ABLoss",
        ),
        (
            stage_of(trainable=['pupil']),
            "stages.init has 'pupil', which is not a module: .*the student is `architecture`",
        ),
        (stage_of(frozen=['distiller.x']), "stages.init has 'distiller.x'"),
        (stage_of(trainable=['teacher.head']), 'the teacher never trains'),
        (stage_of(trainable=['architecture.neck']), 'trains no parameter'),
    ],
)
def test_stages_that_cannot_be(stages, text):
    with pytest.raises((TypeError, ValueError), match=text):
        _build_with(stages)


def test_a_single_name_is_a_list_of_one_and_none_is_all():
    model = _build_with(stage_of(trainable='architecture.head'))
    model.set_stage('init')
    assert trained(model) == {'architecture.head.fc.weight', 'architecture.head.fc.bias'}
    stages = stage_of(losses='loss_ab', trainable=None)
    stages[1].update(losses=['loss_ab'], without_losses='loss_ab')
    model = _build_with(stages)
    model.set_stage('init')
    everything = trained(model)
    assert model.active_losses() == dict(loss_ab='forward')
    model.set_stage('main')
    assert model.active_losses() == {}
    assert trained(model) == everything and len(everything) > 4
