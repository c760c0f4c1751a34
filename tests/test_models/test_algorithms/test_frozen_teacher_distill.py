"""FrozenTeacherDistill: what it promises about teacher and widths."""

import copy
from unittest import mock

import pytest
import torch
from mmengine.runner import load_checkpoint
from mmpretrain.structures import DataSample

from crd_plugin.registry import MODELS
from tests import small_runs


def _build(**changes):
    cfg = small_runs.model(num_samples=20, exclude='instance')
    return MODELS.build({**cfg, **copy.deepcopy(changes)})


def _losses(model, batch=None):
    inputs, samples = batch or small_runs.batch()
    return model(inputs, samples, mode='loss')


def _save(model, path):
    torch.save(dict(state_dict=model.state_dict()), path)
    return str(path)


@pytest.fixture
def teacher():
    """A teacher with weights that no fresh one has."""
    torch.manual_seed(11)
    return MODELS.build(small_runs.net(12))


def test_teacher_does_not_change_and_is_not_random():
    model = _build(teacher=small_runs.net(12, dropout=0.9))
    for mode in (False, True):
        assert model.train(mode) is model and model.student.training is mode
        assert not any(module.training for module in model.teacher.modules())
    before = copy.deepcopy(model.teacher.state_dict())
    batch, features = small_runs.batch(), []
    for _ in range(2):
        model.distiller.distill_losses['loss_crd'].bank.discard()
        _losses(model, batch)
        features.append(model.distiller.get_record('feat', from_student=False)[0])
    assert torch.equal(*features)
    for name, value in model.teacher.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_gradient_reaches_student_and_connectors_only():
    model = _build().train()
    sum(_losses(model).values()).backward()
    for name, parameter in model.named_parameters():
        if name.startswith('teacher.'):
            assert parameter.grad is None and not parameter.requires_grad
        else:
            assert parameter.grad.abs().sum() > 0, name


def test_loss_of_the_teachers_head_is_not_computed(monkeypatch):
    model = _build().train()
    seen = []

    def refuse(*args, **kwargs):
        raise AssertionError('the loss of the teacher was computed')

    monkeypatch.setattr(model.teacher, 'loss', refuse)
    monkeypatch.setattr(model.teacher.head, 'loss', refuse)
    # Its head runs, since logits may be recorded.
    model.teacher.head.fc.register_forward_hook(lambda *args: seen.append(args[2].requires_grad))
    assert set(_losses(model)) == {'student.loss', 'distill.loss_crd'}
    assert seen == [False]


def test_teacher_trainable_is_refused():
    message = 'teacher_trainable is True, but .* no teacher; use mmrazor.SingleTeacherDistill'
    with pytest.raises(ValueError, match=message):
        _build(teacher_trainable=True)


def test_random_teacher_causes_a_warning(warned, tmp_path, teacher):
    _build(teacher_ckpt=_save(teacher, tmp_path / 'teacher.pth')).init_weights()
    _build()  # To be tested: its weights come later.
    assert not warned
    _build().init_weights()
    assert warned[0].startswith('teacher_ckpt is not given: the teacher has random')


@pytest.mark.parametrize('bare', [False, True])
@pytest.mark.parametrize('role, width', [('teacher', 12), ('student', 6)])
def test_checkpoints_are_loaded_and_kept(tmp_path, role, width, bare):
    torch.manual_seed(11)
    weights = MODELS.build(small_runs.net(width)).state_dict()
    torch.save(weights if bare else dict(state_dict=weights), tmp_path / 'net.pth')
    model = _build(**{f'{role}_ckpt': str(tmp_path / 'net.pth')})
    model.init_weights()  # As a runner does.
    for name, value in getattr(model, role).state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert all(p.requires_grad == (role == 'student') for p in getattr(model, role).parameters())
    del weights['backbone.conv.weight']
    torch.save(weights, tmp_path / 'net.pth')
    config = dict(teacher='teacher', student='architecture')[role]
    with pytest.raises(
        ValueError,
        match=f'^{role}_ckpt=.*net.pth does not fit the {role}: missing backbone.conv.weight; '
        f'.* as model.{config} .depth, widths, number of classes.',
    ):
        _build(**{f'{role}_ckpt': str(tmp_path / 'net.pth')})


def test_checkpoint_of_a_plain_network_is_refused(tmp_path, teacher):
    """It would leave random weights behind a warning of the loader."""
    path = _save(teacher, tmp_path / 'plain.pth')
    with pytest.raises(ValueError, match='no weights under "architecture.".*student_ckpt'):
        load_checkpoint(_build(), path, map_location='cpu')


def test_inferred_widths_equal_given_ones(monkeypatch):
    cfg = small_runs.distiller(num_samples=20, exclude='instance')
    inferred = _build(distiller=cfg).train()
    cfg = copy.deepcopy(cfg)
    for side, width in (('s', 6), ('t', 12)):
        cfg['connectors'][side]['in_channels'] = width
    with monkeypatch.context() as patch:
        # Given widths need no forward pass.
        patch.setattr(small_runs.TinyNet, 'forward', None)
        given = _build(distiller=cfg).train()
    inferred.load_state_dict(given.state_dict())
    batch, losses = small_runs.batch(), []
    for model in (inferred, given):
        torch.manual_seed(0)
        losses.append(_losses(model, batch)['distill.loss_crd'])
    assert torch.equal(*losses)


@pytest.mark.parametrize('place', [dict(data_idx=3), dict(record_idx=1)])
def test_record_that_does_not_exist(place):
    cfg = small_runs.distiller(num_samples=20, exclude='instance')
    cfg['loss_forward_mappings']['loss_crd']['s_feats'].update(place)
    with pytest.raises(ValueError, match='not recorded.*another data_idx'):
        _build(distiller=cfg)


def test_connectors_in_a_row_are_inferred_one_after_another():
    cfg = small_runs.distiller(num_samples=20, exclude='instance')
    first = dict(type='crd_plugin.EmbeddingConnector', embed_dim=5)
    cfg['connectors']['s'] = [first, cfg['connectors']['s']]
    model = _build(distiller=cfg).train()
    one, two = model.distiller.connectors['s']
    assert (one.in_channels, two.in_channels) == (6, 5)
    assert _losses(model)['distill.loss_crd'].isfinite()


def test_inference_changes_nothing_else(monkeypatch):
    modes = []
    forward = small_runs.TinyNet.forward

    def watch(self, x):
        modes.append((self.training, torch.is_grad_enabled()))
        return forward(self, x)

    monkeypatch.setattr(small_runs.TinyNet, 'forward', watch)
    model = _build()
    assert modes == [(False, False)] * 2  # teacher and student, once each
    assert torch.is_grad_enabled()
    assert model.training and model.student.training
    assert all(module.training for module in model.student.modules())
    for net in (model.student, model.teacher):
        bn = net.backbone.bn
        assert torch.equal(bn.running_mean, torch.zeros(bn.num_features))
        assert torch.equal(bn.running_var, torch.ones(bn.num_features))
        assert bn.num_batches_tracked == 0
    assert all(p.requires_grad and p.grad is None for p in model.distiller.parameters())


@pytest.mark.parametrize('input_shape', [(1, 8, 8), (3, 8)])
def test_input_shape_that_does_not_fit(input_shape):
    with pytest.raises(ValueError) as caught:
        _build(input_shape=input_shape)
    message = str(caught.value)
    assert message.startswith(f'input_shape={input_shape} does not go through the teacher: ')
    assert 'set model.input_shape to channels, height and width of one image, or' in message


def test_losses_that_are_left_out():
    model = _build().train()
    model.distillation_stopped = True
    assert set(_losses(model)) == {'student.loss'}
    assert model.distiller.distill_losses['loss_crd'].bank.pending is None
    model = _build(calculate_student_loss=False).train()
    assert set(_losses(model)) == {'distill.loss_crd'}


def test_samples_without_labels():
    """In-batch CRD of a student without a loss of its own."""
    cfg = small_runs.model(num_negatives=None, negatives='batch', exclude='instance')
    distiller = cfg['distiller']
    for name in ('ids', 'labels'):
        del distiller['student_recorders'][name]
    for name in ('sample_idx', 'labels'):
        del distiller['loss_forward_mappings']['loss_crd'][name]
    model = MODELS.build(dict(cfg, calculate_student_loss=False)).train()
    losses = model.loss(torch.rand(4, 3, 8, 8), [DataSample()] * 4)
    assert set(losses) == {'distill.loss_crd'}
    losses['distill.loss_crd'].backward()
    assert model.student.backbone.conv.weight.grad.abs().sum() > 0


def test_a_loss_of_the_student_needs_labels():
    images, samples = small_runs.batch()
    bare = [DataSample(metainfo=sample.metainfo) for sample in samples]
    with pytest.raises(ValueError, match='have no gt_label, .*calculate_student_loss=False'):
        _build().train().loss(images, bare)


def test_student_that_is_not_trained():
    model = _build(student_trainable=False).train()
    losses = _losses(model)
    assert not losses['student.loss'].requires_grad
    losses['distill.loss_crd'].backward()
    assert all(p.grad is None for p in model.student.parameters())
    weight = model.distiller.connectors['s'].linear.weight
    assert weight.grad.abs().sum() > 0


def test_deliveries_record_the_teacher_and_override_the_student():
    model, seen = _build().train(), []
    model.distiller.deliveries = manager = mock.MagicMock()
    for role in ('teacher', 'student'):
        getattr(model, role).register_forward_pre_hook(
            lambda *args, role=role: seen.append(
                (role, manager.override_data, manager.__enter__.call_count)
            )
        )
    _losses(model)
    assert seen == [('teacher', False, 1), ('student', True, 2)]
    assert manager.__exit__.call_count == 2
