"""Tests of the dry run: tables, and one line for every mistake."""

import copy
import hashlib
import random

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, DefaultScope

from crd_plugin.engine.dry_run import dry_run_file, render, run_dry


def net(width, num_classes=10):
    return dict(
        type='ImageClassifier',
        backbone=dict(type='crd_plugin.CIFARResNet', depth=8, stem_channels=4, base_channels=width),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=num_classes, in_channels=4 * width),
    )


def record(recorder, from_student, **kwargs):
    return dict(recorder=recorder, from_student=from_student, **kwargs)


def vanilla():
    pipeline = [dict(type='Resize', scale=16), dict(type='PackInputs')]
    return dict(
        default_scope='mmpretrain',
        custom_imports=dict(imports=['crd_plugin']),
        data_preprocessor=dict(type='ClsDataPreprocessor', mean=[78.0] * 3, std=[81.0] * 3),
        train_dataloader=dict(
            batch_size=25,
            dataset=dict(
                type='crd_plugin.SampleIndexDataset',
                dataset=dict(
                    type='crd_plugin.Digits',
                    num_train_per_class=5,
                    # Saves a second a test: MMEngine collects garbage then.
                    serialize_data=False,
                    pipeline=pipeline,
                ),
            ),
        ),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        model=net(4),
    )


def distillation():
    """CRD and KD together; wN recorders as in configs/_base_/distillers."""
    cfg = vanilla()
    outputs = 'mmrazor.ModuleOutputs'
    field = 'crd_plugin.SampleField'
    cfg['model'] = dict(
        type='crd_plugin.FrozenTeacherDistill',
        architecture=net(4),
        teacher=net(8),
        distiller=dict(
            type='mmrazor.ConfigurableDistiller',
            student_recorders=dict(
                feat=dict(type=outputs, source='neck'),
                logits=dict(type=outputs, source='head.fc'),
                ids=dict(type=field, source='sample_idx'),
                labels=dict(type=field, source='gt_label'),
            ),
            teacher_recorders=dict(
                feat=dict(type=outputs, source='neck'), logits=dict(type=outputs, source='head.fc')
            ),
            connectors=dict(
                crd_student=dict(type='crd_plugin.EmbeddingConnector'),
                crd_teacher=dict(type='crd_plugin.EmbeddingConnector'),
            ),
            distill_losses=dict(
                loss_crd=dict(type='crd_plugin.CRDLoss', num_negatives=20),
                loss_kd=dict(type='mmrazor.KLDivergence', tau=4),
            ),
            loss_forward_mappings=dict(
                loss_crd=dict(
                    s_feats=record('feat', True, connector='crd_student'),
                    t_feats=record('feat', False, connector='crd_teacher'),
                    sample_idx=record('ids', True),
                    labels=record('labels', True),
                ),
                loss_kd=dict(preds_S=record('logits', True), preds_T=record('logits', False)),
            ),
        ),
    )
    cfg['custom_hooks'] = [dict(type='crd_plugin.MemoryBankHook')]
    return cfg


def check(cfg, **kwargs):
    return run_dry(Config(cfg), **kwargs)


def build(cfg):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return DATASETS.build(copy.deepcopy(cfg))


def only(report):
    """The one problem of a report."""
    assert len(report.problems) == 1, report.problems
    (line,) = report.problems
    assert '\n' not in line
    return line


def test_sound_distillation():
    report = check(distillation())
    assert report.problems == []
    assert {(row.side, row.name): row.output for row in report.recorders} == {
        ('student', 'feat'): '[(4, 16)]',
        ('student', 'logits'): '(4, 10)',
        ('student', 'ids'): '(4,) int64',
        ('student', 'labels'): '(4,) int64',
        ('teacher', 'feat'): '[(4, 32)]',
        ('teacher', 'logits'): '(4, 10)',
    }
    assert [(row.name, row.inputs, row.output, row.parameters) for row in report.connectors] == [
        ('crd_student', '[(4, 16)]', '(4, 128)', 17 * 128),
        ('crd_teacher', '[(4, 32)]', '(4, 128)', 33 * 128),
    ]
    losses = {row.name: row for row in report.losses}
    assert list(losses) == ['student.loss', 'distill.loss_crd', 'distill.loss_kd']
    for row in losses.values():
        assert row.summed and row.teacher == 'frozen' and row.student > 0
    assert losses['student.loss'].connectors == 'none'
    assert losses['distill.loss_crd'].connectors > 0
    (bank,) = report.banks
    assert (bank.rows, bank.width, bank.stand_in) == (50, 128, None)
    assert bank.mib == pytest.approx(2 * 50 * 128 * 4 / 2**20)
    parts = {row.part: (row.trainable, row.total) for row in report.parts}
    assert parts['connectors'] == (50 * 128, 50 * 128)
    assert parts['teacher'][0] == 0 and parts['teacher'][1] > 0
    text = render(report)
    for word in (
        'crd_student',
        'distill.loss_kd',
        'frozen',
        '4 x 3 x 16 x 16',
        'SampleIndexDataset, 50 samples, 10 classes',
        'fine',
    ):
        assert word in text


def test_gradient_of_each_loss_is_its_own():
    """Doubling a weight doubles this loss's gradient and no other."""
    once = {row.name: row for row in check(distillation()).losses}
    cfg = distillation()
    cfg['model']['distiller']['distill_losses']['loss_kd']['loss_weight'] = 2.0
    twice = {row.name: row for row in check(cfg).losses}
    for name, factor in (('student.loss', 1), ('distill.loss_crd', 1), ('distill.loss_kd', 2)):
        assert twice[name].student == pytest.approx(factor * once[name].student)


def test_vanilla():
    report = check(vanilla())
    assert report.problems == []
    (row,) = report.losses
    assert row.name == 'loss' and row.student > 0
    assert (row.connectors, row.teacher) == ('-', '-')
    assert not report.recorders and not report.banks
    assert [row.part for row in report.parts] == ['model']


def test_leaves_no_trace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = Config(distillation())
    before = copy.deepcopy(cfg.to_dict())
    # MMEngine restores a copy, so the names are compared.
    scope = getattr(DefaultScope.get_current_instance(), 'scope_name', None)
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    first = run_dry(cfg)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert np.array_equal(states[2][1], np.random.get_state()[1])
    assert scope == getattr(DefaultScope.get_current_instance(), 'scope_name', None)
    assert cfg.to_dict() == before
    assert not list(tmp_path.iterdir())
    torch.manual_seed(4)
    assert run_dry(cfg).losses == first.losses


def distiller_of(cfg):
    return cfg['model']['distiller']


def test_wrong_module_path():
    cfg = distillation()
    distiller_of(cfg)['teacher_recorders']['feat']['source'] = 'backbone.layer4'
    report = check(cfg)
    line = only(report)
    assert 'teacher_recorders.feat.source' in line
    assert "no module 'backbone.layer4'" in line
    assert 'backbone.layer3' in line
    # The rest is run all the same.
    assert [row.name for row in report.losses] == ['student.loss', 'distill.loss_kd']


@pytest.mark.parametrize('source, meant', [('fc', 'head.fc'), ('architecture.neck', 'neck')])
def test_module_path_with_a_part_too_many_or_few(source, meant):
    cfg = distillation()
    distiller_of(cfg)['student_recorders']['feat']['source'] = source
    assert f'nearest is {meant}' in only(check(cfg)).replace('nearest are', 'nearest is')


def test_wrong_width():
    cfg = distillation()
    distiller_of(cfg)['connectors']['crd_student']['in_channels'] = 64
    report = check(cfg)
    line = only(report)
    assert 'connectors.crd_student' in line and 'set in_channels=16' in line
    assert [row.name for row in report.losses] == ['student.loss', 'distill.loss_kd']


def test_wrong_width_of_a_connector_of_mmrazor():
    cfg = distillation()
    distiller = distiller_of(cfg)
    distiller['student_recorders']['map'] = dict(type='mmrazor.ModuleOutputs', source='backbone')
    distiller['teacher_recorders']['map'] = dict(type='mmrazor.ModuleOutputs', source='backbone')
    distiller['connectors']['conv'] = dict(
        type='mmrazor.ConvModuleConnector', in_channel=7, out_channel=32
    )
    distiller['distill_losses']['loss_map'] = dict(type='mmrazor.L2Loss')
    distiller['loss_forward_mappings']['loss_map'] = dict(
        s_feature=record('map', True, data_idx=0, connector='conv'),
        t_feature=record('map', False, data_idx=0),
    )
    line = only(check(cfg))
    assert 'connectors.conv.in_channel is 7' in line
    assert '(4, 16, 4, 4)' in line and 'set in_channel=16' in line
    distiller['connectors']['conv']['in_channel'] = 16
    assert check(cfg).problems == []


def test_width_inferred_from_another_image_size():
    cfg = distillation()
    for side in ('student', 'teacher'):
        distiller_of(cfg)[f'{side}_recorders']['feat']['source'] = 'backbone.layer3'
    line = only(check(cfg))
    assert 'set model.input_shape=(3, 16, 16)' in line
    cfg['model']['input_shape'] = (3, 16, 16)
    assert check(cfg).problems == []


def test_data_idx_out_of_range():
    cfg = distillation()
    distiller_of(cfg)['loss_forward_mappings']['loss_crd']['s_feats']['data_idx'] = 2
    line = only(check(cfg))
    assert 'mappings.loss_crd' in line and 'data_idx is 2' in line
    # With given widths the model can be built and the step tells more.
    for side, width in (('student', 16), ('teacher', 32)):
        distiller_of(cfg)['connectors'][f'crd_{side}']['in_channels'] = width
    line = only(check(cfg))
    assert 'loss_crd.s_feats' in line and '[(4, 16)]' in line


def test_head_against_data():
    cfg = vanilla()
    cfg['model']['head']['num_classes'] = 100
    line = only(check(cfg))
    assert 'model.head.num_classes is 100' in line and 'set it to 10' in line
    cfg['model']['head']['num_classes'] = 7
    assert 'num_classes is 7' in only(check(cfg))


@pytest.mark.parametrize('role', ['architecture', 'teacher'])
def test_head_of_the_wrong_width(role):
    cfg = distillation()
    cfg['model'][role]['head']['in_channels'] = 65
    width = 16 if role == 'architecture' else 32
    line = only(check(cfg))
    assert line == (
        f'model.{role}.head.in_channels is 65, but the feature '
        f'has {width} values; set it to {width}.'
    )
    plain = vanilla()
    plain['model']['head']['in_channels'] = 65
    assert 'model.head.in_channels is 65' in only(check(plain))


def test_step_that_fails_names_the_place():
    cfg = vanilla()
    cfg['model']['backbone']['in_channels'] = 4
    line = only(check(cfg))
    assert line.startswith('one training step fails: ')
    assert '[4, 3, 16, 16]' in line and '.py:' in line


def test_student_against_teacher_classes():
    cfg = distillation()
    cfg['model']['teacher'] = net(8, num_classes=100)
    line = only(check(cfg))
    assert 'is 100' in line and 'loss_kd compares' in line
    for group in ('distill_losses', 'loss_forward_mappings'):
        del distiller_of(cfg)[group]['loss_kd']
    report = check(cfg)
    assert report.problems == []
    assert any('100' in note for note in report.notes)


def test_hooks():
    cfg = distillation()
    (hook,) = cfg['custom_hooks']
    cfg['custom_hooks'] = []
    line = only(check(cfg))
    assert 'no MemoryBankHook' in line
    assert "dict(type='crd_plugin.MemoryBankHook')" in line
    cfg['custom_hooks'] = [hook, hook]
    assert '2 times' in only(check(cfg))
    # It does nothing for a model without a bank.
    plain = vanilla()
    plain['custom_hooks'] = [hook]
    assert check(plain).problems == []
    cfg['custom_hooks'] = [hook, dict(type='SyncBuffersHook')]
    assert 'SyncBuffersHook' in only(check(cfg))


def test_data_without_ids():
    cfg = distillation()
    loader = cfg['train_dataloader']
    loader['dataset'] = loader['dataset']['dataset']
    report = check(cfg)
    line = only(report)
    assert 'crd_plugin.SampleIndexDataset' in line
    assert 'crd_plugin.Digits' in line
    assert len(report.losses) == 3


def test_name_without_loss():
    cfg = distillation()
    for group in ('distill_losses', 'loss_forward_mappings'):
        group = distiller_of(cfg)[group]
        group['kd'] = group.pop('loss_kd')
    report = check(cfg)
    assert 'call it loss_kd' in only(report)
    assert [row.summed for row in report.losses] == [True, True, False]


def edit_mapping(distiller):
    """Five mistakes of mapping; each with what its line must say."""
    mappings = distiller['loss_forward_mappings']
    mappings['loss_crd']['label'] = mappings['loss_crd'].pop('labels')
    del mappings['loss_kd']['preds_T']
    distiller['distill_losses']['loss_a'] = dict(type='mmrazor.L2Loss')
    mappings['loss_b'] = dict()
    distiller['distill_losses']['loss_c'] = dict(type='mmrazor.L2Loss')
    mappings['loss_c'] = dict(s_feature=record('feats', True), t_feature=record('ids', False))


def test_all_problems_at_once():
    cfg = distillation()
    edit_mapping(distiller_of(cfg))
    cfg['custom_hooks'] = [dict(type='crd_plugin.MemoryBankHok')]
    cfg['optim_wrapper']['optimizer']['type'] = 'SDG'
    cfg['model']['teacher_ckpt'] = 'nowhere/teacher.pth'
    cfg['load_from'] = 'nowhere/start.pth'
    report = check(cfg)
    wanted = (
        'loss_crd.label: CRDLoss.forward has no such argument; the nearest',
        'loss_kd: KLDivergence.forward needs preds_T',
        'no loss_a, so this loss is never computed',
        'loss_b: there is no such loss in distill_losses',
        "loss_c.s_feature.recorder: student_recorders has no 'feats'; the nearest is feat",
        "loss_c.t_feature.recorder: teacher_recorders has no 'ids'; the "
        'student has one: set from_student=True',
        "custom_hooks[0].type: 'crd_plugin.MemoryBankHok' is no registered "
        'hook; the nearest are crd_plugin.MemoryBankHook',
        "optim_wrapper.optimizer.type: 'SDG' is no registered optimizer",
        'model.teacher_ckpt=nowhere/teacher.pth does not exist',
        'load_from=nowhere/start.pth does not exist',
        'custom_hooks has no MemoryBankHook',
    )
    for text in wanted:
        assert any(text in line for line in report.problems), text
    assert len(report.problems) == len(wanted)
    assert [row.name for row in report.losses] == ['student.loss']


@pytest.mark.parametrize(
    'place, wrong, right',
    [
        (('distiller', 'distill_losses', 'loss_crd'), 'CRDLoss', 'crd_plugin.CRDLoss'),
        (
            ('distiller', 'connectors', 'crd_student'),
            'crd_plugin.EmbedingConnector',
            'crd_plugin.EmbeddingConnector',
        ),
        (
            ('distiller', 'student_recorders', 'ids'),
            'crd_plugin.SampleFields',
            'crd_plugin.SampleField',
        ),
        (('architecture', 'backbone'), 'crd_plugin.CifarResNet', 'crd_plugin.CIFARResNet'),
        (('teacher', 'head', 'loss'), 'CrossEntropy', 'CrossEntropyLoss'),
        ((), 'FrozenTeacherDistill', 'crd_plugin.FrozenTeacherDistill'),
    ],
)
def test_unknown_type(place, wrong, right):
    cfg = distillation()
    cfg['model']['teacher']['head']['loss'] = dict(type='CrossEntropyLoss')
    part = cfg['model']
    for key in place:
        part = part[key]
    part['type'] = wrong
    line = only(check(cfg))
    assert line.startswith('.'.join(('model', *place)) + f".type: '{wrong}'")
    assert right in line.partition('nearest')[2].strip('.').replace(',', '').split()


def test_unknown_transform_and_argument():
    cfg = vanilla()
    dataset = cfg['train_dataloader']['dataset']['dataset']
    dataset['pipeline'][1]['type'] = 'PackInput'
    dataset['pipeline'].insert(0, dict(type='Resise', scale=16))
    cfg['model']['backbone']['base_channel'] = 4
    problems = check(cfg).problems
    assert any('pipeline[0].type' in line and 'Resize' in line for line in problems)
    assert any('pipeline[2].type' in line and 'PackInputs' in line for line in problems)
    assert any('base_channel' in line for line in problems)


def test_unexpected_argument_names_the_nearest():
    cfg = distillation()
    distiller_of(cfg)['connectors']['crd_teacher']['embed_dims'] = 64
    line = only(check(cfg))
    assert 'connectors.crd_teacher' in line and 'nearest is embed_dim' in line


def test_teacher_checkpoint(tmp_path):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        teacher = MODELS.build(net(8))
    good = tmp_path / 'teacher.pth'
    torch.save(dict(state_dict=teacher.state_dict()), good)
    cfg = distillation()
    cfg['model']['teacher_ckpt'] = str(good)
    report = check(cfg)
    assert report.problems == []
    digest = hashlib.sha256(good.read_bytes()).hexdigest()[:8]
    assert report.teacher == f'teacher.pth, sha256 {digest}'
    # Of another net.
    cfg['model']['teacher'] = net(6)
    line = only(check(cfg))
    assert 'teacher_ckpt' in line and 'does not fit the teacher' in line
    # Cut short.
    good.write_bytes(good.read_bytes()[:1000])
    cfg['model']['teacher'] = net(8)
    assert 'truncated' in only(check(cfg))


def test_missing_teacher_checkpoint_can_be_passed_over():
    cfg = distillation()
    cfg['model']['teacher_ckpt'] = 'nowhere/teacher.pth'
    report = check(cfg)
    assert 'nowhere/teacher.pth does not exist' in only(report)
    assert report.notes == []
    assert len(report.losses) == 3
    report = check(cfg, use_teacher_ckpt=False)
    assert report.problems == []
    assert any('passed over' in note for note in report.notes)


def test_nothing_is_downloaded():
    cfg = distillation()
    cfg['model']['teacher_ckpt'] = 'https://example.invalid/teacher.pth'
    cfg['model']['architecture']['init_cfg'] = dict(
        type='Pretrained', checkpoint='torchvision://resnet18'
    )
    report = check(cfg)
    assert report.problems == []
    assert sum('is not fetched here' in note for note in report.notes) == 2


def test_missing_data_set(tmp_path):
    """Classes, size of the images and channels are known without files."""
    cfg = distillation()
    cfg['train_dataloader']['dataset']['dataset'] = dict(
        type='CIFAR100',
        data_root=str(tmp_path / 'none'),
        pipeline=[dict(type='RandomCrop', crop_size=32, padding=4), dict(type='PackInputs')],
    )
    for role in ('architecture', 'teacher'):
        cfg['model'][role]['head']['num_classes'] = 100
    report = check(cfg)
    assert report.problems == []
    assert any('CIFAR100' in note or 'SampleIndexDataset' in note for note in report.notes)
    assert '4 x 3 x 32 x 32' in report.images
    (bank,) = report.banks
    assert bank.rows is None and bank.stand_in == 4096
    assert len(report.losses) == 3
    assert not (tmp_path / 'none').exists()
    cfg['model']['distiller']['distill_losses']['loss_crd']['num_samples'] = 50000
    (bank,) = check(cfg).banks
    assert bank.rows == 50000
    assert bank.mib == pytest.approx(2 * 50000 * 128 * 4 / 2**20)
    cfg['model']['architecture']['head']['num_classes'] = 10
    problems = check(cfg).problems
    assert any('the data set has 100 classes' in line for line in problems)


def test_bank_of_another_length():
    cfg = distillation()
    distiller_of(cfg)['distill_losses']['loss_crd']['num_samples'] = 60
    line = only(check(cfg))
    assert 'num_samples' in line and '60' in line and '50 samples' in line


def test_data_set_of_one_class():
    cfg = distillation()
    labels = build(cfg['train_dataloader']['dataset']).get_gt_labels()
    zeros = np.flatnonzero(labels == 0).tolist()
    cfg['train_dataloader']['dataset']['dataset']['indices'] = zeros
    line = only(check(cfg))
    assert '1 class over 5 rows' in line and "exclude='instance'" in line
    distiller_of(cfg)['distill_losses']['loss_crd']['exclude'] = 'instance'
    assert check(cfg).problems == []


def test_two_bases_with_one_key(tmp_path):
    for name in 'ab':
        (tmp_path / f'{name}.py').write_text("work_dir = 'here'\n")
    leaf = tmp_path / 'leaf.py'
    leaf.write_text("_base_ = ['a.py', 'b.py']\n")
    line = only(dry_run_file(str(leaf)))
    assert 'work_dir' in line and 'two files of _base_' in line
    leaf.write_text("_base_ = ['c.py']\n")
    assert 'c.py' in only(dry_run_file(str(leaf)))
    leaf.write_text('model = dict(\n')
    assert 'cannot be loaded' in only(dry_run_file(str(leaf)))


def test_gradient_that_reaches_the_teacher():
    cfg = distillation()
    cfg['model']['type'] = 'mmrazor.SingleTeacherDistill'
    del cfg['model']['distiller']['distill_losses']['loss_crd']
    del cfg['model']['distiller']['loss_forward_mappings']['loss_crd']
    del cfg['model']['distiller']['connectors']
    cfg['custom_hooks'] = []
    cfg['model']['teacher_trainable'] = True
    report = check(cfg)
    assert report.problems == []
    rows = {row.name: row for row in report.losses}
    assert rows['teacher.loss'].teacher > 0
    assert rows['teacher.loss'].student == 'none'


def test_loss_without_gradient():
    cfg = distillation()
    distiller_of(cfg)['teacher_recorders']['again'] = dict(
        type='mmrazor.ModuleOutputs', source='head.fc'
    )
    distiller_of(cfg)['loss_forward_mappings']['loss_kd']['preds_S'] = record('again', False)
    assert 'sends no gradient' in only(check(cfg))


def test_accepted_arguments():
    report = check(vanilla(), batch_size=3)
    assert '3 x 3 x 16 x 16' in report.images
    with pytest.raises(ValueError, match='batch_size is 0'):
        check(vanilla(), batch_size=0)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match='sees no GPU'):
            check(vanilla(), device='cuda')


def test_no_model():
    cfg = vanilla()
    del cfg['model']
    assert 'no `model`' in only(check(cfg))
