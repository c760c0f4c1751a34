"""Several methods in one distiller: sums of losses, shared recorders."""

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.structures import DataSample

from crd_plugin.cli.dry_run import run_dry
from crd_plugin.models import MemoryBank
from crd_plugin.registry import MODELS
from tests import small_runs

CONFIGS = small_runs.REPO / 'configs'
PAIR = 'resnet14_resnet8w4_b20-100e_digits'
METHODS = ('fitnet', 'at', 'sp', 'cc', 'vid', 'rkd', 'pkt', 'nst')
COMBINATIONS = [('fitnet', 'crd'), ('at', 'kd'), *((method, 'crd', 'kd') for method in METHODS)]
# What is hooked in the student for each recorder.
SOURCES = dict(stages='backbone', feat='neck', logits='head.fc')


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


def composed(methods, folder):
    """A leaf of the first method with one more base for each other."""
    path = CONFIGS / methods[0] / f'{methods[0]}_{PAIR}.py'
    for method in methods[1:]:
        base = CONFIGS / '_base_' / 'distillers' / f'with_{method}.py'
        leaf = folder / f'{method}.py'
        leaf.write_text(
            f'_base_ = [{str(path)!r}, {str(base)!r}]\n'
            f'model = dict(distiller=_base_.with_{method})\n'
        )
        path = leaf
    return Config.fromfile(path)


def alone(method, cfg):
    """The same networks with one of the methods only."""
    base = CONFIGS / '_base_' / 'distillers'
    if method in ('crd', 'kd'):
        distiller = Config.fromfile(base / f'with_{method}.py')[f'with_{method}']
    else:
        distiller = Config.fromfile(base / f'{method}.py').model.distiller
    cfg = copy.deepcopy(cfg)
    cfg.model.distiller = dict(distiller, type='mmrazor.ConfigurableDistiller')
    return cfg


def build(cfg):
    """The model in training mode, its bank with forty rows."""
    cfg = copy.deepcopy(cfg)
    cfg.model.pop('teacher_ckpt', None)
    losses = cfg.model.distiller.distill_losses
    if 'loss_crd' in losses:
        losses.loss_crd.num_negatives = 16
    model = MODELS.build(cfg.model)
    for module in model.modules():
        if isinstance(module, MemoryBank):
            module.resize(40, torch.arange(40) % 4, seed=0)
    return model.train()


def batch(size=8):
    """Random images of forty samples."""
    samples = []
    for i in range(size):
        sample = DataSample().set_gt_label(i % 4)
        sample.set_metainfo(dict(sample_idx=i))
        samples.append(sample)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, 3, 16, 16, generator=generator), samples


def losses_of(model):
    """Losses of one batch; CRD draws the same negatives each time."""
    torch.manual_seed(0)
    return model(*batch(), mode='loss')


def gradients(model, value):
    """Of all that is trained; None where a loss does not reach."""
    parameters = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    grads = torch.autograd.grad(
        value, list(parameters.values()), allow_unused=True, retain_graph=True
    )
    return {name: grad for name, grad in zip(parameters, grads) if grad is not None}


@pytest.mark.parametrize('methods', COMBINATIONS, ids='+'.join)
def test_sum_of_the_losses_alone(methods, tmp_path):
    cfg = composed(methods, tmp_path)
    torch.manual_seed(1)
    model = build(cfg)
    state = copy.deepcopy(model.state_dict())
    losses = losses_of(model)
    names = [f'distill.loss_{method}' for method in methods]
    assert set(losses) == {'student.loss', *names}
    total = gradients(model, sum(losses[name] for name in names))
    expected = {}
    for method, name in zip(methods, names):
        single = build(alone(method, cfg))
        single.load_state_dict({key: state[key] for key in single.state_dict()})
        value = losses_of(single)[name]
        torch.testing.assert_close(losses[name], value)
        grads = gradients(single, value)
        assert any(key.startswith('architecture.') for key in grads)
        for key, grad in grads.items():
            expected[key] = expected.get(key, 0) + grad
    assert set(total) == set(expected)
    for key, grad in total.items():
        scale = float(expected[key].abs().max())
        torch.testing.assert_close(grad, expected[key], rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize(
    'methods, recorders',
    [
        (('fitnet', 'crd'), {'stages', 'feat', 'ids', 'labels'}),
        (('sp', 'crd', 'kd'), {'stages', 'feat', 'logits', 'ids', 'labels'}),
        (('rkd', 'crd', 'kd'), {'feat', 'logits', 'ids', 'labels'}),
        (('at', 'kd'), {'stages', 'logits'}),
    ],
    ids=str,
)
def test_recorders_are_shared(methods, recorders, tmp_path):
    model = build(composed(methods, tmp_path))
    distiller = model.distiller
    sides = (
        (model.student, distiller.student_recorders, recorders),
        (model.teacher, distiller.teacher_recorders, recorders - {'ids', 'labels'}),
    )
    for net, manager, names in sides:
        assert set(manager.recorders) == names
        modules = dict(net.named_modules())
        hooks = {
            name: len(module._forward_hooks)
            for name, module in modules.items()
            if module._forward_hooks
        }
        assert hooks == {SOURCES[name]: 1 for name in names if name in SOURCES}
        assert len(net._forward_pre_hooks) == len(names - set(SOURCES))
    losses_of(model)
    for net, manager, names in sides:
        for name in names:  # One record a step, none twice.
            assert len(manager.get_recorder(name).data_buffer) == 1


def test_two_methods_on_the_same_maps_share_them(tmp_path):
    """A distiller merged in Python: AT and NST read one record."""
    cfg = composed(('at',), tmp_path)
    nst = Config.fromfile(CONFIGS / '_base_/distillers/nst.py').model
    cfg.merge_from_dict(dict(model=dict(distiller=nst.distiller)))
    model = build(cfg)
    assert len(model.student.backbone._forward_hooks) == 1
    losses = losses_of(model)
    records = [model.distiller.get_record('stages', from_student=side) for side in (True, False)]
    modules = model.distiller.distill_losses
    for name in ('loss_at', 'loss_nst'):
        assert torch.equal(losses[f'distill.{name}'], modules[name](*records))


def test_dry_run_of_a_composition(tmp_path):
    cfg = composed(('sp', 'crd', 'kd'), tmp_path)
    report = run_dry(cfg, use_teacher_ckpt=False, batch_size=4)
    assert report.problems == []
    values = {row.name: row for row in report.losses if row.summed}
    assert set(values) == {'student.loss', 'distill.loss_sp', 'distill.loss_crd', 'distill.loss_kd'}
    assert all(row.student > 0 for row in values.values())


def test_parts_of_both_methods_are_trained(tmp_path):
    """Regressor and connectors reach the optimizer and its checkpoint."""
    model = build(composed(('fitnet', 'crd'), tmp_path))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    start = 'distiller.distill_losses.loss_fitnet.regressor.'
    assert {f'{start}conv.weight', f'{start}bn.bias'} <= trained
    assert 'distiller.connectors.crd_student.linear.weight' in trained
    assert f'{start}bn.running_mean' in model.state_dict()
