"""Dry runs of models with stages: each is tried."""

import copy

import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope

from crd_plugin.engine.dry_run import render, run_dry
from tests import small_runs, staged


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


def config(tmp_path, method='ab', **changes):
    """Plain dicts; reading the digits takes no text of the config."""
    cfg = small_runs.config(tmp_path, **staged.settings(method, **changes)).to_dict()
    cfg['train_dataloader']['dataset']['dataset']['serialize_data'] = False
    return cfg


def check(cfg):
    return run_dry(Config(copy.deepcopy(cfg)), use_teacher_ckpt=False)


def only(report):
    assert len(report.problems) == 1, report.problems
    return report.problems[0]


def losses(report):
    return {row.name: row for row in report.losses}


@pytest.mark.parametrize('method', ['ab', 'ft'])
def test_both_stages_are_run(tmp_path, method):
    report = check(config(tmp_path, method))
    assert report.problems == []
    rows = losses(report)
    main = {'main: student.loss', 'main: distill.loss_crd'}
    if method == 'ab':
        assert set(rows) == main | {'init: distill.loss_ab'}
        assert rows['init: distill.loss_ab'].student > 0
        assert rows['init: distill.loss_ab'].connectors > 0
    else:
        first = 'init: distill.loss_ft_reconstruction'
        assert set(rows) == main | {first, 'main: distill.loss_ft'}
        assert rows[first].student == '-' and rows[first].connectors > 0
        assert rows['main: distill.loss_ft'].student > 0
    # No row twice, and nothing that one stage alone records is missing.
    names = [(row.side, row.name) for row in report.recorders]
    assert len(names) == len(set(names)) == 6
    assert all(row.output != 'nothing' for row in report.recorders)
    assert [row.name for row in report.connectors] == ['s', 't']
    assert all(row.output == '(4, 8)' for row in report.connectors)
    parts = {row.part: row for row in report.parts}
    assert parts['losses'].trainable == parts['losses'].total > 0
    assert 'init: distill' in render(report)


def test_a_schedule_without_a_first_stage(tmp_path):
    cfg = config(tmp_path)
    cfg['train_cfg'] = dict(by_epoch=True, max_epochs=4)
    text = only(check(cfg))
    assert "model.stages has ['init', 'main'], which train_cfg does" in text
    assert 'cifar_b64-30e-240e.py' in text


def test_a_first_stage_without_a_model_for_it(tmp_path):
    cfg = config(tmp_path, model=small_runs.model())
    text = only(check(cfg))
    assert 'StagedTrainLoop, but the model has no stages' in text


def test_epochs_that_do_not_fit(tmp_path):
    cfg = config(tmp_path)
    cfg['train_cfg']['max_epochs'] = 2
    assert 'train_cfg.max_epochs is 2, of which' in only(check(cfg))


def test_several_processes_need_a_flag(tmp_path):
    cfg = config(tmp_path)
    del cfg['find_unused_parameters']
    report = check(cfg)
    assert report.ok
    assert any('find_unused_parameters is not' in x for x in report.notes)
    cfg['model_wrapper_cfg'] = dict(find_unused_parameters=True)
    assert not any('unused' in note for note in check(cfg).notes)


def test_a_loss_that_cannot_be_built(tmp_path):
    cfg = config(tmp_path)
    cfg['model']['distiller']['distill_losses']['loss_ab']['margin'] = -1
    report = check(cfg)
    assert 'margin is -1' in only(report)
    # The other stage is tried all the same.
    assert set(losses(report)) == {'main: student.loss', 'main: distill.loss_crd'}
    for stage, key in zip(cfg['model']['stages'], ('losses', 'without_losses')):
        stage[key] = 'loss_ab'  # one name instead of a list
    assert 'margin is -1' in only(check(cfg))


def test_a_loss_that_does_not_fit_the_features(tmp_path):
    cfg = config(tmp_path, 'ft')
    loss = cfg['model']['distiller']['distill_losses']['loss_ft']
    loss.update(s_channels=6, t_channels=5)
    report = check(cfg)
    assert 't_channels is 5, but the recorded features have 12' in (only(report))
    assert 'main: student.loss' in losses(report)


def test_a_loss_whose_parts_cannot_be_made(tmp_path):
    """The stage that trains these parts is left out with them."""
    cfg = config(tmp_path, 'ft')
    cfg['model']['distiller']['distill_losses']['loss_ft']['rate'] = 0.001
    report = check(cfg)
    assert 'rate is 0.001, of 12 teacher channels' in only(report)
    assert 'main: student.loss' in losses(report)


@pytest.mark.parametrize(
    'change, text',
    [
        (
            dict(source='backbon'),
            'student_recorders.stages.source: the student '
            "has no module 'backbon'; the nearest are backbone, ",
        ),
        (
            dict(steam=True),
            'student_recorders.stages: StageOutputsRecorder.'
            "__init__() got an unexpected keyword argument 'steam'",
        ),
    ],
)
def test_recorder_of_stages(tmp_path, change, text):
    cfg = config(tmp_path)
    cfg['model']['distiller']['student_recorders']['stages'].update(change)
    assert text in only(check(cfg))


def test_stages_that_cannot_be(tmp_path):
    cfg = config(tmp_path)
    cfg['model']['stages'][0]['trainable'] = ['architecture.neck']
    assert 'stages.init trains no parameter' in only(check(cfg))
    cfg['model']['stages'] = 'init'
    assert "stages is 'init', expected a list" in only(check(cfg))


def test_pair_without_fsp(tmp_path):
    """Refused with the reason, in one line; the rest is tried."""
    path = small_runs.REPO / 'configs' / '_base_'
    leaf = tmp_path / 'fsp.py'
    bases = [
        str(path / name)
        for name in (
            'settings/digits_b20-30e-100e.py',
            'pairs/resnet14_resnet8w4_digits.py',
            'distillers/fsp.py',
        )
    ]
    leaf.write_text(
        f'_base_ = {bases}\n'
        'from crd_plugin.fragments import join\n\n'
        'model = join(_base_.pair, _base_.fsp)\n'
        'model.teacher_ckpt = None\n'
    )
    report = run_dry(Config.fromfile(leaf))
    text = only(report)
    assert text.startswith('model.distiller.loss_forward_mappings.loss_fsp: ')
    assert (
        'the student has [8, 4, 8, 16], the teacher [16, 16, 32, 64]. Such a pair has no FSP'
    ) in text
    assert set(losses(report)) == {'main: student.loss'}
