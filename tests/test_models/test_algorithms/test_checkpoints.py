"""Weights in other wrappings, and what is said of those that do not fit."""

import pytest
import torch
from mmengine.logging import MMLogger

from crd_plugin.models.algorithms.checkpoints import (
    find_weights,
    fit_weights,
    how_to_train,
    load_pretrained,
    load_strictly,
)
from crd_plugin.registry import MODELS
from tests import small_runs


@pytest.fixture(scope='module')
def weights():
    """Weights that no fresh network has."""
    torch.manual_seed(11)
    return MODELS.build(small_runs.net(6)).state_dict()


def renamed(weights, change):
    """Weights under other names."""
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
