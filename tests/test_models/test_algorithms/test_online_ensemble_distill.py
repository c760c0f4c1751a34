"""OnlineEnsembleDistill: losses, gate, predictions, checkpoints, errors."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from mmengine.logging import MessageHub
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from mmpretrain.structures import DataSample
from torch import nn

from crd_plugin.registry import MODELS
from tests import golden

TYPE = 'crd_plugin.OnlineEnsembleDistill'


@MMPRETRAIN_MODELS.register_module()
class OneStage(BaseModule):
    """A convolution behind a trunk that is its input."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Identity()
        self.layer3 = nn.Conv2d(in_channels, width, 3, 2, 1)

    def forward(self, x):
        return (self.layer3(self.stem(x)),)


pytestmark = pytest.mark.usefixtures('mmpretrain_scope')


def net(**head):
    """A ResNet-8 of 4, 4, 8 and 16 channels for five classes."""
    return dict(
        type='ImageClassifier',
        backbone=dict(type='crd_plugin.CIFARResNet', depth=8, stem_channels=4, base_channels=4),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(
            type='LinearClsHead',
            num_classes=5,
            in_channels=16,
            loss=dict(type='CrossEntropyLoss'),
            **head,
        ),
    )


def config(**changes):
    return {
        **dict(type=TYPE, architecture=net(), branch_from='backbone.layer3', input_shape=(3, 8, 8)),
        **changes,
    }


def build(seed=0, **changes):
    torch.manual_seed(seed)
    model = MODELS.build(config(**changes))
    # Logits that differ, and a gate that is not one third each.
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def batch(size=6, dtype=torch.float32, seed=5):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 3, 8, 8, generator=generator).to(dtype)
    return images, [DataSample().set_gt_label(i % 5) for i in range(size)]


def labels_of(samples):
    return torch.cat([sample.gt_label for sample in samples])


def summed(losses):
    return sum(value for key, value in losses.items() if 'loss' in key)


def _log_softmax(row, tau=1.0):
    return row / tau - torch.exp(row / tau).sum().log()


def looped_loss(model, images, labels):
    """Compute the objective as it stands in the paper, sample by sample.

    Each branch is a whole network, with the weights of the trunk.
    """
    whole, feature, logits = MODELS.build(net()).to(images.dtype).train(), [], []
    whole.backbone.layer3.register_forward_pre_hook(lambda module, args: feature.append(args[0]))
    trunk = dict(model.architecture.named_parameters())
    for branch in (model.architecture, *model.branches):
        weights = {**trunk, **dict(branch.named_parameters())}
        logits.append(torch.func.functional_call(whole, weights, (images, None, 'tensor')))
    fc, bn, size = model.gate.fc, model.gate.bn, len(labels)
    # Pooling and FC, then the statistics of the batch norm.
    scores = [fc.weight @ (x.flatten(1).sum(1) / x[0].numel()) + fc.bias for x in feature[0]]
    mean = sum(scores) / size
    variance = sum((score - mean) ** 2 for score in scores) / size
    total = 0.0
    for b, label in enumerate(labels):
        score = bn.weight * (scores[b] - mean) / (variance + bn.eps).sqrt() + bn.bias
        gate = torch.exp(score.clamp(min=0))
        rows = [one[b] for one in logits]
        ensemble = sum(g / gate.sum() * row for g, row in zip(gate, rows))
        for row in rows:
            total = total - model.branch_weight * _log_softmax(row)[label]
        total = total - model.ensemble_weight * _log_softmax(ensemble)[label]
        taught = _log_softmax(ensemble.detach() if model.detach_ensemble else ensemble, model.tau)
        for row in rows:
            gap = taught - _log_softmax(row, model.tau)
            total = total + model.kl_weight * model.tau**2 * (taught.exp() * gap).sum()
    return total / size


def test_numbers_of_the_original():
    """Forward pass of its three branches and gate, its losses and gradients.

    Made by running Lan1991Xu/ONE_NeurIPS2018 @ 54afde3, ``ONE_ResNet`` and
    ``KLLoss``, with an identity as trunk and a convolution as each branch.
    """
    case = golden.load('online_kd')
    feature, labels = case['feature'], case['labels']
    model = MODELS.build(
        config(
            architecture=dict(
                type='ImageClassifier',
                backbone=dict(type='OneStage', in_channels=4, width=6),
                neck=dict(type='GlobalAveragePooling'),
                head=dict(type='LinearClsHead', num_classes=10, in_channels=6),
            ),
            input_shape=(4, 16, 16),
        )
    ).train()
    names = {'gate.fc': 'control_v1', 'gate.bn': 'bn_v1'}
    for i in range(1, 4):
        prefix = f'branches.{i - 2}' if i > 1 else 'architecture'
        names[f'{prefix}.backbone.layer3'] = f'layer3_{i}'
        names[f'{prefix}.head.fc'] = f'classfier3_{i}'
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            module, _, kind = name.rpartition('.')
            parameter.copy_(case[f'param_{names[module]}.{kind}'])

    feature.requires_grad_()
    samples = [DataSample().set_gt_label(int(label)) for label in labels]
    losses = model(feature, samples, mode='loss')
    golden.assert_value(
        sum(value for key, value in losses.items() if key.endswith('.loss')), case['loss_cross']
    )
    golden.assert_value(losses['distill.loss_online_kd'], case['loss_kl'])
    summed(losses).backward()
    golden.assert_grad(feature.grad, case['grad_feature'])
    for name, parameter in parameters.items():
        module, _, kind = name.rpartition('.')
        if name == 'gate.fc.bias':  # batch norm takes it away
            assert parameter.grad.abs().max() < 1e-5
            continue
        golden.assert_grad(parameter.grad, case[f'grad_{names[module]}.{kind}'])

    model.predict_with = 'ensemble'
    golden.assert_value(model(feature), case['ensemble'])
    model.predict_with = 'branch'
    golden.assert_value(model(feature), case['logits'][0])


@pytest.mark.parametrize(
    'changes',
    [
        dict(),
        dict(num_branches=2, tau=1.5, detach_ensemble=False),
        dict(branch_weight=0.5, ensemble_weight=2.0, kl_weight=0.7),
    ],
)
def test_value_and_gradient_equal_loops_over_full_networks(changes):
    model = build(**changes).double().train()
    images, samples = batch(dtype=torch.float64)
    images.requires_grad_()
    value = summed(model(images, samples, mode='loss'))
    expected = looped_loss(model, images, labels_of(samples))
    assert value.dtype == torch.float64
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-10)
    trained = [images, *model.parameters()]
    found, wanted = (torch.autograd.grad(loss, trained) for loss in (value, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)


def test_names_and_parts_of_the_losses():
    model = build().train()
    images, samples = batch()
    losses = model(images, samples, mode='loss')
    parts = ['student', 'branch1', 'branch2', 'ensemble']
    assert list(losses) == [
        *(f'{part}.loss' for part in parts),
        'distill.loss_online_kd',
        'student.accuracy',
        'ensemble.accuracy',
    ]
    labels = labels_of(samples)
    logits, gates = model._all_logits(images)
    ensemble = sum(gates[:, i : i + 1] * one for i, one in enumerate(logits))
    for name, one in (('student', logits[0]), ('ensemble', ensemble)):
        torch.testing.assert_close(losses[f'{name}.loss'], F.cross_entropy(one, labels))
        right = (one.argmax(dim=1) == labels).double().mean()
        assert float(losses[f'{name}.accuracy']) == pytest.approx(100 * right)


def test_each_part_runs_once_and_gets_a_gradient():
    """DistributedDataParallel waits for each parameter, whatever the weights."""
    model = build(branch_weight=0, ensemble_weight=0).train()
    summed(model(*batch(), mode='loss')).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    counts = {
        int(value)
        for key, value in model.state_dict().items()
        if key.endswith('num_batches_tracked')
    }
    assert counts == {1}


def test_large_half_logits():
    """Losses are float32; the sum of exponents of float16 logits would overflow."""
    model = build().train()
    for net in (model.architecture, *model.branches):
        net.head.register_forward_hook(
            lambda module, args, logits: torch.linspace(-6e4, 6e4, 5).half().expand(6, 5)
        )
    losses = model(*batch(), mode='loss')
    assert {losses[key].dtype for key in losses if 'loss' in key} == {torch.float32}
    # All branches agree with the ensemble, and the last label has the largest logit.
    assert losses['distill.loss_online_kd'] == 0 and losses['student.loss'].isfinite()
    assert losses['student.accuracy'] == pytest.approx(100 / 6)


def test_mixed_labels_and_the_loss_of_the_config():
    smooth = net()
    smooth['head']['loss'] = dict(type='LabelSmoothLoss', label_smooth_val=0.2, num_classes=5)
    model = build(architecture=smooth).train()
    images, samples = batch()
    alone = model.architecture(images, samples, mode='loss')['loss']
    losses = model(images, samples, mode='loss')
    torch.testing.assert_close(losses['student.loss'], alone)

    model = build().train()
    scores = torch.rand(6, 5).softmax(dim=1)
    for sample, score in zip(samples, scores):
        sample.set_gt_score(score)
    losses = model(images, samples, mode='loss')
    expected = -(scores * model.architecture(images).log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(losses['student.loss'], expected)
    assert not any('accuracy' in key for key in losses)


@pytest.mark.parametrize(
    'epoch, expected',
    [
        # sigmoid_rampup(epoch, 80) of the original.
        (0, 0.006737946999085467),
        (40, 0.2865047968601901),
        (79, 0.9992190549705546),
        (250, 1.0),
        (None, 1.0),  # Without a runner.
    ],
)
def test_ramp_up(monkeypatch, epoch, expected):
    hub = MessageHub.get_instance(f'ramp-up-{epoch}')
    if epoch is not None:
        hub.update_info('max_iters', 300 * 7)
        hub.update_info('iter', epoch * 7)
    monkeypatch.setattr(MessageHub, 'get_current_instance', classmethod(lambda cls: hub))
    images, samples = batch()
    key = 'distill.loss_online_kd'
    plain, ramped = (
        build(ramp_up=ramp).train()(images, samples, mode='loss') for ramp in (0, 80 / 300)
    )
    torch.testing.assert_close(ramped[key], expected * plain[key])
    torch.testing.assert_close(ramped['ensemble.loss'], plain['ensemble.loss'])


def test_predictions():
    branch = build().eval()
    ensemble = build(predict_with='ensemble').eval()
    images, samples = batch()
    with torch.no_grad():
        own = branch.architecture(images)
        assert torch.equal(branch(images), own)
        logits, gates = ensemble._all_logits(images)
        joint = torch.einsum('bm,mbc->bc', gates, torch.stack(logits))
        torch.testing.assert_close(ensemble(images), joint)
        assert not torch.allclose(own, joint)
        for model, expected in ((branch, own), (ensemble, joint)):
            found = model(images, samples, mode='predict')
            scores = torch.stack([sample.pred_score for sample in found])
            torch.testing.assert_close(scores, expected.softmax(dim=1))
            for sample, given, score in zip(found, samples, scores):
                assert sample is given and 'gt_label' in sample
                assert sample.pred_label.tolist() == [int(score.argmax())]
            # Without annotations, as in inference.
            assert len(model(images, mode='predict')) == len(images)
            # One image needs no statistics of its batch, the losses of a validation neither.
            assert model(images[:1]).shape == (1, 5)
            assert model(images[:1], samples[:1], mode='loss')['ensemble.loss'] > 0


def test_branches_start_with_weights_of_their_own():
    torch.manual_seed(0)
    cfg = config()
    model = MODELS.build(cfg)
    assert cfg == config()
    weights = [one.backbone.layer3[0].conv1.weight for one in (model.architecture, *model.branches)]
    built = [one.detach().clone() for one in weights]
    model.init_weights()
    for one, other in itertools.combinations([*built, *weights], 2):
        assert (one - other).abs().max() > 0.01
    # By the backbone's init_cfg, fan-out: sqrt(2 / (16 * 9)).
    for one in weights:
        assert float(one.detach().std()) == pytest.approx(0.118, rel=0.15)


def test_keys_of_checkpoints():
    """Those of every earlier run; the branches have nothing of the trunk."""
    model = build()
    plain = list(model.architecture.state_dict())
    own = [key for key in plain if key.startswith(('backbone.layer3.', 'head.'))]
    assert own[0] == 'backbone.layer3.0.conv1.weight' and own[-1] == 'head.fc.bias'
    assert list(model.state_dict()) == [
        *(f'architecture.{key}' for key in plain),
        *(f'branches.{i}.{key}' for i in range(2) for key in own),
        *(f'gate.fc.{kind}' for kind in ('weight', 'bias')),
        *(f'gate.bn.{kind}' for kind in ('weight', 'bias', 'running_mean', 'running_var')),
        'gate.bn.num_batches_tracked',
    ]
    with pytest.raises(
        ValueError,
        match='no weights under "architecture.".*; test it with the config of the plain',
    ):
        model.load_state_dict(model.architecture.state_dict())


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(num_branches=1), 'num_branches is 1, expected at least 2'),
        (dict(ramp_up=80), r'ramp_up is 80, expected a fraction of the training in \[0, 1\]'),
        (dict(predict_with='both'), "predict_with is 'both', expected one of"),
        (dict(input_shape=(1, 8, 8)), r'input_shape=\(1, 8, 8\) does not go'),
        (dict(architecture={**net(), 'head': None}), 'architecture.head has no loss_module'),
        (dict(architecture=None), 'architecture is NoneType, expected the config of a network'),
    ],
)
def test_wrong_arguments(changes, message):
    with pytest.raises((TypeError, ValueError), match=message):
        MODELS.build(config(**changes))


def test_batches_that_cannot_be_trained_on():
    model = build().train()
    with pytest.raises(
        ValueError,
        match='has 1 sample; the batch norm of the gate needs 2. Set train_dataloader.drop_last',
    ):
        model(*batch(1), mode='loss')
    for samples in (None, [], [DataSample()] * 6):
        with pytest.raises(ValueError, match='neither gt_label nor gt_score'):
            model(batch()[0], samples, mode='loss')
