"""The dry run: its tables, and one line for every mistake."""

import copy
import hashlib
import logging
import random
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS, DefaultScope
from mmpretrain.visualization import UniversalVisualizer
from PIL import Image
from torch._utils import ExceptionWrapper

from crd_plugin.cli.arguments import UsageError, load_config
from crd_plugin.cli.dry_run import run_dry
from crd_plugin.cli.dry_run_report import render
from crd_plugin.cli.lookup import one_line
from crd_plugin.datasets import _checks
from crd_plugin.models import EmbeddingConnector
from tests import small_runs


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(force=True)
class BackboneAndHead:
    """Two optimizers."""

    def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
        """Take what MMEngine gives."""

    def __call__(self, model):
        parts = dict(backbone=model.backbone, head=model.head)
        return OptimWrapperDict(
            **{
                name: OptimWrapper(torch.optim.SGD(part.parameters(), lr=0.1))
                for name, part in parts.items()
            }
        )


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
    """Twenty digits, in batches of six."""
    cfg = small_runs.config('work').to_dict()
    cfg = {key: value for key, value in cfg.items() if not key.startswith('test_')}
    # Saves a second per test: MMEngine collects garbage then.
    cfg['train_dataloader']['dataset']['dataset']['serialize_data'] = False
    preprocessor = dict(type='ClsDataPreprocessor', mean=[78.0] * 3, std=[81.0] * 3)
    return dict(cfg, model=net(4), data_preprocessor=preprocessor)


def distillation():
    """CRD and KD together."""
    distiller = small_runs.distiller()
    for side in ('student', 'teacher'):
        logits = dict(type='mmrazor.ModuleOutputs', source='head.fc')
        distiller[f'{side}_recorders']['logits'] = logits
    distiller['distill_losses']['loss_kd'] = dict(type='mmrazor.KLDivergence', tau=4)
    distiller['loss_forward_mappings']['loss_kd'] = dict(
        preds_S=record('logits', True), preds_T=record('logits', False)
    )
    kind = 'crd_plugin.FrozenTeacherDistill'
    model = dict(type=kind, architecture=net(4), teacher=net(8), distiller=distiller)
    return dict(vanilla(), model=model)


def check(cfg, **kwargs):
    return run_dry(Config(cfg), **kwargs)


def only(report):
    """The one problem of a report."""
    (line,) = report.problems
    assert '\n' not in line
    return line


def full(text):
    """Text with the places that abbreviations stand for."""
    text = text.replace('MAP', 'DIST.loss_forward_mappings').replace('DIST', 'model.distiller')
    return text.replace('DATA', 'train_dataloader.dataset.dataset')


def edited(changes, cfg=None):
    """A config with values replaced by dotted name, or removed if the value is ...."""
    cfg = distillation() if cfg is None else cfg
    for path, value in changes.items():
        *keys, last = (int(key) if key.isdigit() else key for key in full(path).split('.'))
        part = cfg
        for key in keys:
            part = part[key] if isinstance(part, list) else part.setdefault(key, {})
        if value is ...:
            del part[last]
        else:
            part[last] = value
    return cfg


def problem(changes, cfg=None):
    """The one problem of a config with replaced values."""
    return only(check(edited(changes, cfg)))


def without(loss):
    """Changes that remove a loss and its arguments."""
    return {f'DIST.distill_losses.{loss}': ..., f'MAP.{loss}': ...}


def test_sound_distillation():
    report = check(distillation())
    assert report.problems == []
    assert [(row.side, row.name, row.output) for row in report.recorders] == [
        ('student', 'feat', '[(4, 16)]'),
        ('student', 'ids', '(4,) int64'),
        ('student', 'labels', '(4,) int64'),
        ('student', 'logits', '(4, 10)'),
        ('teacher', 'feat', '[(4, 32)]'),
        ('teacher', 'logits', '(4, 10)'),
    ]
    assert [(row.name, row.inputs, row.output, row.parameters) for row in report.connectors] == [
        ('s', '[(4, 16)]', '(4, 8)', 17 * 8),
        ('t', '[(4, 32)]', '(4, 8)', 33 * 8),
    ]
    losses = {row.name: row for row in report.losses}
    assert list(losses) == ['student.loss', 'distill.loss_crd', 'distill.loss_kd']
    for row in losses.values():
        assert row.summed and row.teacher == 'frozen' and row.student > 0
    assert losses['student.loss'].others == 'none'
    assert losses['distill.loss_crd'].others > 0
    (bank,) = report.banks
    assert (bank.rows, bank.width, bank.stand_in) == (20, 8, 20)
    assert bank.mib == pytest.approx(2 * 20 * 8 * 4 / 2**20)
    parts = {row.part: (row.trainable, row.total) for row in report.parts}
    assert parts['connectors'] == (50 * 8, 50 * 8)
    assert parts['teacher'][0] == 0 and parts['teacher'][1] > 0
    text = render(report)
    titles = 'Data Inputs Recorders Connectors Losses Memory Parameters fine'
    assert [block.split()[0] for block in text.split('\n\n')] == titles.split()
    for words in (
        'gradient: student  other parts  teacher\n',
        '4 x 3 x 8 x 8 uint8 (training samples)',
        'SampleIndexDataset, 20 samples, 10 classes',
        'Teacher  random weights, unless the network brings some',
    ):
        assert words in text


def test_gradient_of_each_loss_is_its_own():
    """Doubling a weight doubles this loss's gradient and no other."""
    once = {row.name: row for row in check(distillation()).losses}
    twice = check(edited({'DIST.distill_losses.loss_kd.loss_weight': 2.0})).losses
    for row, factor in zip(twice, (1, 1, 2), strict=True):
        assert row.student == pytest.approx(factor * once[row.name].student)


def test_vanilla():
    report = check(vanilla(), batch_size=3)
    assert report.problems == [] and report.notes == [] and report.images[:9] == '3 x 3 x 8'
    (row,) = report.losses
    assert row.name == 'loss' and row.student > 0
    assert (row.others, row.teacher) == ('-', '-')
    assert not report.recorders and not report.banks
    assert [row.part for row in report.parts] == ['model']


def test_several_optimizers():
    scheduler = dict(type='CosineAnnealingLR', end=10)
    changes = dict(optim_wrapper=dict(constructor='BackboneAndHead'), param_scheduler=scheduler)
    assert check(edited(changes, vanilla())).problems == []
    own = dict(backbone=scheduler, head=[dict(scheduler, begin=20)])
    changes['param_scheduler'] = own
    found = problem(changes, vanilla())
    assert 'end should be larger than begin' in found
    own['head'] = []
    assert check(edited(changes, vanilla())).problems == []


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
    assert MMLogger.get_current_instance().isEnabledFor(logging.INFO)


VIT = dict(
    type='VisionTransformer',
    img_size=8,
    patch_size=4,
    out_type='raw',
    arch=dict(embed_dims=32, num_layers=1, num_heads=2, feedforward_channels=64),
)
# Blocks of changes, a setting to a value or to ... to remove it, and what the one line must say.
# DIST stands for model.distiller, MAP for its loss_forward_mappings, DATA for the inner data set.
MISTAKES = r"""
model = ...
> the config has no `model`

train_dataloader = ...
> the config has no train_dataloader.dataset;

model.architecture.backbone.frozen_stages = 1
> model.architecture.backbone: CIFARResNet.__init__() got an unexpected keyword argument
> 'frozen_stages'; there are depth, in_channels,

DIST.teacher_recorders.feat.source = 'backbone.layer4'
> DIST.teacher_recorders.feat.source: the teacher has no module 'backbone.layer4'; the nearest
> are backbone.layer3,

DIST.student_recorders.p = dict(type='mmrazor.Parameter', source='head.fc.wight')
> DIST.student_recorders.p.source: the student has no parameter 'head.fc.wight'; the nearest are
> head.fc.weight

DIST.teacher_recorders.logits.source = 'head.loss_module'
> DIST.teacher_recorders.logits: nothing is recorded, because the teacher does not call
> 'head.loss_module'; record a module that its forward pass goes through.

DIST.connectors.s.in_channels = 64
> DIST.connectors.s.in_channels is 64, but the feature has 16 channels, shape (4, 16);
> set in_channels=16.

DIST.student_recorders.map = dict(type='mmrazor.ModuleOutputs', source='backbone')
DIST.teacher_recorders.map = dict(type='mmrazor.ModuleOutputs', source='backbone')
DIST.connectors.conv = dict(type='mmrazor.ConvModuleConnector', in_channel=7, out_channel=32)
DIST.distill_losses.loss_map = dict(type='mmrazor.L2Loss')
MAP.loss_map = dict(s_feature=record('map', True, data_idx=0, connector='conv'))
MAP.loss_map.t_feature = record('map', False, data_idx=0)
> DIST.connectors.conv.in_channel is 7, but the feature has 16 channels, shape (4, 16, 2, 2);
> set in_channel=16.

model.architecture.backbone.in_channels = 2
> model.architecture.backbone.in_channels is 2, but the feature has 3 channels, shape
> (2, 3, 32, 32); set in_channels=3, or let the student see 2 channels by model.student_view.

MAP.loss_crd.s_feats.data_idx = 2
DIST.connectors.s.in_channels = 16
DIST.connectors.t.in_channels = 32
> DIST.student_recorders.feat: data_idx is illegal. The length of record is 1, but data_idx is 2.
> It holds [[(4, 16)]].

model.teacher = net(8, 100)
> DIST.distill_losses.loss_kd: The size of tensor a (100) must match the size of tensor b (10) at
> non-singleton dimension 1; given were preds_S (4, 10), preds_T (4, 100) (RuntimeError in kl_div,

data_preprocessor.mean = [1.0] * 4
data_preprocessor.std = [1.0] * 4
> model.data_preprocessor: The size of tensor a (3) must match the size of tensor b (4) at
> non-singleton dimension 1; given were inputs (4, 3, 8, 8) uint8,

DIST.distill_losses.loss_crd.temperature = -1
> DIST.distill_losses.loss_crd: temperature is -1, expected a positive number

DATA.pipeline.0 = dict(type='ResizeEdge', scale=4, edge='x')
> DATA.pipeline[0]: Invalid edge "x"

DATA.pipeline.1 = dict(type='Resize', scale=16)
> train_dataloader.dataset: its samples cannot be read: The sample at position 0 has no data_samples

default_hooks = dict()
custom_hooks = []
> no MemoryBankHook writes the MemoryBank of the model; add dict(type='crd_plugin.MemoryBankHook')

custom_hooks.0.interval = -2
> custom_hooks[0]: interval is -2

train_dataloader.dataset = vanilla()['train_dataloader']['dataset']['dataset']
> train_dataloader.dataset is a Digits, whose samples carry no ids for the memory bank;
> wrap it: dataset=dict(type='crd_plugin.SampleIndexDataset',

train_dataloader.dataset.num_negatives = 3
> train_dataloader.dataset.num_negatives draws contrast_idx, which no recorder reads

DIST.distill_losses.loss_crd.num_samples = 60
> num_samples of distiller.distill_losses.loss_crd.bank is 60, the training set has 20

DIST.distill_losses.loss_kd.loss_weight = 1e39
> distill.loss_kd is inf, its gradient

DIST.distill_losses.loss_a = dict(type='mmrazor.L2Loss')
> MAP has no loss_a, so this loss is never computed

MAP.loss_k = {}
> MAP.loss_k: distill_losses has no 'loss_k'; the nearest are loss_kd,

MAP.loss_crd.label = record('labels', True)
> MAP.loss_crd: got an unexpected keyword argument 'label'; CRDLoss takes s_feats, t_feats,

MAP.loss_kd.preds_T = ...
> loss_kd: missing a required argument: 'preds_T'; KLDivergence takes preds_S, preds_T.

MAP.loss_crd.labels.recorder = 'label'
> MAP.loss_crd.labels.recorder: student_recorders has no 'label'; the nearest is labels.

MAP.loss_crd.labels = dict(recorder='labels')
> MAP.loss_crd.labels is {'recorder': 'labels'}, expected dict(recorder=..., from_student=...).

MAP.loss_crd.s_feats.connector = 'ss'
> MAP.loss_crd.s_feats.connector: connectors has no 'ss'; the nearest is s.

DIST.connectors.t.embed_dims = 64
> DIST.connectors.t: EmbeddingConnector.__init__() got an unexpected keyword argument
> 'embed_dims'; the nearest is embed_dim.

model = net(4)
model.head.in_channels = 65
> model.head.in_channels is 65, but the feature has 16

model = net(4)
model.backbone.base_channel = 4
> the nearest are base_channels,

model = net(4, 7)
DATA.metainfo = dict(classes=[])
> model.head.num_classes is 7, the data set has 10 classes

model = net(4, 4)
DATA.metainfo = dict(classes=list('0123'))
> train_dataloader.dataset has the label 9, but its metainfo names 4 classes; name all

DATA.indices = [8, 10]
> DIST.distill_losses.loss_crd: labels holds 1 class over 2 rows, so no row of another class
> exists; use exclude='instance'

DATA.indices = [8, 10]
DIST.distill_losses.loss_crd = dict(type='crd_plugin.CRDLoss', negatives='batch', embed_dim=8)
> loss_crd: all 2 training samples are of class 0,

DIST.connectors.s.type = 'mmengine.DetachedConnector'
> loss_crd sends no gradient to the student, so it distils nothing

DIST.student_recorders.feat.source = 'backbone.layer3'
DIST.teacher_recorders.feat.source = 'backbone.layer3'
> DIST.connectors.s: The feature has 64 values per sample, EmbeddingConnector has
> in_channels=1024; set in_channels=64, or leave it out and set model.input_shape to

model.architecture = dict(type='ImageClassifier', backbone=VIT)
model.input_shape = (3, 8, 8)
DIST.student_recorders.feat.source = 'backbone'
DIST.student_recorders.logits.source = 'backbone'
> of a transformer's tokens take one or their mean

train_dataloader.batch_size = 21
train_dataloader.drop_last = True
> train_dataloader: 20 samples per process, batch_size=21 and drop_last=True leave no batch

val_evaluator = dict(type='Accuracy', topk=(1, 11))
> val_evaluator: Top-11 accuracy is unavailable

test_dataloader = distillation()['val_dataloader']
test_evaluator = dict(type='Accuracy', topk=12)
test_cfg = {}
> test_evaluator: Top-12 accuracy is unavailable

val_dataloader.dataset.pipeline = [dict(type='Resize', scale='big')]
> val_dataloader.dataset

default_hooks.checkpoint = dict(type='CheckpointHook', save_best='accuracy/top3', rule='less')
> default_hooks.checkpoint.save_best has 'accuracy/top3', but validation gives accuracy/top1, acc

default_hooks.stop = dict(type='EarlyStoppingHook', monitor='accuracy/top-1')
> default_hooks.stop.monitor has 'accuracy/top-1', but validation gives accuracy/top1, acc

param_scheduler = [dict(type='ReduceOnPlateauLR', monitor='accuracy', rule='greater')]
> param_scheduler[0].monitor has 'accuracy', but validation gives

custom_hooks.0 = 'EMAHook'
> custom_hooks[0]: 'EMAHook' is not a dict; write dict(type='EMAHook').

default_hooks.checkpoint.out_dir = 5
> default_hooks.checkpoint: out_dir is 5, expected the path of a folder.

visualizer.vis_backends = ['TensorBordVisBackend']
> visualizer.vis_backends[1].type: 'TensorBordVisBackend' is not registered; the nearest

visualizer.vis_backends = [dict(type='LocalVisBackend', scalar_save_file='a.txt')]
> visualizer.vis_backends[0]: assert scalar_save_file.split('.')[-1] == 'json' (AssertionError in

train_dataloader.prefetch_factor = 2
> train_dataloader: prefetch_factor option could only be specified in multiprocessing

val_dataloader.sampler.foo = 1
> val_dataloader.sampler

optim_wrapper.optimizer.weight_decay = [0, 1]
> optim_wrapper.optimizer: '<' not supported between instances of 'list' and 'float'

param_scheduler = ['StepLR']
> param_scheduler: 'StepLR' is not a dict; write dict(type='StepLR').

val_evaluator = ['Accuracy']
> val_evaluator: 'str' object has no attribute 'dataset_meta'

default_hooks.checkpoint.by_epoch = False
> by_epoch is False, but the training loop counts epochs

train_cfg = dict(by_epoch=False, max_iters=20)
> by_epoch is True, but the training loop counts iterations, so a run that is interrupted could not

param_scheduler = dict(type='CosineAnnealingLR', end=10, foo=1)
> param_scheduler: CosineAnnealingParamScheduler.__init__() got an unexpected keyword argument 'foo'

param_scheduler = dict(type='CosineAnnealingLR', end=10, begin=20)
> param_scheduler: end should be larger than begin

param_scheduler = dict(type='StepLR', step_size=1, by_epoch=False, convert_to_iter_based=True)
> param_scheduler: Only epoch-based

load_from = 'nowhere/a.pth'
> load_from nowhere/a.pth does not exist; give

model.architecture.backbone.init_cfg = dict(type='Pretrained', checkpoint='nowhere/b.pth')
> model.architecture.backbone: checkpoint nowhere/b.pth does not exist; give

model.teacher_ckpt = 'nowhere/teacher.pth'
> teacher_ckpt=nowhere/teacher.pth does not exist; give the path of a trained checkpoint.
"""


@pytest.mark.parametrize('block', MISTAKES.strip().split('\n\n'))
def test_mistake(block):
    message = ' '.join(line[2:] for line in block.splitlines() if line.startswith('> '))
    lines = [line.split(' = ', 1) for line in block.splitlines() if not line.startswith('> ')]
    assert full(message) in problem({path: eval(value) for path, value in lines})


@pytest.mark.parametrize(
    'place, wrong, right',
    [
        ('DIST.distill_losses.loss_crd', 'CRDLoss', 'crd_plugin.CRDLoss'),
        ('DIST.connectors.s', 'crd_plugin.EmbedingConnector', 'EmbeddingConnector'),
        ('DIST.student_recorders.ids', 'crd_plugin.SampleFields', 'crd_plugin.SampleField'),
        ('model.architecture.backbone', 'crd_plugin.CifarResNet', 'crd_plugin.CIFARResNet'),
        ('model', 'FrozenTeacherDistill', 'crd_plugin.FrozenTeacherDistill'),
        ('optim_wrapper.optimizer', 'SDG', 'SGD'),
        ('custom_hooks.0', 'crd_plugin.MemoryBankHok', 'crd_plugin.MemoryBankHook'),
        ('DATA.pipeline.1', 'PackInput', 'PackInputs'),
    ],
)
def test_unknown_type(place, wrong, right):
    line = problem({f'{place}.type': wrong})
    place = re.sub(r'\.(\d)', r'[\1]', full(place))
    assert line.startswith(f"{place}.type: '{wrong}' is not registered")
    assert right in line.partition('nearest')[2]


def test_loss_left_out_of_the_sum():
    cfg = distillation()['model']['distiller']
    moved = {f'DIST.{part}.kd': cfg[part]['loss_kd'] for part in cfg if 'loss_kd' in cfg[part]}
    report = check(edited({**without('loss_kd'), **moved}))
    assert 'distill.kd is not added to the sum' in only(report)
    assert 'call it loss_kd' in only(report)
    assert [row.summed for row in report.losses] == [True, True, False]
    assert 'not summed' in render(report) and '1 problem' in render(report)


def test_parameters_without_gradient():
    """A connector that no loss uses, and a head whose loss is not computed."""
    changes = {
        'DIST.connectors.spare': dict(type='crd_plugin.EmbeddingConnector', in_channels=4),
        'model.calculate_student_loss': False,
        **without('loss_kd'),
    }
    report = check(edited(changes))
    assert report.problems == []
    note = '4 parameters get no gradient in some step, such as architecture.head.fc.bias'
    assert note in report.notes[-1]
    assert not check(edited({**changes, 'find_unused_parameters': True})).notes


@pytest.mark.parametrize('channels, fits', [(1, True), (2, False), (4, False)])
def test_channels_of_the_images(tmp_path, channels, fits):
    shape = (16, 16, channels) if channels > 1 else (16, 16)
    image = Image.fromarray(np.zeros(shape, np.uint8), {1: 'L', 2: 'LA', 4: 'RGBA'}[channels])
    for name in 'ab':
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / '0.png')
    load = dict(type='LoadImageFromFile', color_type='unchanged', imdecode_backend='pillow')
    dataset = dict(type='CustomDataset', data_root=str(tmp_path), data_prefix='')
    dataset['pipeline'] = [load, dict(type='PackInputs')]
    changes = {f'{loop}_dataloader.dataset': dataset for loop in ('train', 'val')}
    report = check(edited({'model': net(4, 2), 'val_evaluator.topk': 1, **changes}, vanilla()))
    assert (report.problems == []) == fits
    assert any('has one value, such as 0: look at the files' in n for n in report.notes)
    if not fits:
        line = only(report)
        assert line.startswith(f'model.data_preprocessor: {tmp_path}/')
        assert f'0.png has {channels} channels, mean and std have 3' in line
        assert "color_type='color'" in line


@pytest.mark.parametrize(
    'val, fault',
    [
        ('abc', ''),
        ('abb', ''),
        ('ab', ''),
        ('xyz', ''),  # other names for the same numbers
        ('aba', "'a' is class 2, in train_dataloader.dataset class 0"),
        ('ac', "'c' is class 1, in train_dataloader.dataset class 2, so a label"),
        ('.abc', "'a' is class 1, in train_dataloader.dataset class 0"),
        ('abcd', "'d' is class 3, train_dataloader.dataset has 3 classes"),
    ],
)
def test_labels_of_validation_mean_the_same_classes(val, fault):
    sets = {
        f'{loop}_dataloader.dataset': dict(
            type='crd_plugin.Digits',
            digits=[0, 1, 2],
            metainfo=dict(classes=tuple(classes)),
            pipeline=[dict(type='PackInputs')],
        )
        # Two classes of ImageNet have one name.
        for loop, classes in (('train', 'abb' if val == 'abb' else 'abc'), ('val', val))
    }
    report = check(edited({'model': net(4, 3), 'val_evaluator.topk': 1, **sets}, vanilla()))
    assert [fault in problem for problem in report.problems] == [True] * bool(fault)


@pytest.mark.parametrize('name', ['val', 'test'])
def test_images_that_are_missing_for_validation_or_testing(monkeypatch, name):
    monkeypatch.setitem(_checks._IMAGES, 'Digits', dict(train=20, test=1001))
    pack = [dict(type='PackInputs')]
    changes = {
        'train_dataloader.dataset.complete': True,
        f'{name}_dataloader.dataset': dict(type='crd_plugin.Digits', split='test', pipeline=pack),
    }
    cfg = small_runs.config('work').to_dict()
    (line,) = check(edited(changes, cfg)).problems
    assert (
        line.startswith(f'{name}_dataloader.dataset: ')
        and 'has 1,000 images, expected 1,001' in line
    )
    changes['train_dataloader.dataset.complete'] = False
    assert check(edited(changes, cfg)).problems == []


def test_error_of_a_worker_is_its_last_line():
    try:
        raise ValueError('images/a.png (sample 3): cannot be read; replace it.')
    except ValueError:
        wrapped = ExceptionWrapper(where='in DataLoader worker process 0')
    with pytest.raises(ValueError, match='Traceback') as caught:
        wrapped.reraise()
    assert one_line(caught.value) == 'images/a.png (sample 3): cannot be read; replace it.'


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    """A checkpoint of the teacher, which names its config."""
    path = tmp_path_factory.mktemp('teacher') / 'teacher.pth'
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        weights = MODELS.build(net(8)).state_dict()
    text = Config(dict(model=net(8), data_preprocessor=dict(mean=[0.0] * 3, std=[255.0] * 3)))
    torch.save(dict(state_dict=weights, meta=dict(cfg=text.pretty_text)), path)
    return path


def test_teacher_checkpoint(teacher):
    changes = {'model.teacher_ckpt': str(teacher)}
    report = check(edited(changes))
    assert report.problems == []
    digest = hashlib.sha256(teacher.read_bytes()).hexdigest()[:8]
    assert report.teacher == f'teacher.pth, sha256 {digest}'
    assert 'does not fit the teacher' in problem({**changes, 'model.teacher': net(6)})


def test_weights_to_start_from_are_loaded_strictly(teacher, tmp_path):
    """With the words of training; rows of a memory bank are not asked for."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        weights = MODELS.build(distillation()['model']).state_dict()
    torch.save(dict(state_dict=weights), tmp_path / 'run.pth')
    start = dict(load_from=str(tmp_path / 'run.pth'))
    assert check(edited(start)).problems == []
    line = problem({**start, 'model.architecture': net(6)})
    assert 'run.pth does not fit the model of the config: missing ' in line
    assert 'publish_student.py first, or use the config of that' in problem(start, vanilla())
    assert '--resume' in problem({**start, 'resume': True}, vanilla())
    init = dict(type='Pretrained', checkpoint=str(teacher), prefix='backbone')
    line = problem({'model.backbone.init_cfg': init}, vanilla())
    assert 'teacher.pth does not fit this CIFARResNet' in line


def test_weights_that_are_passed_over():
    report = check(edited({'model.teacher_ckpt': 'nowhere.pth'}), use_teacher_ckpt=False)
    assert report.problems == [] and len(report.losses) == 3
    assert report.notes == ['model.teacher_ckpt is passed over as asked for.']
    init = dict(type='Pretrained', checkpoint='torchvision://resnet18')
    changes = {'model.teacher_ckpt': 'https://example.invalid/teacher.pth'}
    report = check(edited({**changes, 'model.architecture.init_cfg': init}))
    assert report.problems == []
    assert sum('is not fetched here' in note for note in report.notes) == 2


# An ImageNet teacher of MMPretrain's model zoo.
ZOO = 'https://download.openmmlab.com/mmclassification/v0/resnet/resnet18_8xb32_in1k_20210831-fbbb1da6.pth'
IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])


@pytest.mark.parametrize('source', ['checkpoint', 'zoo'])
def test_teacher_is_fed_as_it_was_trained(source, teacher):
    """Its mean and std are compared with those of the images it is given."""
    trained, file = dict(mean=[0.0] * 3, std=[255.0] * 3), str(teacher)
    if source == 'zoo':
        trained, file = IMAGENET, ZOO
    changes = {'model.teacher_ckpt': file}
    report = check(edited(changes))
    assert not report.problems
    (note,) = (note for note in report.notes if 'was trained on images' in note)
    assert note.startswith('model.teacher_ckpt=')
    for words in (
        f'mean {trained["mean"]} and std {trained["std"]}, but is given images with mean ',
        'mean [78.0, 78.0, 78.0] and std [81.0, 81.0, 81.0]',
        'set model.teacher.data_preprocessor=dict(',
    ):
        assert words in note
    same = {f'data_preprocessor.{key}': value for key, value in trained.items()}
    own = {'model.teacher.data_preprocessor': dict(type='ClsDataPreprocessor', **trained)}
    for cure in (same, own):
        report = check(edited({**changes, **cure}))
        assert not report.problems and not any('was trained on' in note for note in report.notes)


def test_teacher_of_other_classes(tmp_path, teacher):
    """Of as many classes as the training set, with another name for one."""
    weights, classes = torch.load(teacher)['state_dict'], [str(number) for number in range(10)]
    for names, noted in ((classes, False), (classes[:9], False), ([*classes[:8], '9', '8'], True)):
        meta = dict(dataset_meta=dict(classes=tuple(names)))
        torch.save(dict(state_dict=weights, meta=meta), tmp_path / 'teacher.pth')
        report = check(edited({'model.teacher_ckpt': str(tmp_path / 'teacher.pth')}))
        assert report.problems == []
        text = "the class that is '8' in the training set is '9' in the teacher's"
        assert any(text in note for note in report.notes) == noted


def test_missing_data_set(tmp_path):
    """Classes, size of the images and channels are known without files."""
    pipeline = [dict(type='RandomCrop', crop_size=24), dict(type='PackInputs')]
    changes = {
        'DATA': dict(type='CIFAR100', data_root=str(tmp_path / 'none'), pipeline=pipeline),
        'model.architecture.head.num_classes': 100,
        'model.teacher.head.num_classes': 100,
    }
    report = check(edited(changes))
    assert not report.problems and len(report.losses) == 3
    assert 'SampleIndexDataset cannot be read: ' in report.notes[0]
    assert report.images == '4 x 3 x 24 x 24 uint8 (random)'
    assert report.data.endswith('SampleIndexDataset, not read, 100 classes')
    (bank,) = report.banks
    assert (bank.rows, bank.mib, bank.stand_in) == (None, None, 4096)
    assert 'unknown' in render(report)
    assert not (tmp_path / 'none').exists()
    line = only(check(edited(changes), stand_ins=False))  # as training does
    assert line.startswith('train_dataloader.dataset: crd_plugin.SampleIndexDataset cannot be read')
    assert line.endswith('set its data_root.')
    line = problem({**changes, 'model.architecture.head.num_classes': 10})
    assert 'the data set has 100 classes' in line
    # A crop that is larger than the image which is otherwise assumed.
    pipeline[0]['crop_size'] = 48
    changes['DIST.distill_losses.loss_crd.num_samples'] = 50000
    report = check(edited(changes), batch_size=2)
    assert report.images.startswith('2 x 3 x 48 x 48')
    (bank,) = report.banks
    assert bank.rows == 50000 and bank.mib == pytest.approx(2 * 50000 * 8 * 4 / 2**20)


def test_huge_bank_has_a_stand_in():
    inner = distillation()['train_dataloader']['dataset']['dataset']
    repeated = dict(type='RepeatDataset', times=5000, dataset=inner)  # 100,000 ids of 20 images
    changes = {
        'train_dataloader.dataset.num_negatives': 3,
        'DATA': repeated,
        'DIST.student_recorders.given': dict(type='crd_plugin.SampleField', source='contrast_idx'),
        'MAP.loss_crd.contrast_idx': record('given', True),
        'DIST.distill_losses.loss_crd.num_negatives': 3,
    }
    report = check(edited(changes))
    assert report.problems == []
    (bank,) = report.banks
    assert (bank.rows, bank.stand_in) == (100000, 4096)
    assert bank.mib == pytest.approx(2 * 100000 * 8 * 4 / 2**20)


def test_missing_images_of_a_data_set_that_is_listed(tmp_path):
    (tmp_path / 'list.txt').write_text('a.png 0\nb.png 1\n')
    steps = [dict(type='LoadImageFromFile'), dict(type='ResizeEdge', scale=20)]
    listed = dict(type='CustomDataset', data_root=str(tmp_path), ann_file='list.txt')
    dataset = dict(listed, with_label=True, pipeline=[*steps, dict(type='PackInputs')])
    report = check(edited({'train_dataloader.dataset': dataset}, vanilla()))
    assert report.problems == []
    assert report.data == 'CustomDataset, 2 samples' and '20 x 20' in report.images
    assert 'a.png' in report.notes[0] or 'b.png' in report.notes[0]


def test_two_bases_with_one_key(tmp_path):
    for name in 'ab':
        (tmp_path / f'{name}.py').write_text("work_dir = 'here'\n")
    leaf = tmp_path / 'leaf.py'
    leaf.write_text("_base_ = ['a.py', 'b.py']\n")
    with pytest.raises(UsageError, match='work_dir.* rename it in one of the files of _base_'):
        load_config(str(leaf))


def test_gradient_that_reaches_the_teacher():
    changes = {
        'model.type': 'mmrazor.SingleTeacherDistill',
        'DIST.connectors': ...,
        'custom_hooks': [],
        'model.teacher_trainable': True,
        **without('loss_crd'),
    }
    report = check(edited(changes))
    assert report.problems == []
    rows = {row.name: row for row in report.losses}
    assert rows['teacher.loss'].teacher > 0
    assert rows['teacher.loss'].student == 'none'


@pytest.mark.parametrize('missing', [True, False])
def test_tensorboard_opens_its_file_in_a_folder_that_is_removed(monkeypatch, tmp_path, missing):
    opened = []

    class Writer:
        def __init__(self, folder):
            opened.append(folder)

        close = opened.clear

    module = None if missing else SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', module)
    monkeypatch.chdir(tmp_path)
    before = dict(UniversalVisualizer._instance_dict)
    report = check(edited({'visualizer.vis_backends': ['TensorboardVisBackend']}, vanilla()))
    if missing:
        assert only(report).startswith('visualizer: Please run "pip install future tensorboard"')
    else:
        assert report.problems == [] and opened == []
    assert UniversalVisualizer._instance_dict == before and not list(tmp_path.iterdir())


def test_metrics_that_choose_the_best_checkpoint():
    for known in ('accuracy/top5', ['accuracy/top1', 'accuracy/top5'], 'auto', None):
        hook = dict(type='CheckpointHook', save_best=known, rule='greater')
        assert check(edited({'default_hooks.checkpoint': hook})).problems == []


@pytest.mark.parametrize(
    'launcher, variable',
    [('pytorch', 'WORLD_SIZE'), ('slurm', 'SLURM_NTASKS'), ('mpi', 'OMPI_COMM_WORLD_SIZE')],
)
def test_number_of_batches(monkeypatch, launcher, variable):
    assert sizes(21, drop_last=False).problems == [] and sizes(20).problems == []
    monkeypatch.setenv(variable, '2')
    assert sizes(20).problems == []  # without a launcher there is one process
    assert '10 samples per process' in only(sizes(11, changes=dict(launcher=launcher)))


def sizes(batch_size, drop_last=True, changes=()):
    loader = dict(batch_size=batch_size, drop_last=drop_last)
    loader = {f'train_dataloader.{key}': value for key, value in loader.items()}
    return check(edited({**dict(changes), **loader}))


def test_a_last_batch_of_one_sample():
    last = dict(recorder='maps', data_idx=-1)
    changes = with_stages('SPLoss', dict(last, from_student=True), dict(last, from_student=False))
    line = only(sizes(19, False, changes))
    assert line.startswith('train_dataloader: the last batch of an epoch has one sample, for which')
    assert 'SPLoss compares samples' in line and 'set drop_last=True' in line
    assert sizes(18, False, changes).problems == sizes(19, True, changes).problems == []
    assert sizes(19, False).problems == []  # CRD and KD take one


def with_stages(loss, student, teacher):
    """Changes that add a loss on maps of both networks."""
    recorder = dict(type='crd_plugin.StageOutputs', source='backbone')
    return {
        'DIST.student_recorders.maps': recorder,
        'DIST.teacher_recorders.maps': recorder,
        'DIST.distill_losses.loss_maps': dict(type=f'crd_plugin.{loss}'),
        'MAP.loss_maps': dict(s_feats=student, t_feats=teacher),
    }


@pytest.mark.parametrize(
    'loss, stages, activated, message',
    [
        ('ATLoss', (0, 1, 2), True, None),
        ('ATLoss', (2,), True, 'returns 1 stage, but ATLoss compares several; set model.architec'),
        ('ABLoss', (0, 1, 2), False, None),
        ('ABLoss', (0, 1, 2), True, 'have no negative value, but ABLoss compares signs'),
    ],
)
def test_features_that_a_loss_declares_to_need(loss, stages, activated, message):
    changes = with_stages(loss, record('maps', True), record('maps', False))
    changes.update(without('loss_crd'), **{'model.input_shape': (3, 8, 8)})
    for role in ('architecture', 'teacher'):
        changes[f'model.{role}.backbone.out_indices'] = stages
        changes[f'model.{role}.backbone.pre_activation'] = not activated
    report = check(edited(changes))
    if message is None:
        assert not report.problems
    else:
        assert only(report).startswith(full('MAP.loss_maps.s_feats: the '))
        assert message in only(report)


@MODELS.register_module(force=True)  # this file is imported by another one too
class DetachedConnector(EmbeddingConnector):
    """Trains itself, but not what is in front of it."""

    def forward(self, feature):
        return super().forward(feature[0].detach())


def test_more_negatives_than_there_are():
    report = check(edited({'DIST.distill_losses.loss_crd.num_negatives': 19}))
    assert not report.problems
    assert any('num_negatives=19 is more than the 18 possible' in note for note in report.notes)
    assert not any('num_negatives' in note for note in check(distillation()).notes)
