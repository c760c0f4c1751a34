"""Teachers of RepDistiller become checkpoints of our configs."""

import argparse
import hashlib
import os
import shutil
from collections import OrderedDict

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import load_checkpoint
from mmpretrain import get_model
from mmpretrain.registry import MODELS

from crd_plugin.checkpoints.convert_repdistiller import convert_repdistiller
from crd_plugin.checkpoints.publish import parse_config_text
from crd_plugin.compat import CheckpointError
from crd_plugin.models.backbones import build_cifar_classifier_cfg
from tests.repdistiller import NAMES, assert_logits, images, state_of
from tests.test_cli.test_arguments import call


def save(path, content, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path, **kwargs)
    return path


def load(path):
    return torch.load(path, weights_only=True)


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


@pytest.fixture
def out(tmp_path):
    """Where a checkpoint is written to."""
    return tmp_path / 'new' / 'out.pth'


@torch.no_grad()
def assert_converts(name, source, out):
    """The checkpoint fits our config and gives the original's logits."""
    target = convert_repdistiller(source, out, name)
    model = MODELS.build(build_cifar_classifier_cfg(name, 100)).eval()
    load_checkpoint(model, str(target), strict=True)
    assert_logits(name, model(images(), mode='tensor'))
    return load(target)


@pytest.mark.parametrize('name', NAMES)
def test_every_architecture(name, folder):
    content = dict(model=OrderedDict(state_of(name)), epoch=240)
    source = save(folder / f'{name}_vanilla' / 'ckpt_epoch_240.pth', content)
    meta = assert_converts(name, source, folder / 'out.pth')['meta']
    assert (meta['architecture'], meta['num_classes']) == (name, 100)


@torch.no_grad()
def test_what_is_in_the_file(released, out):
    target = convert_repdistiller(released, out)
    found = load(target)
    assert set(found) == {'meta', 'state_dict'}
    meta = found['meta']
    text = meta.pop('cfg')
    assert meta == dict(
        architecture='resnet8',
        num_classes=100,
        epoch=240,
        accuracy=59.5,
        source='ckpt_epoch_240.pth',
        source_sha256=hashlib.sha256(released.read_bytes()).hexdigest(),
    )
    cfg = parse_config_text(text)
    assert cfg['model'] == build_cifar_classifier_cfg('resnet8', 100)
    assert list(found['state_dict']) == list(MODELS.build(cfg['model']).state_dict())
    model = get_model(Config.fromstring(text, '.py'), pretrained=str(target))
    assert_logits('resnet8', model.eval()(images(), mode='tensor'))


@pytest.mark.parametrize('arch, name', [(None, 'resnet8x4'), ('ResNet8', 'resnet8')])
def test_architecture_by_its_weights_or_the_flag(arch, name, folder):
    source = save(folder / 'vgg8_vanilla' / 'x.pth', dict(model=state_of(name)))
    meta = load(convert_repdistiller(source, folder / 'out.pth', arch))['meta']
    assert meta['architecture'] == name
    # Neither is known of this file, so neither is made up.
    assert not {'epoch', 'accuracy'} & set(meta)


def altered(drop=None, **more):
    """Weights of a ResNet-8 without those of a module, and with others."""
    state = {k: v for k, v in state_of('resnet8').items() if k.partition('.')[0] != drop}
    return dict(model={**state, **more})


class Foreign:
    """Any object that is not plain data."""


REFUSED = dict(
    unknown_name=(None, 'resnet9', "'resnet9' is not in the zoo; the nearest are"),
    other_depth=(
        altered(),
        'resnet14',
        r'does not fit resnet14: missing backbone.layer1.1.conv1.weight and 29 more; '
        'unexpected none; other shapes none. Leave --arch out',
    ),
    of_no_network=(
        altered(**{'extra.weight': torch.zeros(1)}),
        None,
        r'fits no network of the zoo \(resnet8, ',
    ),
    no_classifier=(altered('fc'), 'resnet8', 'missing head.fc.weight and 1 more; '),
    a_list=([1], None, 'holds a list, expected a dict with weights'),
    of_mmengine=(
        dict(state_dict={}, meta={}),
        None,
        'holds no weights but a dict of state_dict, meta; ',
    ),
    bare_options=(dict(opt=argparse.Namespace()), None, 'holds no weights but a dict of opt; '),
    objects=(dict(model={}, opt=Foreign()), None, r'class \S+Foreign, .*`state_dict` alone'),
)


@pytest.mark.parametrize('name', REFUSED)
def test_refused(name, tmp_path, out):
    content, arch, message = REFUSED[name]
    source = save(tmp_path / 'a' / 'b.pth', altered() if content is None else content)
    with pytest.raises((ValueError, CheckpointError), match=message):
        convert_repdistiller(source, out, arch)
    assert not out.exists()
    # The exception for Namespace is not left behind.
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


def test_other_forms_of_the_file(released, tmp_path):
    state = state_of('resnet8')
    # The last file of a run holds the options of the command line.
    opt = argparse.Namespace(model='resnet8', lr=0.05, decay=[150, 180, 210])
    source = save(released, dict(opt=opt, model=state))
    assert_converts('resnet8', source, tmp_path / '1.pth')
    # DataParallel; the best file of a run.
    parallel = {f'module.{key}': value for key, value in state.items()}
    source = save(released, dict(model=parallel, best_acc=60))
    assert assert_converts('resnet8', source, tmp_path / '2.pth')['meta']['accuracy'] == 60
    # torch 0.4.0: no zip file, and batch norm counts no batches.
    old = {key: state[key] for key in state if not key.endswith('num_batches_tracked')}
    source = save(released, dict(model=old), _use_new_zipfile_serialization=False)
    found = assert_converts('resnet8', source, tmp_path / '3.pth')
    assert found['state_dict']['backbone.bn1.num_batches_tracked'] == 0


def test_number_of_classes_is_that_of_the_weights(released, out):
    state = state_of('resnet8')
    state.update({key: value[:10] for key, value in state.items() if key.startswith('fc.')})
    found = load(convert_repdistiller(save(released, dict(model=state)), out))
    assert found['meta']['num_classes'] == 10
    weight = found['state_dict']['head.fc.weight']
    assert weight.shape == (10, 64)
    # The view of a larger weight is saved without its storage.
    assert weight.untyped_storage().nbytes() == 10 * 64 * 4


def test_out_is_written_whole_and_never_over_another(released, tmp_path, monkeypatch):
    out = tmp_path / 'out.pth'
    before = convert_repdistiller(released, out).read_bytes()
    stamp = out.stat().st_mtime_ns
    assert convert_repdistiller(released, out) == out
    assert out.stat().st_mtime_ns == stamp
    assert convert_repdistiller(released, tmp_path / 'other.pth').read_bytes() == before
    out.write_text('mine')
    for taken in (out, released):
        with pytest.raises(FileExistsError, match='another file; remove it'):
            convert_repdistiller(released, taken)
    assert out.read_text() == 'mine'

    def fail(*args):
        raise OSError('no space left')

    monkeypatch.setattr(os, 'replace', fail)
    with pytest.raises(OSError, match='no space left'):
        convert_repdistiller(released, tmp_path / 'third.pth')
    assert {path.name for path in tmp_path.iterdir()} == {'out.pth', 'other.pth', 'resnet8_vanilla'}


def test_command_line(released, tmp_path, capsys):
    tool = 'model_converters/repdistiller_to_crd'
    out = tmp_path / 'out.pth'
    assert call(tool, released, out) == 0
    assert capsys.readouterr().out.strip().endswith(str(out))
    for argv, message in (
        ((released, tmp_path / 'b.pth', '--arch', 'resnet14'), 'resnet14'),
        ((tmp_path / 'none.pth', tmp_path / 'b.pth'), 'none.pth does not exist'),
        ((released, tmp_path), 'is a folder'),
    ):
        assert call(tool, *argv) == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith('error: ') and message in error
