"""Dry runs of CoCoRD: three views, its hook, its loss."""

import copy

import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope

from crd_plugin.engine.dry_run import render, run_dry
from tests import small_runs
from tests.cocord import run_changes

VIEWS = "dict(type='crd_plugin.MultiViewPipeline'"
HOOK = dict(type='crd_plugin.CoCoRDHook')


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


def config(tmp_path, **changes):
    """Plain dicts; reading the digits takes no text of the config."""
    cfg = small_runs.config(tmp_path, **{**run_changes(), **changes}).to_dict()
    cfg['train_dataloader']['dataset']['dataset']['serialize_data'] = False
    return cfg


def check(cfg):
    return run_dry(Config(copy.deepcopy(cfg)))


def only(report):
    assert len(report.problems) == 1, report.problems
    return report.problems[0]


def loss_names(report):
    return {row.name for row in report.losses}


def pipeline_of(cfg):
    return cfg['train_dataloader']['dataset']['dataset']['pipeline']


def test_all_is_fine(tmp_path):
    report = check(config(tmp_path))
    assert report.problems == []
    assert ', 3 views (size from a training sample)' in report.images
    assert loss_names(report) == {'student.loss', 'distill.loss_cocord'}
    for row in report.losses:
        assert row.student > 0 and row.teacher == 'frozen'
    parts = {row.part: row for row in report.parts}
    assert parts['slow student'].trainable == 0
    assert parts['slow student'].total == parts['student'].total
    records = {row.side: row.output for row in report.recorders}
    assert records['student'].endswith('4 times')
    text = render(report)
    # The header of the table of losses names no other part.
    assert 'slow student' in text and 'connectors  teacher' in text


def test_data_that_cannot_be_read(tmp_path):
    """Then the config says how many views there are."""
    cfg = config(tmp_path)
    cfg['train_dataloader']['dataset']['dataset'] = dict(
        type='CIFAR10', data_root=str(tmp_path / 'nowhere'), pipeline=pipeline_of(cfg)
    )
    report = check(cfg)
    assert report.problems == [] and '3 views' in report.images
    assert any('cannot be read' in note for note in report.notes)
    (views,) = pipeline_of(cfg)
    views['num_views'] = 2
    assert 'gives 2 views of each image' in only(check(cfg))


def test_pipeline_of_single_images(tmp_path):
    """The rest is tried with what was asked for."""
    cfg = config(tmp_path)
    (views,) = pipeline_of(cfg)
    cfg['train_dataloader']['dataset']['dataset']['pipeline'] = views['transforms']
    report = check(cfg)
    line = only(report)
    assert 'gives 1 view of each image' in line
    assert 'crd_plugin.CoCoRDDistill expects 3' in line and VIEWS in line
    assert loss_names(report) == {'student.loss', 'distill.loss_cocord'}


def test_views_for_a_model_that_wants_none(tmp_path):
    cfg = small_runs.config(tmp_path).to_dict()
    inner = cfg['train_dataloader']['dataset']['dataset']
    inner.update(
        serialize_data=False,
        pipeline=[dict(type='crd_plugin.MultiViewPipeline', transforms=inner['pipeline'])],
    )
    report = check(cfg)
    line = only(report)
    assert 'gives 3 views of each image' in line and 'expects 1' in line
    assert 'take MultiViewPipeline out' in line
    assert 'distill.loss_crd' in loss_names(report)


@pytest.mark.parametrize(
    'hooks, message',
    [
        ([], 'custom_hooks has no CoCoRDHook, so averages and key queue'),
        ([HOOK, HOOK], 'custom_hooks has CoCoRDHook 2 times'),
    ],
)
def test_hooks(tmp_path, hooks, message):
    cfg = config(tmp_path)
    cfg['custom_hooks'] = hooks
    assert message in only(check(cfg))


def test_hook_without_the_model(tmp_path):
    cfg = small_runs.config(tmp_path).to_dict()
    cfg['custom_hooks'].append(HOOK)
    assert check(cfg).problems == []  # it does nothing then


def test_loss_that_cannot_be_built_is_named_once(tmp_path):
    cfg = config(tmp_path)
    loss = cfg['model']['distiller']['distill_losses']['loss_cocord']
    loss['temperature'] = 0
    assert 'temperature is 0, expected a positive' in only(check(cfg))


def test_loss_that_fails_in_the_step_is_named(tmp_path):
    """And the rest is run all the same."""
    cfg = config(tmp_path)
    distiller = cfg['model']['distiller']
    distiller['distill_losses']['loss_cocord'].update(s_channels=7, t_channels=12)
    report = check(cfg)
    line = only(report)
    assert 'distill_losses.loss_cocord: s_feats has shape (4, 6)' in line
    assert 'set s_channels=6' in line
    assert loss_names(report) == {'student.loss'}


def test_record_that_is_not_made(tmp_path):
    cfg = config(tmp_path)
    mapping = cfg['model']['distiller']['loss_forward_mappings']
    mapping['loss_cocord']['slow_feats']['record_idx'] = 4
    assert "'record_idx': 4" in only(check(cfg))


@pytest.mark.parametrize('role', ['architecture', 'teacher'])
def test_network_that_takes_no_such_images(tmp_path, role):
    cfg = config(tmp_path)
    net = cfg['model'][role]
    net['backbone'] = dict(
        type='crd_plugin.CIFARResNet', depth=8, in_channels=4, stem_channels=4, base_channels=4
    )
    net['head']['in_channels'] = 16
    cfg['model']['distiller']['distill_losses']['loss_cocord'].update(s_channels=6, t_channels=12)
    side = 'student' if role == 'architecture' else role
    shape = '(4, 3, 8, 8)'
    assert only(check(cfg)).startswith(
        f'{side}: images of shape [{shape}, {shape}, {shape}] do not go through: '
    )
