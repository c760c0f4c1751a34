"""Tools of MMPretrain see the student; its depths count for layer-wise decay."""

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, init_default_scope
from mmpretrain.registry import MODELS

from tests import small_runs

DIGITS = '_b20-100e_digits.py'
PAIR = f'resnet14_resnet8w4{DIGITS}'
LEAVES = dict(
    FrozenTeacherDistill=f'crd/crd_{PAIR}',
    StagedDistill=f'ab/ab_{PAIR}',
    CoCoRDDistill=f'cocord/cocord_{PAIR}',
    OnlineEnsembleDistill=f'online-kd/online-kd_resnet8w4{DIGITS}',
)
VIT = dict(
    type='mmpretrain.ImageClassifier',
    backbone=dict(
        type='VisionTransformer',
        img_size=16,
        patch_size=8,
        arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=16),
    ),
    head=dict(type='VisionTransformerClsHead', num_classes=10, in_channels=16),
)


def build(kind, **changes):
    init_default_scope('mmpretrain')
    cfg = Config.fromfile(small_runs.REPO / 'configs' / LEAVES[kind]).model
    if 'teacher' in cfg:
        cfg.teacher_ckpt = None
    cfg.update(changes)
    return MODELS.build(cfg)


@pytest.mark.parametrize('kind', LEAVES)
def test_the_student_answers(kind):
    model = build(kind).eval()
    assert type(model).__name__ == kind
    student, images = model.architecture, torch.randn(2, 3, 16, 16)
    assert (model.backbone, model.neck, model.head) == (
        student.backbone,
        student.neck,
        student.head,
    )
    with torch.no_grad():
        assert torch.equal(model.extract_feat(images)[-1], student.extract_feat(images)[-1])
        stages = (net.extract_feat(images, stage='backbone') for net in (model, student))
        assert all(map(torch.equal, *stages))
        expected = student.predict(images)
        assert torch.equal(model(images, mode='tensor'), student(images, mode='tensor'))
        for found in (model.predict(images), model(images, mode='predict')):
            for a, b in zip(found, expected, strict=True):
                assert torch.equal(a.pred_score, b.pred_score)


def rates(model):
    constructor = OPTIM_WRAPPER_CONSTRUCTORS.build(
        dict(
            type='mmpretrain.LearningRateDecayOptimWrapperConstructor',
            optim_wrapper_cfg=dict(optimizer=dict(type='AdamW', lr=1.0)),
            paramwise_cfg=dict(layer_decay_rate=0.5),
        )
    )
    groups = constructor(model).optimizer.param_groups
    return {group['param_name']: group['lr'] for group in groups}


def test_depths_of_the_student_count():
    distiller = small_runs.distiller(num_samples=20, exclude='instance')
    distiller['student_recorders']['feat'] = dict(type='mmrazor.ModuleOutputs', source='backbone')
    model = MODELS.build(
        dict(
            type='crd_plugin.FrozenTeacherDistill',
            architecture=copy.deepcopy(VIT),
            teacher=small_runs.net(12),
            input_shape=(3, 16, 16),
            distiller=distiller,
        )
    )
    found, alone = rates(model), rates(model.student)
    assert {name: found[f'architecture.{name}'] for name in alone} == alone
    assert sorted(set(alone.values())) == [0.125, 0.25, 0.5, 1]
    others = {name: rate for name, rate in found.items() if not name.startswith('architecture.')}
    assert set(others.values()) == {1} and 'distiller.connectors.s.linear.weight' in others


def test_branches_have_the_depths_of_the_network():
    model = build('OnlineEnsembleDistill')
    model.architecture.backbone.get_layer_depth = lambda name, prefix: (
        len(name) if name.startswith(prefix) else 99,
        100,
    )
    for name in ('architecture.backbone.conv', 'branches.1.backbone.conv'):
        assert model.get_layer_depth(name) == (len('backbone.conv'), 100)
    assert model.get_layer_depth('gate.fc.weight') == (99, 100)
    with pytest.raises(NotImplementedError, match='its CIFARResNet of depth 8 does not know them'):
        rates(build('FrozenTeacherDistill'))
