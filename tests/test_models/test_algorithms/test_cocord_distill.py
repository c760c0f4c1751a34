"""CoCoRDDistill: two steps of the public code, views, records, averages."""

import copy
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.model import BaseModule
from mmengine.optim import OptimWrapper
from mmengine.runner import BaseLoop
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from mmpretrain.structures import DataSample
from torch import nn

from crd_plugin.engine import CoCoRDHook
from crd_plugin.models.losses import cocord_loss
from crd_plugin.registry import MODELS
from tests import golden, small_runs
from tests.cocord import NETWORKS, model_config
from tests.config_files import fragment

CASES = ('default', 'nowrap', 'exact_fit')
# Parts of the public code and of ours.
PARTS = {
    's_q_encoder': 'architecture',
    's_k_encoder': 'slow_student',
    't_k_encoder': 'teacher',
    's_q_proj': 'distiller.distill_losses.loss_cocord.projector',
    's_k_proj': 'distiller.distill_losses.loss_cocord.slow_projector',
    't_k_proj': 'distiller.distill_losses.loss_cocord.teacher_projector',
    's_q_pred': 'distiller.distill_losses.loss_cocord.predictor',
}
QUEUE = 'distiller.distill_losses.loss_cocord.queue.'


@MMPRETRAIN_MODELS.register_module()
class VectorNet(BaseModule):
    """The encoder of the reference: ``ReLU(BN(lin(x)))`` of vectors."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.lin = nn.Linear(inputs, width)
        self.bn = nn.BatchNorm1d(width)

    def forward(self, x: torch.Tensor) -> tuple:
        return (self.bn(self.lin(x)).relu(),)


@MMPRETRAIN_MODELS.register_module()
class TinyInplaceNet(small_runs.TinyNet):
    """Has a layer that works in place."""

    def __init__(self, width: int, **kwargs) -> None:
        super().__init__(width, **kwargs)
        self.act = nn.ReLU(inplace=True)


def our_name(key):
    part, _, rest = key.partition('.')
    if part in ('queue', 'queue_ptr'):
        return QUEUE + dict(queue='keys', queue_ptr='pointer')[part]
    if part.endswith('_encoder'):
        rest = f'head.{rest}' if rest.startswith('fc.') else f'backbone.{rest}'
    return f'{PARTS[part]}.{rest}'


def states(arrays, prefix):
    found = {key[len(prefix) :]: v for key, v in arrays.items() if key.startswith(prefix)}
    ours = dict(queue=lambda value: value.T, queue_ptr=lambda value: value[0])
    return {our_name(key): ours.get(key, lambda v: v)(value) for key, value in found.items()}


def reference_model(arrays):
    inputs, width, classes = (int(arrays[key]) for key in ('in_dim', 'feat_dim', 'n_cls'))
    net = dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(type='mmpretrain.VectorNet', inputs=inputs, width=width),
        head=dict(type='mmpretrain.LinearClsHead', num_classes=classes, in_channels=width),
    )
    loss = dict(
        hidden_dim=int(arrays['hidden_dim']),
        embed_dim=int(arrays['embedding_dim']),
        predictor_dim=int(arrays['pred_dim']),
        queue_size=int(arrays['K']),
        temperature=float(arrays['T']),
        slow_momentum=float(arrays['b_m']),
        teacher_momentum=float(arrays['m']),
    )
    networks = dict(architecture=net, teacher=net, input_shape=(inputs,))
    model = MODELS.build(model_config(networks, **loss))
    # All of it: that no key is left over is the first comparison.
    model.load_state_dict(states(arrays, 'init.'))
    return model.train()


def make_runner(model, hook):
    """The part of a runner that the hook looks at."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    runner = SimpleNamespace(
        model=model,
        hooks=[hook],
        logger=MMLogger.get_instance('cocord'),
        message_hub=mock.Mock(),
        optim_wrapper=OptimWrapper(optimizer),
        _resume=False,
    )
    runner._train_loop = runner.train_loop = mock.Mock(spec=BaseLoop, dataloader=[None])
    hook.before_run(runner)
    hook.before_train(runner)
    return runner


def assert_states(model, expected):
    own = model.state_dict()
    for key, value in expected.items():
        golden.assert_value(own[key], value)


def record_calls(model):
    loss, calls = model.cocord_loss, {}
    parts = dict(s_q_pred=loss.predictor, s_k=loss.slow_projector, s_output=model.student.head.fc)
    for name, part in parts.items():
        calls[name] = []
        part.register_forward_hook(
            lambda module, inputs, output, name=name: calls[name].append(output)
        )
    return calls


@pytest.mark.parametrize('case', CASES)
def test_two_steps_of_the_public_code(case):
    """ShipengFu/CoCoRD: logits, losses, states, gradients, SGD."""
    arrays = golden.load(f'cocord_{case}')
    model = reference_model(arrays)
    calls = record_calls(model)
    hook = CoCoRDHook()
    runner = make_runner(model, hook)
    for step in ('step1.', 'step2.'):
        views = [arrays[step + f'im_{view}'] for view in ('sq', 'sk', 'tk')]
        samples = [DataSample().set_gt_label(int(label)) for label in arrays[step + 'labels']]
        for outputs in calls.values():
            outputs.clear()
        hook.before_train_iter(runner, 0)
        with (
            mock.patch.object(
                cocord_loss, 'queue_logits', wraps=cocord_loss.queue_logits
            ) as logits,
            mock.patch.object(
                cocord_loss, 'prediction_distance', wraps=cocord_loss.prediction_distance
            ) as distance,
        ):
            losses = model(views, samples, mode='loss')
        # What the forward pass gives.
        args, kwargs = logits.call_args
        golden.assert_value(cocord_loss.queue_logits(*args, **kwargs), arrays[step + 'ctr_logits'])
        for i, (args, _) in enumerate(distance.call_args_list, 1):
            golden.assert_value(
                cocord_loss.prediction_distance(*args), arrays[step + f'pred_per_sample_{i}']
            )
        for name, outputs in calls.items():
            golden.assert_value(outputs[0], arrays[step + name])
            if name != 's_output':
                golden.assert_value(outputs[1], arrays[step + f'{name}_2'])
        terms = model.cocord_loss.terms
        golden.assert_value(terms.contrast, arrays[step + 'loss_ctr'])
        golden.assert_value(terms.prediction, arrays[step + 'loss_pred'])
        golden.assert_value(losses['student.loss'], arrays[step + 'loss_cls'])
        total = sum(losses.values())
        golden.assert_value(total, arrays[step + 'loss_total'])
        first = arrays[step + 'ctr_logits'].argmax(1) == 0
        assert float(terms.top1) == pytest.approx(100 * first.float().mean())

        # Averages and batch norm now, the queue after the step.
        after = states(arrays, step + 'after_forward.')
        written = {key: after.pop(key) for key in list(after) if QUEUE in key}
        assert len(written) == 2
        assert_states(model, after)
        runner.optim_wrapper.optimizer.zero_grad()
        total.backward()
        gradients = {
            name: parameter.grad
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        expected = states(arrays, step + 'grad.')
        assert set(gradients) == set(expected)
        for name, gradient in gradients.items():
            before_norm = name.endswith(('lin.bias', '.0.bias'))
            if before_norm:  # zero but for rounding
                torch.testing.assert_close(gradient, expected[name], rtol=0, atol=2e-5)
            else:
                golden.assert_grad(gradient, expected[name])
        runner.optim_wrapper.step()
        hook.after_train_iter(runner, 0)
        assert_states(model, written)
        # 2e-5 of a gradient becomes 1e-6 of a weight.
        assert_states(model, states(arrays, step + 'after_sgd.'))


def _build(**changes):
    return MODELS.build({**model_config(), **copy.deepcopy(changes)})


def _batch(size=6):
    images, samples = small_runs.batch(size)
    return [images, *torch.randn(2, *images.shape)], samples


@pytest.mark.parametrize('given', [False, True], ids=['initialised', 'student_ckpt'])
def test_slow_student_is_a_copy_without_gradient(tmp_path, given):
    weights = MODELS.build(small_runs.net(6)).state_dict()
    weights['backbone.bn.running_mean'] += 3
    torch.save(dict(state_dict=weights), tmp_path / 'student.pth')
    net = small_runs.net(6)
    net['backbone']['type'] = 'mmpretrain.TinyInplaceNet'
    model = _build(architecture=net, student_ckpt=str(tmp_path / 'student.pth') if given else None)
    model.init_weights()
    assert not model.slow_student.backbone.act.inplace  # it would overwrite a record
    student, slow = model.student.state_dict(), model.slow_student.state_dict()
    assert torch.equal(student['head.fc.weight'], weights['head.fc.weight']) is given
    assert set(student) == set(slow)
    for key, value in student.items():
        assert torch.equal(value, slow[key]), key
        assert value.data_ptr() != slow[key].data_ptr()
    assert not any(p.requires_grad for p in model.slow_student.parameters())
    assert model.train().slow_student.training and not model.teacher.training


def test_slow_student_is_as_fast_as_the_student():
    """Layout and compiler; the numbers are those of the plain model."""
    plain = _build(architecture=small_runs.net(6)).train()
    fast = _build(
        architecture=small_runs.net(6), channels_last=True, compile=dict(backend='eager')
    ).train()
    fast.load_state_dict(plain.state_dict())
    for net in (fast.student, fast.slow_student):
        assert net.backbone.conv.weight.is_contiguous(memory_format=torch.channels_last)
        assert net.backbone._compiled_call_impl is not None
    views, samples = _batch()
    expected, found = (model(views, samples, mode='loss') for model in (plain, fast))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_slow_student_sees_the_view_of_the_student():
    model, seen = _build(student_view=dict(type='crd_plugin.ResizeView', size=4)), []
    for net in (model.student, model.slow_student, model.teacher):
        net.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0].size(-1)))
    model(*_batch(), mode='loss')
    assert seen == [8, 4, 4, 4, 4]


def test_kd_beside_it_reads_the_first_view_and_the_teachers():
    model = MODELS.build(model_config(NETWORKS, fragment('kd'))).eval()
    views, samples = _batch()
    losses = model(views, samples, mode='loss')
    with torch.no_grad():
        expected = model.distiller.distill_losses['loss_kd'](
            model.student(views[0]), model.teacher(views[2])
        )
    torch.testing.assert_close(losses['distill.loss_kd'], expected)
    assert set(losses) == {'student.loss', 'distill.loss_kd', 'distill.loss_cocord'}


def test_stopped_distillation_is_plain_training():
    model = _build().train()
    model.distillation_stopped = True
    before = copy.deepcopy(model.slow_student.state_dict())
    losses = model(*_batch(), mode='loss')
    assert set(losses) == {'student.loss'}
    assert int(model.student.backbone.bn.num_batches_tracked) == 1
    model.student.backbone.conv.weight.data += 1
    model.update_averages()
    for key, value in model.slow_student.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize('width', [6, 12])
def test_widths_are_inferred_without_a_trace(width):
    model = _build(teacher=small_runs.net(width))
    loss = model.cocord_loss
    assert loss.sizes == dict(s_channels=(6,), t_channels=(width,))
    assert isinstance(loss.connector, nn.Identity) is (width == 6)
    for net in (model.student, model.slow_student):
        assert int(net.backbone.bn.num_batches_tracked) == 0
        assert net.training
    # The pass that looked for widths is not made again.
    model.train()(*_batch(), mode='loss')
    records = model.distiller.student_recorders.get_recorder('feat')
    assert len(records.data_buffer) == 4


def test_number_of_views():
    model, images = _build().train(), torch.zeros(2, 3, 8, 8)
    found = [(images, 'single images'), ([images] * 2, '2 views')]
    for inputs, text in found:
        with pytest.raises(
            ValueError,
            match=f'CoCoRDDistill was given {text}, expected 3 views.*crd_plugin.MultiViewPipeline',
        ):
            model(inputs, _batch(2)[1], mode='loss')


def test_distillers_and_networks_that_do_not_fit():
    two, unmapped, late = (model_config()['distiller'] for _ in '123')
    two['distill_losses']['loss_b'] = two['distill_losses']['loss_cocord']
    unmapped['loss_forward_mappings'] = {}
    late['loss_forward_mappings']['loss_cocord']['slow_feats']['record_idx'] = 4
    mixing = small_runs.net(6)
    mixing['data_preprocessor']['batch_augments'] = dict(
        augments=[dict(type='mmpretrain.Mixup', alpha=0.2)]
    )
    for changes, text in (
        (dict(distiller=two), 'has 2 losses of type crd_plugin.CoCoRDLoss'),
        (dict(distiller=unmapped), 'loss_forward_mappings has no loss_cocord'),
        (dict(distiller=late), "'record_idx': 4.* not recorded"),
        (dict(architecture=mixing), 'batch_augments mixes images'),
    ):
        with pytest.raises(ValueError, match=text):
            _build(**changes)
