"""Dry runs of models with stages, with several views, and without a teacher."""

import copy

import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope

from crd_plugin.cli.dry_run import run_dry
from crd_plugin.cli.dry_run_report import render
from tests import small_runs, staged
from tests.cocord import run_changes
from tests.test_cli.test_dry_run import net, only

HEAD = 'model.architecture.head'


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


def config(tmp_path, changes):
    """Plain dicts; reading the digits takes no text of the config."""
    cfg = small_runs.config(tmp_path, **changes).to_dict()
    cfg['train_dataloader']['dataset']['dataset']['serialize_data'] = False
    return cfg


def staged_config(tmp_path, method='ab', **changes):
    return config(tmp_path, staged.settings(method, **changes))


def check(cfg):
    return run_dry(Config(copy.deepcopy(cfg)), use_teacher_ckpt=False)


def losses(report):
    return {row.name: row for row in report.losses}


# --- stages ---------------------------------------------------------------- #


@pytest.mark.parametrize('method', ['ab', 'ft'])
def test_both_stages_are_run(tmp_path, method):
    report = check(staged_config(tmp_path, method))
    assert report.problems == []
    rows = losses(report)
    main = {'main: student.loss', 'main: distill.loss_crd'}
    if method == 'ab':
        first = 'init: distill.loss_ab'
        assert set(rows) == main | {first}
        assert rows[first].student > 0 and rows[first].connectors > 0
    else:
        first = 'init: distill.loss_ft_reconstruction'
        assert set(rows) == main | {first, 'main: distill.loss_ft'}
        assert rows[first].student == '-' and rows[first].connectors > 0
        assert rows['main: distill.loss_ft'].student > 0
    # No row twice, and nothing that one stage alone records is missing.
    assert len({(row.side, row.name) for row in report.recorders}) == len(report.recorders) == 6
    assert all(row.output != 'nothing' for row in report.recorders)
    assert [(row.name, row.output) for row in report.connectors] == [
        ('s', '(4, 8)'),
        ('t', '(4, 8)'),
    ]
    parts = {row.part: row for row in report.parts}
    assert parts['losses'].trainable == parts['losses'].total > 0
    assert first in render(report)


@pytest.mark.parametrize(
    'changes, message',
    [
        (
            dict(train_cfg=dict(by_epoch=True, max_epochs=4)),
            "model: The model has the stages ('init', 'main'), but none was begun; train it with "
            "train_cfg=dict(type='crd_plugin.StagedTrainLoop'",
        ),
        (
            dict(model=dict(small_runs.model(), _delete_=True)),
            'train_cfg.stage_epochs: the model has no stages',
        ),
        (dict(train_cfg__max_epochs=2), 'train_cfg.max_epochs is 2, of which'),
        (dict(model__stages='init'), "stages is 'init', expected Sequence[dict]"),
    ],
)
def test_mistakes_in_stages(tmp_path, changes, message):
    train_cfg = changes.pop('train_cfg', None)
    cfg = staged_config(tmp_path, **changes)
    if train_cfg:
        cfg['train_cfg'] = train_cfg
    assert message in only(check(cfg))


# --- several views --------------------------------------------------------- #


def cocord(tmp_path):
    return config(tmp_path, run_changes())


def pipeline_of(cfg):
    return cfg['train_dataloader']['dataset']['dataset']['pipeline']


def test_several_views(tmp_path):
    report = check(cocord(tmp_path))
    assert report.problems == []
    assert report.images == '4 x 3 x 8 x 8 uint8, 3 views (training samples)'
    assert set(losses(report)) == {'student.loss', 'distill.loss_cocord'}
    for row in report.losses:
        assert row.student > 0 and row.teacher == 'frozen'
    parts = {row.part: row for row in report.parts}
    assert parts['slow student'].trainable == 0
    assert parts['slow student'].total == parts['student'].total
    records = {row.side: row.output for row in report.recorders}
    assert records['student'].endswith('4 times')
    assert 'slow student' in render(report)


def test_several_views_of_data_that_cannot_be_read(tmp_path):
    cfg = cocord(tmp_path)
    pipeline = pipeline_of(cfg)
    absent = dict(type='CIFAR10', data_root=str(tmp_path / 'nowhere'), pipeline=pipeline)
    cfg['train_dataloader']['dataset']['dataset'] = absent
    report = check(cfg)
    assert report.problems == [] and '3 views (random)' in report.images
    pipeline[0]['num_views'] = 2
    assert 'model: CoCoRDDistill was given 2 views, expected 3' in only(check(cfg))


def test_key_queue_without_its_hook(tmp_path):
    cfg = cocord(tmp_path)
    cfg['custom_hooks'] = []
    assert only(check(cfg)).startswith('no CoCoRDHook writes the KeyQueue of the model; add dict(')


@pytest.mark.parametrize(
    'loss, changes, message',
    [
        # In the first stage, or when it infers its widths.
        ('ft', dict(s_channels=6, t_channels=5), 't_channels is 5, but the recorded features'),
        ('cocord', dict(s_channels=7, t_channels=12), 's_feats has shape (4, 6)'),
    ],
)
def test_loss_that_does_not_fit_the_features(tmp_path, loss, changes, message):
    cfg = cocord(tmp_path) if loss == 'cocord' else staged_config(tmp_path, loss)
    cfg['model']['distiller']['distill_losses'][f'loss_{loss}'].update(changes)
    line = only(check(cfg))
    assert line.startswith(f'model.distiller.distill_losses.loss_{loss}: ') and message in line


# --- no teacher ------------------------------------------------------------ #


def online(tmp_path, branch_from='backbone.layer3', **changes):
    cfg = config(tmp_path, {})
    cfg['model'] = dict(
        type='crd_plugin.OnlineEnsembleDistill',
        architecture={**net(4), **changes},
        branch_from=branch_from,
    )
    cfg['custom_hooks'] = []
    return check(cfg)


def test_online(tmp_path):
    report = online(tmp_path)
    assert report.problems == []
    summed = [row for row in report.losses if row.summed]
    assert [row.name for row in summed] == [
        'student.loss',
        'branch1.loss',
        'branch2.loss',
        'ensemble.loss',
        'distill.loss_online_kd',
    ]
    assert all(row.student > 0 for row in summed)
    # The student's own cross-entropy does not reach the other branches.
    assert [row.connectors == 'none' for row in summed] == [True, False, False, False, False]
    assert [row.part for row in report.parts] == ['student', 'branches', 'gate']
    text = render(report)
    assert 'gradient: student  other parts' in text and 'accuracy' in text


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(head=dict(net(4)['head'], in_channels=17)), f'{HEAD}.in_channels is 17, but'),
        (dict(branch_from='backbone.layer4'), "model: branch_from='backbone.layer4' is no"),
    ],
)
def test_mistakes_of_online(tmp_path, changes, message):
    assert only(online(tmp_path, **changes)).startswith(message)
