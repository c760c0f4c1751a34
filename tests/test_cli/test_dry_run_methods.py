"""Dry runs of models with stages, with several views, and without a teacher."""

import pytest
from mmengine.registry import DefaultScope

from crd_plugin.cli.dry_run_report import render
from tests import small_runs, staged
from tests.cocord import run_changes
from tests.test_cli.test_dry_run import check, edited, full, net, only


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


def config(**changes):
    """Plain dicts; reading the digits takes no text of the config."""
    cfg = small_runs.config('work', **changes).to_dict()
    cfg['train_dataloader']['dataset']['dataset']['serialize_data'] = False
    return cfg


def ab():
    return config(**staged.settings('ab'))


def ft():
    return config(**staged.settings('ft'))


def cocord():
    return config(**run_changes())


def online():
    kind, stage = 'crd_plugin.OnlineEnsembleDistill', 'backbone.layer3'
    model = dict(type=kind, architecture=net(4), branch_from=stage)
    return dict(config(custom_hooks=[]), model=model)


@pytest.mark.parametrize('method', [ab, ft])
def test_both_stages_are_run(method):
    report = check(method(), use_teacher_ckpt=False)
    assert report.problems == []
    rows = {row.name: row for row in report.losses}
    main = {'main: student.loss', 'main: distill.loss_crd'}
    if method is ab:
        first = 'init: distill.loss_ab'
        assert set(rows) == main | {first}
        assert rows[first].student > 0 and rows[first].others > 0
    else:
        first = 'init: distill.loss_ft_reconstruction'
        assert set(rows) == main | {first, 'main: distill.loss_ft'}
        assert rows[first].student == '-' and rows[first].others > 0
        assert rows['main: distill.loss_ft'].student > 0
    # No row twice, and nothing that one stage alone records is missing.
    assert len({(row.side, row.name) for row in report.recorders}) == len(report.recorders) == 6
    assert all(row.output != 'nothing' for row in report.recorders)
    shapes = [(row.name, row.output) for row in report.connectors]
    assert shapes == [('s', '(4, 8)'), ('t', '(4, 8)')]
    parts = {row.part: row for row in report.parts}
    assert parts['losses'].trainable == parts['losses'].total > 0
    assert first in render(report)


def test_several_views():
    report = check(cocord())
    assert report.problems == []
    assert report.images == '4 x 3 x 8 x 8 uint8, 3 views (training samples)'
    assert {row.name for row in report.losses} == {'student.loss', 'distill.loss_cocord'}
    for row in report.losses:
        assert row.student > 0 and row.teacher == 'frozen'
    parts = {row.part: row for row in report.parts}
    assert parts['slow student'].trainable == 0
    assert parts['slow student'].total == parts['student'].total
    records = {row.side: row.output for row in report.recorders}
    assert records['student'].endswith('4 times')
    absent = {'DATA.type': 'CIFAR10', 'DATA.data_root': 'nowhere', 'DATA.num_train_per_class': ...}
    report = check(edited(absent, cocord()))
    assert report.problems == [] and '3 views (random)' in report.images


def test_online():
    report = check(online())
    assert report.problems == []
    summed = [row for row in report.losses if row.summed]
    names = 'student.loss branch1.loss branch2.loss ensemble.loss distill.loss_online_kd'
    assert [row.name for row in summed] == names.split()
    assert all(row.student > 0 for row in summed)
    # The student's own cross-entropy does not reach the other branches.
    assert [row.others == 'none' for row in summed] == [True, False, False, False, False]
    assert [row.part for row in report.parts] == ['student', 'branches', 'gate']
    text = render(report)
    assert 'gradient: student  other parts' in text and 'accuracy' in text


@pytest.mark.parametrize(
    'method, changes, message',
    [
        (
            ab,
            {'train_cfg': dict(by_epoch=True, max_epochs=4)},
            "model: The model has the stages ('init', 'main'), but none was begun; train it with "
            "train_cfg=dict(type='crd_plugin.StagedTrainLoop'",
        ),
        (ab, {'model': small_runs.model()}, 'Use a schedule without stage_epochs.'),
        (ab, {'train_cfg.max_epochs': 2}, 'train_cfg.max_epochs is 2, of which'),
        (ab, {'model.stages': 'init'}, "stages is 'init', expected Sequence[dict]"),
        # In the first stage, or when it infers its widths.
        (
            ft,
            {f'DIST.distill_losses.loss_ft.{side}_channels': 5 for side in 'st'},
            'DIST.distill_losses.loss_ft: t_channels is 5, but the recorded features',
        ),
        (
            cocord,
            {f'DIST.distill_losses.loss_cocord.{side}_channels': 7 for side in 'st'},
            'DIST.distill_losses.loss_cocord: s_channels is 7, but the recorded features have 6',
        ),
        (cocord, {'custom_hooks': []}, 'no CoCoRDHook writes the KeyQueue of the model; add dict('),
        (cocord, {'DATA.pipeline.0.num_views': 2}, 'model: CoCoRDDistill was given 2 views, exp'),
        (online, {'model.architecture.head.in_channels': 17}, '.head.in_channels is 17, but'),
        (online, {'model.branch_from': 'backbone.layer4'}, "model: branch_from='backbone.layer4'"),
    ],
)
def test_mistakes(method, changes, message):
    assert full(message) in only(check(edited(changes, method())))
