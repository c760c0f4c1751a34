"""Teachers of RepDistiller become checkpoints of our configs."""

import argparse
import hashlib
import importlib.util
import os
import shutil
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import load_checkpoint
from mmpretrain import get_model
from mmpretrain.registry import MODELS

from crd_plugin.cli import arguments as cli
from crd_plugin.compat import CheckpointError
from crd_plugin.checkpoints.convert_repdistiller import convert_repdistiller
from crd_plugin.checkpoints.publish import parse_config_text
from crd_plugin.fragments import join
from crd_plugin.models.backbones import build_cifar_classifier_cfg
from tests.repdistiller import NAMES, assert_logits, images, state_of

ROOT = Path(__file__).parents[2]


def load_tool():
    path = ROOT / 'tools/model_converters/repdistiller_to_crd.py'
    spec = importlib.util.spec_from_file_location('repdistiller_to_crd', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOOL = load_tool()


def run_tool(*argv):
    return cli.run(TOOL.main, [str(arg) for arg in argv])


def save(path, content, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path, **kwargs)
    return path


@pytest.fixture
def folder(tmp_path):
    """A folder that is emptied at once; the networks are large."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.fixture
def released(tmp_path):
    """ResNet-8 as the original saves it at the end of an epoch."""
    return save(
        tmp_path / 'resnet8_vanilla' / 'ckpt_epoch_240.pth',
        dict(
            epoch=240,
            model=state_of('resnet8'),
            accuracy=torch.tensor(59.5),
            optimizer=dict(state={}, param_groups=[dict(lr=5e-5)]),
        ),
    )


@pytest.mark.parametrize('name', NAMES)
@torch.no_grad()
def test_every_architecture(name, folder):
    source = save(
        folder / f'{name}_vanilla' / 'ckpt_epoch_240.pth',
        dict(model=OrderedDict(state_of(name)), epoch=240),
    )
    target = convert_repdistiller(source, folder / 'out.pth')
    meta = torch.load(target, weights_only=True)['meta']
    assert (meta['architecture'], meta['num_classes']) == (name, 100)
    model = MODELS.build(build_cifar_classifier_cfg(name, 100)).eval()
    load_checkpoint(model, str(target), strict=True)
    assert_logits(name, model(images(), mode='tensor'))


def test_what_stands_in_the_file(released, tmp_path):
    target = convert_repdistiller(released, tmp_path / 'new' / 'out.pth')
    found = torch.load(target, weights_only=True)
    assert set(found) == {'meta', 'state_dict'}
    meta = found['meta']
    cfg = parse_config_text(meta.pop('cfg'))
    assert meta == dict(
        architecture='resnet8',
        num_classes=100,
        epoch=240,
        accuracy=59.5,
        source='ckpt_epoch_240.pth',
        source_sha256=hashlib.sha256(released.read_bytes()).hexdigest(),
    )
    assert cfg['model'] == build_cifar_classifier_cfg('resnet8', 100)
    own = MODELS.build(cfg['model']).state_dict()
    assert list(found['state_dict']) == list(own)


@torch.no_grad()
def test_config_in_the_file_serves_get_model(released, tmp_path):
    target = convert_repdistiller(released, tmp_path / 'out.pth')
    text = torch.load(target, weights_only=True)['meta']['cfg']
    model = get_model(Config.fromstring(text, '.py'), pretrained=str(target))
    assert_logits('resnet8', model.eval()(images(), mode='tensor'))


def distiller(teacher, checkpoint):
    pair = dict(
        architecture=build_cifar_classifier_cfg('resnet8', 100),
        teacher=build_cifar_classifier_cfg(teacher, 100),
        teacher_ckpt=str(checkpoint),
    )
    cfg = join(pair, Config.fromfile(ROOT / 'configs/_base_/distillers/kd.py').kd)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(cfg)


@torch.no_grad()
def test_serves_as_teacher(folder):
    source = save(
        folder / 'wrn_40_1_vanilla' / 'ckpt_epoch_240.pth', dict(model=state_of('wrn_40_1'))
    )
    target = convert_repdistiller(source, folder / 'out.pth')
    model = distiller('wrn_40_1', target)
    model.init_weights()
    assert_logits('wrn_40_1', model.teacher(images(), mode='tensor'))
    with pytest.raises(ValueError, match='does not fit the teacher: missing '):
        distiller('wrn_16_1', target)
    with pytest.raises(ValueError, match='other shapes backbone.block1'):
        distiller('wrn_40_2', target)


@pytest.mark.parametrize(
    'path, name',
    [
        ('resnet8x4_vanilla/ckpt_epoch_240.pth', 'resnet8x4'),
        ('resnet8x4_cifar100_lr_0.05_decay_0.0005_trial_0/x.pth', 'resnet8x4'),
        ('S:resnet8x4_T:resnet32x4_cifar100_kd_r:0.1_1/x.pth', 'resnet8x4'),
        ('models/resnet8x4_best.pth', 'resnet8x4'),
        ('ResNet8x4.pth', 'resnet8x4'),
    ],
)
def test_architecture_by_folder_or_file(path, name, folder):
    source = save(folder / path, dict(model=state_of(name)))
    target = convert_repdistiller(source, folder / 'out.pth')
    found = torch.load(target, weights_only=True)['meta']
    assert found['architecture'] == name


def test_flag_comes_before_the_folder(folder):
    source = save(folder / 'vgg8_vanilla' / 'x.pth', dict(model=state_of('resnet8')))
    target = convert_repdistiller(source, folder / 'out.pth', 'ResNet8')
    meta = torch.load(target, weights_only=True)['meta']
    assert meta['architecture'] == 'resnet8'
    # Neither is known of this file, so neither is made up.
    assert not {'epoch', 'accuracy'} & set(meta)


def test_unknown_architecture(released, tmp_path):
    out = tmp_path / 'out.pth'
    with pytest.raises(ValueError, match="'resnet9' is not in the zoo; the nearest are"):
        convert_repdistiller(released, out, 'resnet9')
    plain = save(tmp_path / 'a' / 'b.pth', dict(model=state_of('resnet8')))
    with pytest.raises(
        ValueError,
        match='neither the folder nor the name .* give it by --arch. Its '
        'weights are those of resnet8: give --arch resnet8',
    ):
        convert_repdistiller(plain, out)
    assert not out.exists()


def test_weights_that_do_not_fit(released, tmp_path):
    out = tmp_path / 'out.pth'
    with pytest.raises(
        ValueError,
        match='does not fit resnet14: missing backbone.layer1.1.conv1.'
        r'weight, .* and 31 more; unexpected none; other shapes none. '
        'Its weights are those of resnet8: give --arch resnet8',
    ):
        convert_repdistiller(released, out, 'resnet14')
    with pytest.raises(
        ValueError,
        match=r'other shapes conv1.weight \(16, 3, 3, 3\) instead of '
        r'\(32, 3, 3, 3\)',
    ):
        convert_repdistiller(released, out, 'resnet8x4')
    state = state_of('resnet8')
    state['extra.weight'] = torch.zeros(1)
    with pytest.raises(
        ValueError,
        match='unexpected extra.weight; other shapes none. Its weights '
        'fit no network of the zoo: resnet8, ',
    ):
        convert_repdistiller(save(released, dict(model=state)), out)
    state = {k: v for k, v in state_of('resnet8').items() if k[:2] != 'fc'}
    with pytest.raises(ValueError, match='has no classifier: none of fc, '):
        convert_repdistiller(save(released, dict(model=state)), out)
    assert not out.exists()


def assert_converts(source, out):
    target = convert_repdistiller(source, out)
    model = MODELS.build(build_cifar_classifier_cfg('resnet8', 100)).eval()
    load_checkpoint(model, str(target), strict=True)
    with torch.no_grad():
        assert_logits('resnet8', model(images(), mode='tensor'))
    return torch.load(target, weights_only=True)


def test_other_forms_of_the_file(released, tmp_path):
    state = state_of('resnet8')
    # The last file of a run holds the options of the command line.
    opt = argparse.Namespace(model='resnet8', lr=0.05, decay=[150, 180, 210])
    source = save(released, dict(opt=opt, model=state))
    assert_converts(source, tmp_path / '1.pth')
    # DataParallel; the best file of a run.
    state = {f'module.{key}': value for key, value in state.items()}
    source = save(released, dict(model=state, best_acc=60))
    found = assert_converts(source, tmp_path / '2.pth')
    assert found['meta']['accuracy'] == 60
    # torch 0.4.0: no zip file, and batch norm counts no batches.
    state = {
        key: value
        for key, value in state_of('resnet8').items()
        if not key.endswith('num_batches_tracked')
    }
    source = save(released, dict(model=state), _use_new_zipfile_serialization=False)
    found = assert_converts(source, tmp_path / '3.pth')
    assert found['state_dict']['backbone.bn1.num_batches_tracked'] == 0


def test_number_of_classes_is_that_of_the_weights(released, tmp_path):
    state = state_of('resnet8')
    state.update({key: value[:10] for key, value in state.items() if key.startswith('fc.')})
    target = convert_repdistiller(save(released, dict(model=state)), tmp_path / 'out.pth')
    found = torch.load(target, weights_only=True)
    assert found['meta']['num_classes'] == 10
    assert found['state_dict']['head.fc.weight'].shape == (10, 64)
    # The view of a larger weight leaves its storage behind.
    weight = found['state_dict']['head.fc.weight']
    assert weight.untyped_storage().nbytes() == 10 * 64 * 4


class Foreign:
    """Any object that is not plain data."""


def test_other_objects_are_refused(released, tmp_path):
    save(released, dict(model=state_of('resnet8'), opt=Foreign()))
    with pytest.raises(CheckpointError, match=r"class \S+Foreign, .* torch.save\({'model': loaded"):
        convert_repdistiller(released, tmp_path / 'out.pth')
    # Nor is the exception for Namespace left behind.
    save(released, dict(opt=argparse.Namespace()))
    with pytest.raises(ValueError, match='holds a dict of opt, expected'):
        convert_repdistiller(released, tmp_path / 'out.pth')
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


@pytest.mark.parametrize(
    'content, found',
    [
        ([1], 'holds list'),
        (dict(state_dict={}, meta={}), 'holds a dict of state_dict, meta, '),
        (dict(model={}), 'holds a dict of model, '),
        (dict(model=dict(a=1)), "expected a dict whose 'model' is a state_dict"),
    ],
)
def test_other_formats(content, found, released, tmp_path):
    save(released, content)
    with pytest.raises(ValueError, match=found):
        convert_repdistiller(released, tmp_path / 'out.pth')


def test_damaged_file(released, tmp_path):
    released.write_bytes(released.read_bytes()[:3000])
    with pytest.raises(CheckpointError, match='truncated') as caught:
        convert_repdistiller(released, tmp_path / 'out.pth')
    assert 'weights_only' not in str(caught.value)


def test_out_is_written_whole_and_never_over_another(released, tmp_path, monkeypatch):
    out = tmp_path / 'out.pth'
    with pytest.raises(FileExistsError, match='is a folder; give a file'):
        convert_repdistiller(released, tmp_path)
    before = convert_repdistiller(released, out).read_bytes()
    stamp = out.stat().st_mtime_ns
    assert convert_repdistiller(released, out) == out
    assert out.stat().st_mtime_ns == stamp
    other = convert_repdistiller(released, tmp_path / 'other.pth')
    assert other.read_bytes() == before
    out.write_text('mine')
    with pytest.raises(FileExistsError, match='another file; remove it'):
        convert_repdistiller(released, out)
    with pytest.raises(FileExistsError, match='another file'):
        convert_repdistiller(released, released)
    assert out.read_text() == 'mine'

    def fail(*args):
        raise OSError('no space left')

    monkeypatch.setattr(os, 'replace', fail)
    with pytest.raises(OSError, match='no space left'):
        convert_repdistiller(released, tmp_path / 'third.pth')
    assert {path.name for path in tmp_path.iterdir()} == {'out.pth', 'other.pth', 'resnet8_vanilla'}


def test_command_line(released, tmp_path, capsys):
    out = tmp_path / 'out.pth'
    assert run_tool(released, out) == 0
    assert capsys.readouterr().out.strip().endswith(str(out))
    assert run_tool(released, tmp_path / 'b.pth', '--arch', 'resnet14') == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith('error: checkpoint') and 'resnet14' in error
    assert run_tool(tmp_path / 'none.pth', tmp_path / 'b.pth') == 1
    assert 'none.pth does not exist' in capsys.readouterr().err
    assert run_tool(released, tmp_path) == 1
    assert 'is a folder' in capsys.readouterr().err
