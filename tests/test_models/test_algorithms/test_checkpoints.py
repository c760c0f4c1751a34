"""Weights in other wrappings, and what is said of those that do not fit."""

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import WEIGHT_INITIALIZERS, init_default_scope
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS

from crd_plugin.models.algorithms.checkpoints import (
    find_weights,
    fit_weights,
    how_to_train,
    load_pretrained,
    load_strictly,
    use_pretrained_init,
)
from crd_plugin.registry import MODELS
from tests import small_runs


@pytest.fixture(scope='module')
def weights():
    """Weights that no fresh network has."""
    torch.manual_seed(11)
    return MODELS.build(small_runs.net(6)).state_dict()


def renamed(weights, change):
    return {change(name): value for name, value in weights.items()}


WRAPPINGS = dict(
    bare=lambda w: w,
    data_parallel=lambda w: dict(state_dict=renamed(w, 'module.{}'.format)),
    compiled=lambda w: renamed(w, '_orig_mod.{}'.format),
    compiled_in_parallel=lambda w: renamed(w, 'module._orig_mod.{}'.format),
    compiled_backbone=lambda w: renamed(w, lambda k: k.replace('backbone', 'backbone._orig_mod')),
    under_model=lambda w: dict(model=w, epoch=240, optimizer=dict(state={}), names=[]),
    under_ema=lambda w: dict(ema=renamed(w, 'model.{}'.format)),
    student_alone=lambda w: renamed(w, 'architecture.{}'.format),
    no_backbone=lambda w: renamed(w, lambda k: k.removeprefix('backbone.')),
    no_parts=lambda w: dict(net=renamed(w, lambda k: k.partition('.')[2])),
)


@pytest.mark.parametrize('wrapping', WRAPPINGS)
def test_the_right_weights_are_found(tmp_path, weights, wrapping, monkeypatch):
    said = []
    monkeypatch.setattr(MMLogger, 'info', lambda self, text: said.append(text))
    torch.save(WRAPPINGS[wrapping](weights), tmp_path / 'net.pth')
    model = MODELS.build(small_runs.net(6))
    load_pretrained(model, str(tmp_path / 'net.pth'), 'teacher')
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert any('teacher_ckpt=' in text for text in said) == (wrapping != 'bare')


@pytest.mark.parametrize(
    'content, message',
    [
        (
            dict(state_dict=None, ema={'w': torch.ones(1)}),
            'a.pth holds no weights but a dict of state_dict, ema; expected names with their ',
        ),
        ({}, 'holds no weights but a dict of none; '),
        (
            dict(model={'w': torch.ones(1)}, model_ema={'w': torch.ones(1)}, step=1),
            r'several sets of weights: model, model_ema; .*torch.save\(dict\(state_dict=',
        ),
    ],
)
def test_file_without_weights(content, message):
    with pytest.raises(ValueError, match=message):
        find_weights(content, 'a.pth')


def test_names_are_completed_only_if_all_fit(weights):
    model = MODELS.build(small_runs.net(6))
    assert fit_weights(weights, model, 'a.pth') is weights
    some = renamed(weights, lambda k: k.removeprefix('backbone.'))
    del some['head.fc.bias']
    assert fit_weights(some, model, 'a.pth') is some


@pytest.mark.parametrize(
    'change, message',
    [
        (
            lambda w: {'architecture.x': w['head.fc.bias'], 'distiller.y': w['head.fc.bias']},
            'unexpected architecture.x and 1 more; other shapes none. It is the checkpoint of a '
            'distillation: take the student out with tools/model_converters/publish_student.py '
            'first, or use the ',
        ),
        (
            lambda w: {k: v[:7] if 'head' in k else v for k, v in w.items()},
            r'shapes head.fc.weight \(7, 6\) instead of \(10, 6\) and 1 more. '
            r'The number of classes differs, 7 instead of 10. Do this.',
        ),
        (
            lambda w: {k: v[:1] if 'head' in k and v.dim() == 1 else v for k, v in w.items()},
            r'^a.pth does not fit it: missing none; unexpected none; other shapes head.fc.bias '
            r'\(1,\) instead of \(10,\). The number',
        ),
        (
            lambda w: {k: v for k, v in w.items() if 'conv' not in k},
            'missing backbone.conv.weight and 1 more; unexpected none; .* none. Do this.$',
        ),
    ],
)
def test_what_differs_is_told(weights, change, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_strictly(MODELS.build(small_runs.net(6)), change(weights), 'a.pth', 'it', 'Do this.')
    assert '\n' not in str(caught.value)


def test_missing_file_says_how_to_make_it(tmp_path, monkeypatch):
    monkeypatch.chdir(small_runs.REPO)
    config = 'configs/vanilla/vanilla_resnet14_b20-100e_digits.py'
    made = 'work_dirs/vanilla_resnet14_b20-100e_digits/epoch_100.pth'
    assert how_to_train(made).startswith(f'make it with `python tools/train.py {config}`, or ')
    for other in ('teacher.pth', 'work_dirs/mine/epoch_1.pth'):
        assert how_to_train(other) == 'give the path of a trained checkpoint'
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f'teacher_ckpt={made} does not exist; make it'):
        load_pretrained(MODELS.build(small_runs.net(6)), made, 'teacher')
    with pytest.raises(FileNotFoundError, match=f'{tmp_path} is a folder'):
        load_pretrained(MODELS.build(small_runs.net(6)), str(tmp_path), 'teacher')


# --- init_cfg of type Pretrained ---------------------------------------------- #


@pytest.fixture
def strict():
    init_default_scope('mmpretrain')
    upstream = WEIGHT_INITIALIZERS.get('Pretrained')
    use_pretrained_init()
    yield
    WEIGHT_INITIALIZERS.register_module(name='Pretrained', module=upstream, force=True)


def resnet(depth, **settings):
    """Config of a network whose depths share their first blocks."""
    backbone = dict(type='crd_plugin.CIFARResNet', depth=depth, **settings)
    head = dict(type='LinearClsHead', num_classes=10, in_channels=64)
    return dict(
        type='ImageClassifier', backbone=backbone, neck=dict(type='GlobalAveragePooling'), head=head
    )


def initialised(cfg, part, path, prefix=None):
    target = cfg[part] if part else cfg
    target['init_cfg'] = dict(type='Pretrained', checkpoint=str(path), prefix=prefix)
    net = MMPRETRAIN_MODELS.build(cfg)
    net.init_weights()
    return net


@pytest.fixture
def file(tmp_path, strict):
    torch.manual_seed(11)
    weights = MMPRETRAIN_MODELS.build(resnet(14)).state_dict()
    torch.save(dict(state_dict=weights), tmp_path / 'net.pth')
    return tmp_path / 'net.pth'


@pytest.mark.parametrize('part, prefix', [('', None), ('backbone', 'backbone'), ('head', 'head.')])
def test_what_fits_is_loaded(file, part, prefix):
    net = initialised(resnet(14), part, file, prefix)
    weights = small_runs.load(file)['state_dict']
    loaded = {name: v for name, v in net.state_dict().items() if name.startswith(part)}
    assert loaded and all(torch.equal(value, weights[name]) for name, value in loaded.items())


def test_parts_that_are_not_there(file, caplog):
    weights = small_runs.load(file)['state_dict']
    weights = {k.removeprefix('backbone.'): v for k, v in weights.items()}
    bn = weights.pop('bn1.weight')
    torch.save(weights, file)
    net = initialised(resnet(14), 'backbone', file)  # as torchvision's, with a classifier
    assert torch.equal(net.backbone.conv1.weight, weights['conv1.weight'])
    assert net.backbone.bn1.weight.eq(1).all() and bn.numel() == 16


@pytest.mark.parametrize(
    'cfg, part, prefix, message',
    [
        (resnet(8), 'backbone', 'backbone', 'unexpected layer1.1.conv1.weight.*Give the config'),
        (resnet(20), 'backbone', 'backbone', 'CIFARResNet: missing layer1.2.conv1.weight'),
        (resnet(14, base_channels=8), 'backbone', 'backbone', r'shapes .*\(16, .*\) instead of'),
        (resnet(14), 'backbone', None, 'missing conv1.weight.*unexpected none.*prefix='),
        (resnet(14), 'backbone', 'back', "nothing under prefix='back'; .* with backbone, head."),
    ],
)
def test_the_rest_is_refused(file, cfg, part, prefix, message):
    with pytest.raises(ValueError, match=f'^init_cfg.checkpoint={file} .*{message}'):
        initialised(cfg, part, file, prefix)
