"""Several methods in one distiller: sums of losses, shared recorders, training steps."""

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmpretrain.structures import DataSample

from crd_plugin.cli.dry_run import dry_run_file
from crd_plugin.fragments import join
from crd_plugin.models import MemoryBank
from crd_plugin.registry import MODELS
from tests.config_files import BASE, parsed

PAIR = parsed(BASE / 'pairs' / 'resnet14_resnet8w4_digits.py').pair
METHODS = ('fitnet', 'at', 'sp', 'cc', 'vid', 'rkd', 'pkt', 'nst')
COMBINATIONS = [
    'fitnet crd',
    'at kd',
    'crd dkd',
    'crd lskd',
    'rrd kd',
    *(f'{method} crd kd' for method in METHODS),
]
# What is hooked in the student for each recorder.
SOURCES = dict(stages='backbone', feat='head.fc', logits='head')


pytestmark = pytest.mark.usefixtures('mmpretrain_scope')


def file_of(method):
    return BASE / 'distillers' / f'{method}.py'


def composed(methods):
    return join(PAIR, *(parsed(file_of(method))[method] for method in methods.split()))


def build(cfg):
    """The model in training mode, its banks with forty rows."""
    cfg = copy.deepcopy(cfg)
    cfg.teacher_ckpt = None
    for name in {'loss_crd', 'loss_cktf'} & set(cfg.distiller.distill_losses):
        cfg.distiller.distill_losses[name].num_negatives = 16
    model = MODELS.build(cfg)
    for module in model.modules():
        if isinstance(module, MemoryBank):
            module.resize(40, torch.arange(40) % 4, seed=0)
    return model.train()


def losses_of(model, size=8):
    """Losses of one batch out of forty samples; the same negatives are drawn each time."""
    samples = []
    for i in range(size):
        sample = DataSample().set_gt_label(i % 4)
        sample.set_metainfo(dict(sample_idx=i))
        samples.append(sample)
    inputs = torch.randn(size, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    return model(inputs, samples, mode='loss')


def gradients(model, value):
    """Gradients of all that is trained, without parameters that a loss does not reach."""
    parameters = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    grads = torch.autograd.grad(
        value, list(parameters.values()), allow_unused=True, retain_graph=True
    )
    return {name: grad for name, grad in zip(parameters, grads, strict=True) if grad is not None}


@pytest.mark.parametrize('methods', COMBINATIONS)
def test_sum_of_the_losses_alone(methods):
    torch.manual_seed(1)
    joined = composed(methods)
    model = build(joined)
    state = copy.deepcopy(model.state_dict())
    losses = losses_of(model)
    names = [f'loss_{method}' for method in methods.split()]
    assert set(losses) == {'student.loss', *(f'distill.{name}' for name in names)}
    total = gradients(model, sum(losses[f'distill.{name}'] for name in names))
    expected = {}
    for method, name in zip(methods.split(), names, strict=True):
        cfg = composed(method)
        # With the weight that it has beside the others.
        cfg.distiller.distill_losses[name] = joined.distiller.distill_losses[name]
        single = build(cfg)
        single.load_state_dict({key: state[key] for key in single.state_dict()})
        value = losses_of(single)[f'distill.{name}']
        torch.testing.assert_close(losses[f'distill.{name}'], value)
        grads = gradients(single, value)
        assert any(key.startswith('architecture.') for key in grads)
        for key, grad in grads.items():
            expected[key] = expected.get(key, 0) + grad
    assert set(total) == set(expected)  # regressors and connectors, too
    for key, grad in total.items():
        scale = float(expected[key].abs().max())
        torch.testing.assert_close(grad, expected[key], rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize(
    'methods, recorders',
    [
        ('fitnet crd', {'stages', 'feat', 'ids', 'labels'}),
        ('sp crd kd', {'stages', 'feat', 'logits', 'ids', 'labels'}),
        ('at kd', {'stages', 'logits'}),
    ],
)
def test_recorders_are_shared(methods, recorders):
    model = build(composed(methods))
    distiller = model.distiller
    sides = (
        (model.student, distiller.student_recorders, recorders),
        (model.teacher, distiller.teacher_recorders, recorders - {'ids', 'labels'}),
    )
    for net, manager, names in sides:
        assert set(manager.recorders) == names
        hooks = {
            name: len(module._forward_hooks)
            for name, module in net.named_modules()
            if module._forward_hooks
        }
        assert hooks == {SOURCES[name]: 1 for name in names if name in SOURCES}
        assert len(net._forward_pre_hooks) == len(names - set(SOURCES))
    losses_of(model)
    for _, manager, names in sides:
        for name in names:  # One record per step, none twice.
            assert len(manager.get_recorder(name).data_buffer) == 1


def leaf(methods, path):
    """Write the config of a user who joins some methods."""
    settings = 'digits_b20-100e'
    methods = methods.split()
    if {'ab', 'ft'} & set(methods):
        settings = 'digits_b20-30e-100e'
    if 'cocord' in methods:
        settings += '_3views'
    bases = [BASE / 'settings' / f'{settings}.py', BASE / 'pairs' / 'resnet14_resnet8w4_digits.py']
    bases = [str(base) for base in (*bases, *map(file_of, methods))]
    path.write_text(
        f'_base_ = {bases}\n'
        'from crd_plugin.fragments import join\n\n'
        f'model = join(_base_.pair, {", ".join(f"_base_.{method}" for method in methods)})\n'
    )
    return path


# CRD+KD, CKTF+KD and CoCoRD+KD are leaves, which tests/test_configs.py runs.
@pytest.mark.parametrize(
    'methods', ['crd at', 'at sp', 'cktf crd', 'cocord crd', 'fitnet crd', 'ab crd', 'ft kd']
)
def test_dry_run(methods, tmp_path):
    path = leaf(methods, tmp_path / 'leaf.py')
    report = dry_run_file(str(path), {'model.teacher_ckpt': None, 'train_dataloader.batch_size': 4})
    assert report.problems == []
    losses = {row.name.rpartition('loss_')[2]: row for row in report.losses if row.summed}
    assert set(methods.split()) <= set(losses)
    assert all(losses[method].student > 0 for method in methods.split())


def test_bank_and_queue_in_one_run(tmp_path):
    """CoCoRD and CRD train together, and both hooks do their part."""
    cfg = Config.fromfile(leaf('cocord crd', tmp_path / 'leaf.py'))
    cfg.merge_from_dict(
        {
            'work_dir': str(tmp_path),
            'model.teacher_ckpt': None,
            'train_dataloader.dataset.dataset.num_train_per_class': 6,
            'model.distiller.distill_losses.loss_crd.num_negatives': 16,
            'train_cfg.max_epochs': 1,
            'param_scheduler.end': 1,
            'default_hooks.checkpoint.save_best': None,
            # A list of the user's own does not remove the hooks that the model needs.
            'custom_hooks': [dict(type='EmptyCacheHook')],
        }
    )
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    runner = Runner.from_cfg(cfg)
    before = copy.deepcopy(runner.model.state_dict())
    runner.train()
    losses = runner.model.distiller.distill_losses
    bank, queue = losses['loss_crd'].bank, losses['loss_cocord'].queue
    assert bank.num_samples == 60 and bank.has_z and bank.pending is None
    assert queue.pending is None and int(queue.pointer) == 60 % 40
    after = runner.model.state_dict()
    slow = [key for key in after if key.startswith('slow_student.') and key.endswith('weight')]
    assert slow and not any(torch.equal(before[key], after[key]) for key in slow)
