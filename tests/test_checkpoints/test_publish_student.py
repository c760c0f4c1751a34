"""Tests of publishing: the student alone is the student of the distiller."""

import copy
import hashlib

import mmpretrain
import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS

from crd_plugin.checkpoints.publish import parse_config_text, publish_student, student_config
from crd_plugin.compat import CheckpointError, load_checkpoint_file
from tests.small_runs import student_of
from tests.test_cli.test_arguments import call


@pytest.fixture(scope='module')
def raw(checkpoint):
    return load_checkpoint_file(checkpoint)


@pytest.fixture(scope='module')
def published(checkpoint, run):
    return publish_student(checkpoint, run / 'out' / 'student.pth')


def assert_same(state, expected):
    assert list(state) == list(expected)
    for key, value in expected.items():
        assert torch.equal(state[key], value), key


def loaded(path):
    return torch.load(path, weights_only=True)


def build(cfg, **kwargs):
    cfg.update(kwargs)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(cfg)


def test_holds_the_student_and_nothing_else(raw, checkpoint, published):
    assert {'optimizer', 'message_hub', 'ema_state_dict'} < set(raw)
    # EMAHook saves the averages, which are published, as state_dict.
    found = loaded(published)
    assert set(found) == {'meta', 'state_dict'}
    assert_same(found['state_dict'], student_of(raw))
    kept = 'dataset_meta epoch iter seed experiment_name time mmengine_version cfg'
    assert set(found['meta']) == set(kept.split())
    assert found['meta']['dataset_meta']['classes'] == tuple('0123456789')
    assert found['meta']['epoch'] == 2
    assert published.stat().st_size < checkpoint.stat().st_size / 3
    text = found['meta']['cfg']
    for word in ('teacher', 'CRDLoss', 'MemoryBankHook', 'optim_wrapper'):
        assert word not in text


def test_name_is_the_hash(checkpoint, run, published):
    digest = hashlib.sha256(published.read_bytes()).hexdigest()[:8]
    assert published.name == f'student-{digest}.pth'
    # The same bytes under another name, in a folder, and a second time.
    other = publish_student(checkpoint, run / 'out' / 'other')
    assert other.name == f'other-{digest}.pth'
    assert other.read_bytes() == published.read_bytes()
    (run / 'folder').mkdir()
    for folder, out in ((run / 'folder', run / 'folder'), (run / 'made', f'{run}/made/')):
        assert publish_student(checkpoint, out) == folder / f'epoch_2-{digest}.pth'
    before = published.stat().st_mtime_ns
    assert publish_student(checkpoint, run / 'out' / 'student.pth') == published
    assert published.stat().st_mtime_ns == before
    assert not list(run.rglob('*.part'))


def test_get_model(raw, published):
    cfg = Config.fromstring(loaded(published)['meta']['cfg'], '.py')
    model = mmpretrain.get_model(cfg, pretrained=str(published))
    assert_same(model.state_dict(), student_of(raw))
    assert model._dataset_meta['classes'] == tuple('0123456789')
    assert model.data_preprocessor.mean.flatten().tolist() == [78.0] * 3


def test_same_predictions_from_the_test_tool(run, checkpoint, published):
    """The distillation is tested without the file of its teacher."""
    (run / 'gone.py').write_text(
        "_base_ = './crd.py'\nmodel = dict(teacher_ckpt='gone/teacher.pth')\n"
    )
    scores = {}
    for name, weights in (('gone', checkpoint), ('vanilla', published)):
        flags = ['--out', run / f'{name}.pkl', '--work-dir', run / 'test']
        flags += ['--cfg-options', f'experiment_name={name}_{run.name}']
        assert call('test', run / f'{name}.py', weights, *flags) == 0
        scores[name] = [sample['pred_score'] for sample in load(run / f'{name}.pkl')]
    assert torch.stack(scores['gone']).shape == (50, 10)
    assert torch.equal(torch.stack(scores['gone']), torch.stack(scores['vanilla']))


def test_starts_a_student_and_serves_as_teacher(run, raw, published):
    distillation, student = (
        Config.fromfile(run / f'{name}.py').model for name in ('crd', 'vanilla')
    )
    file = str(published)
    model = build(copy.deepcopy(distillation), student_ckpt=file).student
    pretrained = build(copy.deepcopy(student), init_cfg=dict(type='Pretrained', checkpoint=file))
    teacher = build(distillation, teacher=student, teacher_ckpt=file).teacher
    for network in (model, pretrained, teacher):
        network.init_weights()
        assert_same(network.state_dict(), student_of(raw))


def test_vanilla_checkpoint_is_stripped(raw, tmp_path):
    weights = student_of(raw)
    source = tmp_path / 'plain.pth'
    others = dict(optimizer=dict(state=torch.zeros(10000)), meta=dict(raw['meta'], hook_msgs='x'))
    for content in (dict(state_dict=weights, **others), weights):
        torch.save(content, source)
        found = loaded(publish_student(source, tmp_path / f'{len(content)}.pth'))
        assert set(found) == {'meta', 'state_dict'}
        assert 'hook_msgs' not in found['meta']
        assert_same(found['state_dict'], weights)


def test_config_must_fit(run, checkpoint):
    for name in ('vanilla', 'crd'):
        out = run / 'out' / f'with_{name}.pth'
        text = loaded(publish_student(checkpoint, out, str(run / f'{name}.py')))['meta']['cfg']
        assert Config.fromstring(text, '.py').model.type == 'mmpretrain.ImageClassifier'
    wide = Config.fromfile(run / 'vanilla.py')
    wide.model.head.num_classes = 7
    with pytest.raises(ValueError, match='does not fit config.*head.fc'):
        publish_student(checkpoint, run / 'out' / 'wide.pth', wide)
    with pytest.raises(ValueError, match='config has no `model`'):
        publish_student(checkpoint, run / 'out' / 'none.pth', Config({}))
    assert not list(run.glob('out/wide*')) + list(run.glob('out/none*'))


@pytest.mark.parametrize(
    'content, message',
    [
        ([1, 2], 'holds a list, expected a dict with weights'),
        (dict(a=1), 'holds no weights but a dict of a; expected'),
        (dict(state_dict={}), 'holds no weights but a dict of state_dict; expected'),
        ({'distiller.w': torch.ones(1)}, 'has a distiller but no student'),
    ],
)
def test_foreign_file(tmp_path, content, message):
    torch.save(content, tmp_path / 'foreign.pth')
    with pytest.raises((ValueError, CheckpointError), match=message):
        publish_student(tmp_path / 'foreign.pth', tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_config_text_is_not_run(tmp_path):
    marker = tmp_path / 'marker'
    evil = f"model = open({str(marker)!r}, 'w')\n"
    for text, message in (
        (evil, 'line 1 is not a plain value'),
        ('import os\n', 'line 1 is not a plain assignment'),
        ('a.b = 1\n', 'line 1 is not a plain assignment'),
        ('a = dict([1], b=2)\n', 'line 1 is not a plain value'),
        ('a = (\n', 'not a config'),
    ):
        with pytest.raises(ValueError, match=message):
            parse_config_text(text)
    source = tmp_path / 'evil.pth'
    torch.save(dict(state_dict={'architecture.w': torch.ones(2)}, meta=dict(cfg=evil)), source)
    target = publish_student(source, tmp_path / 'out.pth')
    assert 'cfg' not in loaded(target)['meta']
    assert not marker.exists()


def test_config_text_of_every_kind():
    values = dict(
        number=-1.5,
        nothing=None,
        pair=(1, 'two'),
        nested=dict(a=[dict(b=True)], c={'1': 2, 3: {'d-e': []}}),
        infinite=float('inf'),
        empty=dict(),
    )
    assert parse_config_text(Config(values).pretty_text) == values


def test_student_config():
    """Its own data preprocessor counts if it has a mean; a view leaves the test data out."""
    start = dict(type='Pretrained', checkpoint='here.pth')
    model = dict(
        type='Distill',
        data_preprocessor=dict(type='Own'),
        teacher_ckpt='teacher.pth',
        architecture=dict(
            type='Net',
            data_preprocessor=dict(type='Inner'),
            init_cfg=start,
            backbone=dict(init_cfg=dict(type='Kaiming')),
        ),
    )
    kept = dict(default_scope='mmpretrain', test_cfg={}, test_dataloader=dict(dataset='stacked'))
    cfg = dict(kept, work_dir='here', data_preprocessor=dict(type='Runner'), model=model)
    student = dict(type='Net', backbone=dict(init_cfg=dict(type='Kaiming')))
    assert student_config(cfg) == dict(kept, data_preprocessor=dict(type='Own'), model=student)
    own = model['architecture']['data_preprocessor'] = dict(type='Inner', mean=[1.0])
    assert student_config(cfg) == dict(kept, data_preprocessor=own, model=student)
    model['student_view'] = dict(type='crd_plugin.ChannelView', channels=[3])
    # Of the images of the distillation, in their order.
    own['to_rgb'], model['data_preprocessor']['to_rgb'] = False, True
    own = dict(own, to_rgb=True)
    without_test = dict(default_scope='mmpretrain', data_preprocessor=own, model=student)
    assert student_config(cfg) == without_test


def test_student_config_of_what_is_published():
    """A pipeline that takes files already is left as it is."""
    dataset = dict(type='CIFAR100', pipeline=[dict(type='PackInputs')])
    cfg = dict(model=dict(type='Net'), test_dataloader=dict(dataset=dataset))
    plain = student_config(cfg)
    pipeline = plain['test_dataloader']['dataset']['pipeline']
    assert [step['type'] for step in pipeline] == ['crd_plugin.FilesToRGB', 'PackInputs']
    assert student_config(plain) == plain and len(dataset['pipeline']) == 1


def test_command_line(checkpoint, tmp_path, capsys):
    tool = 'model_converters/publish_student'
    out = tmp_path / 'student.pth'
    assert call(tool, checkpoint, out) == 0
    (target,) = tmp_path.iterdir()
    assert capsys.readouterr().out.strip().endswith(str(target))
    target.write_text('mine')
    for argv, message in (
        ((tmp_path / 'none.pth', tmp_path), 'none.pth does not exist'),
        ((checkpoint, out), 'is another file'),
        ((checkpoint, tmp_path, '--config', 'none.py'), 'config none.py does not exist'),
    ):
        assert call(tool, *argv) == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith('error: ') and message in error
