"""What a resumed run takes from its config: batches, schedules, settings of the optimizer."""

import copy
import inspect

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.optim.scheduler import lr_scheduler
from mmengine.registry import PARAM_SCHEDULERS
from torch import nn

from crd_plugin.engine.hooks import _resumed_settings
from tests import small_runs

COSINE = dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=4, convert_to_iter_based=True)
STEPS = dict(type='MultiStepLR', by_epoch=True, milestones=[1, 3], gamma=0.1)
# A warm-up by iterations in front of steps by epochs.
BOTH = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=10), STEPS]


def build(work_dir, schedule=COSINE, epochs=4, size=6, **changes):
    return small_runs.build(
        work_dir,
        **small_runs.without_validation(),
        param_scheduler=copy.deepcopy(schedule),
        train_cfg__max_epochs=epochs,
        train_dataloader__batch_size=size,
        **changes,
    )


def train_on(caplog, work_dir, *args, **changes):
    """Resume; return the runner and what it said of other settings."""
    runner = build(work_dir, *args, resume=True, **changes)
    runner.logger.addHandler(caplog.handler)
    caplog.clear()
    runner.train()
    return runner, [r.message for r in caplog.records if 'other settings' in r.message]


def rates(work_dir, first_epoch):
    """Learning rates, and where in training they were logged, from an epoch on."""
    lines = small_runs.scalars(work_dir)
    return [(line['lr'], line['step']) for line in lines if line['epoch'] >= first_epoch]


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """Checkpoint of two epochs of batches of six, by schedule."""
    folder = tmp_path_factory.mktemp('saved')
    schedules = dict(cosine={**COSINE, 'end': 2}, steps=STEPS, both=BOTH)
    for name, schedule in schedules.items():
        build(folder / name, schedule, epochs=2).train()
    return {name: str(folder / name / 'epoch_2.pth') for name in schedules}


@pytest.mark.parametrize(
    'start, schedule, size, told',
    [
        ('cosine', COSINE, 6, 'param_scheduler[0].T_max 8 -> 16, param_scheduler[0].end 8 -> 16.'),
        ('cosine', COSINE, 12, 'iterations per epoch 4 -> 2, global batch size 6 -> 12.'),
        ('cosine', STEPS, 6, 'param_scheduler[0].'),
        (
            'steps',
            {**STEPS, 'milestones': [2, 3]},
            6,
            'milestones [1, 3] -> [2, 3], param_scheduler[0].end 2 -> 4.',
        ),
        ('both', BOTH, 12, 'size 6 -> 12, param_scheduler[1].end 2 -> 4.'),
        ('both', STEPS, 6, 'param_scheduler[0]'),
    ],
    ids=['longer', 'larger batch', 'another kind', 'milestones', 'chained', 'one less'],
)
def test_schedules_go_on_as_in_a_run_of_the_new_config(
    tmp_path, saved, caplog, start, schedule, size, told
):
    """MMEngine goes on with those of the checkpoint, at the wrong place."""
    build(tmp_path / 'whole', schedule, size=size).train()
    resumed = tmp_path / 'resumed'
    _, (line,) = train_on(caplog, resumed, schedule, size=size, load_from=saved[start])
    expected, found = (rates(tmp_path / name, 3) for name in ('whole', 'resumed'))
    assert found == expected and len({rate for rate, _ in found}) > 1
    assert told in line


def test_settings_of_the_optimizer_are_followed(tmp_path, saved, caplog):
    """Also with groups of parameters, of which MMEngine keeps one more for the log."""
    optimizer = dict(optim_wrapper__optimizer__weight_decay=0.1)
    groups = dict(optim_wrapper__paramwise_cfg=dict(norm_decay_mult=0.0))
    build(tmp_path / 'groups', STEPS, epochs=2, **groups).train()
    for folder, load_from, more in (
        ('one', saved['steps'], {}),
        ('several', tmp_path / 'groups' / 'epoch_2.pth', groups),
    ):
        changes = dict(load_from=str(load_from), **more, **optimizer)
        runner, (line,) = train_on(caplog, tmp_path / folder, STEPS, 3, **changes)
        assert {group['weight_decay'] for group in runner.optim_wrapper.param_groups} <= {0, 0.1}
        assert 'optimizer.weight_decay 0.0005 -> 0.1.' in line.replace(' The run', '')
        assert rates(tmp_path / folder, 3) == [(0.05 * 0.1, step) for step in range(9, 13)]


def test_a_learning_rate_without_a_schedule_is_followed(tmp_path, caplog):
    build(tmp_path, None, epochs=1).train()
    _, (line,) = train_on(caplog, tmp_path, None, 2, optim_wrapper__optimizer__lr=0.02)
    assert {rate for rate, _ in rates(tmp_path, 2)} == {0.02}
    assert 'optimizer.lr 0.05 -> 0.02.' in line


ADAM = dict(_delete_=True, type='Adam', lr=0.05, weight_decay=0.1)


@pytest.mark.parametrize(
    'changes',
    [{}, dict(optim_wrapper__type='AmpOptimWrapper'), dict(optim_wrapper__optimizer=ADAM)],
    ids=['SGD', 'AMP', 'Adam'],
)
def test_nothing_is_said_where_nothing_has_changed(tmp_path, caplog, changes):
    changes = dict(changes, optim_wrapper__paramwise_cfg=dict(norm_decay_mult=0.0))
    build(tmp_path / 'whole', BOTH, **changes).train()
    runner = build(tmp_path / 'killed', BOTH, **changes)
    runner.register_hook(small_runs.FailHook(9))
    with pytest.raises(ArithmeticError):
        runner.train()
    assert train_on(caplog, tmp_path / 'killed', BOTH, **changes)[1] == []
    whole, killed = (rates(tmp_path / name, 3) for name in ('whole', 'killed'))
    assert killed == [whole[0], *whole]


class Runner:
    param_schedulers = None

    def __init__(self, monkeypatch, ranks=1, length=4, size=6):
        monkeypatch.setattr(_resumed_settings, 'get_world_size', lambda: ranks)
        monkeypatch.setattr(_resumed_settings, 'counts_epochs', lambda runner: True)
        loader = type('Loader', (), dict(batch_size=size, __len__=lambda self: length))()
        self.train_loop = type('Loop', (), dict(dataloader=loader))
        self.told = []
        self.logger = type('Logger', (), dict(warning=self.told.append))


def checkpoint(epoch=2, iterations=8, **entries):
    meta = dict(epoch=epoch, iter=iterations)
    return dict(meta=meta, message_hub={}, optimizer={}, **entries)


def test_other_ranks_with_an_equal_global_batch_change_nothing(monkeypatch):
    saved = checkpoint(batches=_resumed_settings.batches(Runner(monkeypatch)))
    runner = Runner(monkeypatch, ranks=2, size=3)
    _resumed_settings.follow_config(runner, saved)
    assert runner.told == [] and saved['meta']['iter'] == 8
    runner = Runner(monkeypatch, ranks=2, length=2)
    _resumed_settings.follow_config(runner, saved)
    (line,) = runner.told
    assert 'iterations per epoch 4 -> 2, global batch size 6 -> 12' in line
    assert saved['meta']['iter'] == 4


def test_former_checkpoints_tell_the_length_of_an_epoch_too(monkeypatch):
    runner = Runner(monkeypatch, length=5)
    _resumed_settings.follow_config(runner, checkpoint())
    assert 'iterations per epoch 4 -> 5.' in runner.told[0]


@pytest.mark.parametrize(
    'saved, message',
    [
        (checkpoint(iterations=9), 'saved in the middle of an epoch .epoch 3, iteration 9.'),
        (checkpoint(epoch=0, iterations=3), 'in the middle of an epoch'),
        (checkpoint(iterations=10, batches=dict(epoch_length=4)), 'in the middle of an epoch'),
        (dict(meta=dict(epoch=1, iter=4), message_hub={}), 'has no optimizer, so.*not best_'),
    ],
)
def test_checkpoints_that_nothing_is_resumed_from(monkeypatch, saved, message):
    with pytest.raises(ValueError, match=message):
        _resumed_settings.follow_config(Runner(monkeypatch), saved)


ARGUMENTS = dict(
    LinearLR=dict(end=6),
    MultiStepLR=dict(milestones=[2, 3]),
    StepLR=dict(step_size=2),
    ExponentialLR=dict(gamma=0.9),
    CosineAnnealingLR=dict(T_max=6),
    CosineRestartLR=dict(periods=[3, 3], restart_weights=[1, 0.5], eta_min=0),
    OneCycleLR=dict(eta_max=0.1, total_steps=6),
    PolyLR=dict(end=6),
    ConstantLR=dict(end=6),
    ReduceOnPlateauLR=None,  # depends on metrics, so it is left alone
)


@pytest.mark.parametrize('name', [n for n in ARGUMENTS if ARGUMENTS[n] is not None])
def test_what_a_scheduler_counts_is_no_setting(name):
    wrapper = OptimWrapper(torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1))
    scheduler = PARAM_SCHEDULERS.build(dict(type=name, optimizer=wrapper, **ARGUMENTS[name]))
    before = _resumed_settings._settings(copy.deepcopy(scheduler.state_dict()))
    _resumed_settings._replay([scheduler], 3, 3)
    assert _resumed_settings._settings(scheduler.state_dict()) == before
    assert before and scheduler.last_step == 3


def test_every_scheduler_of_mmengine_is_covered():
    kinds = {
        name for name, _ in inspect.getmembers(lr_scheduler, inspect.isclass) if name.endswith('LR')
    }
    assert kinds <= set(ARGUMENTS), kinds - set(ARGUMENTS)
