"""StagedTrainLoop: switching, resuming, several processes."""

import os
from unittest import mock

import pytest
import torch
import torch.multiprocessing as mp
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import PARAM_SCHEDULERS

from crd_plugin.engine import StagedTrainLoop
from crd_plugin.engine.loops.staged_train_loop import Span, split_epochs
from crd_plugin.checkpoints.publish import publish_student
from tests import small_runs, staged
from tests.staged import EPOCHS, INIT, STEPS, changed
from tests.test_engine import test_resume as resume

METHODS = ('ab', 'ft')
# What trains in which stage, of state dicts.
STUDENT = 'architecture.backbone'
HEAD = 'architecture.head'
AB = 'distiller.distill_losses.loss_ab'
PARAPHRASER = 'distiller.distill_losses.loss_ft.paraphraser'
TRANSLATOR = 'distiller.distill_losses.loss_ft.translator'
CRD = ('distiller.connectors', 'distiller.distill_losses.loss_crd.bank')
TRAINED = dict(
    ab=dict(init=(STUDENT, AB), main=(STUDENT, HEAD, *CRD)),
    ft=dict(init=(PARAPHRASER,), main=(STUDENT, HEAD, TRANSLATOR, *CRD)),
)


class Watch(Hook):
    """Rate and momentum before each iteration, and what is validated."""

    def __init__(self) -> None:
        self.rates, self.momenta, self.validated = [], [], []

    def before_train_iter(self, runner, *args, **kwargs) -> None:
        """State of the optimizer."""
        optimizer = runner.optim_wrapper.optimizer
        self.rates.append(optimizer.param_groups[0]['lr'])
        self.momenta.append(len(optimizer.state))

    def before_val(self, runner) -> None:
        """Epochs done."""
        self.validated.append(runner.epoch)


@pytest.fixture(scope='module', params=METHODS)
def whole(request, tmp_path_factory):
    """An uninterrupted run of each method: name, work dir, hooks."""
    work_dir = tmp_path_factory.mktemp(request.param)
    watch, spy = Watch(), staged.Snapshots()
    runner = small_runs.build(work_dir, watch, spy, **staged.settings(request.param))
    runner.train()
    assert isinstance(runner.train_loop, StagedTrainLoop)
    return request.param, work_dir, watch, spy


def test_each_stage_trains_its_parts(whole):
    method, _, _, spy = whole
    assert len(spy.states) == 1 + EPOCHS
    for epoch, (before, after) in enumerate(zip(spy.states, spy.states[1:])):
        stage = 'init' if epoch < INIT else 'main'
        moved = changed(before, after)
        expected = TRAINED[method][stage]
        # Weights and running statistics of these parts, of no other.
        for prefix in expected:
            assert any(name.startswith(prefix) for name in moved), prefix
        assert all(name.startswith(expected) for name in moved)
        for part in expected[:3]:
            parameters = {
                name
                for name in before
                if name.startswith(f'{part}.') and not name.endswith('num_batches_tracked')
            }
            assert parameters <= moved, parameters - moved


def test_rates_momentum_and_validation(whole):
    _, _, watch, _ = whole
    expected = [0.01] * INIT * STEPS + [0.05] * STEPS + [0.005] * STEPS
    assert watch.rates == pytest.approx(expected)
    # Fresh at the beginning of a stage, and only there.
    fresh = [i for i, number in enumerate(watch.momenta) if not number]
    assert fresh == [0, INIT * STEPS]
    assert watch.validated == [INIT + 1, INIT + 2]


def test_log_tells_the_stage(whole):
    method, work_dir, _, _ = whole
    train, val = resume._log(work_dir)
    assert [line['stage'] for line in train] == [1] * INIT * STEPS + [2] * (EPOCHS - INIT) * STEPS
    first = 'distill.loss_ab' if method == 'ab' else ('distill.loss_ft_reconstruction')
    losses = [{key for key in line if '.loss' in key} for line in (train[0], train[-1])]
    assert losses[0] == {first}
    second = {'student.loss', 'distill.loss_crd'}
    if method == 'ft':
        second.add('distill.loss_ft')
    assert losses[1] == second
    assert len(val) == EPOCHS - INIT
    text = next(work_dir.glob('*/*.log')).read_text()
    assert f'Stage 1 of 2, "init": epochs 1 to {INIT}; losses of' in text
    assert f'Stage 2 of 2, "main": epochs {INIT + 1} to {EPOCHS};' in text


def _break(work_dir, method, iteration):
    """A run that fails in an iteration, counted from 1."""
    runner = small_runs.build(
        work_dir, small_runs.FailHook(iteration - 1), **staged.settings(method)
    )
    with pytest.raises(ArithmeticError):
        runner.train()
    return (work_dir / 'last_checkpoint').read_text()


def _assert_same(work_dir, reference, broken):
    """All that the last checkpoint has, and the log behind the break."""
    name = f'epoch_{EPOCHS}.pth'
    resume._assert_same(resume._state(work_dir / name), resume._state(reference / name))
    ours, theirs = (resume._log(folder)[0] for folder in (work_dir, reference))
    resumed = (broken - 1) // STEPS * STEPS
    assert ours[broken - 1 :] == theirs[resumed:]


@pytest.mark.parametrize('whole, broken', [('ft', 9), ('ab', 14)], indirect=['whole'])
def test_resumed_run_equals_the_whole(whole, tmp_path, broken):
    """Broken just behind the first stage, and in the middle of the second.

    They go on from the last whole epoch: the boundary itself, and the third.
    """
    method, reference, _, _ = whole
    last = _break(tmp_path, method, broken)
    assert last.endswith(f'epoch_{(broken - 1) // STEPS}.pth')
    small_runs.build(tmp_path, resume=True, **staged.settings(method)).train()
    _assert_same(tmp_path, reference, broken)


@pytest.mark.parametrize('whole', ['ab'], indirect=True)
def test_first_stage_resumed_by_the_tool(whole, tmp_path):
    """Broken in the first stage, then ``--resume auto`` through the second."""
    method, reference, _, _ = whole
    work_dir = tmp_path / 'work'
    assert _break(work_dir, method, 6).endswith('epoch_1.pth')
    config = small_runs.write_config(tmp_path / 'config.py', work_dir, **staged.settings(method))
    log = tmp_path / 'resumed.txt'
    process = small_runs.start('train.py', config, '--resume', 'auto', log=log)
    output = small_runs.finish(process, log)
    assert f'go on from {work_dir / "epoch_1.pth"}' in output
    assert output.count('Stage 1 of 2') == output.count('Stage 2 of 2') == 1
    _assert_same(work_dir, reference, 6)


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    """Weights of two processes, epoch by epoch."""
    folder = tmp_path_factory.mktemp('ranks')
    mp.set_forkserver_preload(['tests.staged'])
    with mock.patch.dict(os.environ, PYTHONPATH=str(small_runs.REPO)):
        mp.start_processes(staged.work, args=(str(folder),), nprocs=2, start_method='forkserver')
    return [torch.load(folder / f'rank_{rank}.pth') for rank in range(2)]


@pytest.mark.parametrize('method', METHODS)
def test_two_processes_train_the_same_weights(ranks, method):
    first, second = (rank[method] for rank in ranks)
    for epoch, (one, other) in enumerate(zip(first, second)):
        for name, value in one.items():
            # Running statistics are each rank's own.
            if 'running' not in name:
                assert staged.same(value, other[name]), (epoch, name)
    for epoch in range(EPOCHS):
        stage = 'init' if epoch < INIT else 'main'
        moved = changed(first[epoch], first[epoch + 1])
        expected = TRAINED[method][stage]
        assert all(name.startswith(expected) for name in moved)
        for prefix in expected:
            assert any(name.startswith(prefix) for name in moved), prefix


def test_processes_that_would_wait_for_each_other(ranks):
    for rank in ranks:
        assert rank['refused'].startswith('find_unused_parameters is False')


def test_mixed_precision_and_accumulation(tmp_path):
    wrapper = dict(type='AmpOptimWrapper', dtype='bfloat16', accumulative_counts=2)
    spy = staged.Snapshots()
    small_runs.build(
        tmp_path,
        spy,
        **staged.settings('ft', optim_wrapper=wrapper),
        **small_runs.without_validation(),
    ).train()
    first, between, last = (spy.states[i] for i in (0, INIT, EPOCHS))
    assert changed(first, between, PARAPHRASER)
    assert not changed(first, between, 'architecture')
    assert not changed(between, last, PARAPHRASER)
    assert changed(between, last, 'architecture')
    assert all(value.isfinite().all() for value in last.values())


def test_student_is_published_without_the_rest(whole, tmp_path):
    _, work_dir, _, _ = whole
    found = publish_student(work_dir / f'epoch_{EPOCHS}.pth', tmp_path / 'student.pth')
    weights = small_runs.load(found)['state_dict']
    parts = {name.partition('.')[0] for name in weights}
    assert {'backbone', 'head'} <= parts
    assert not parts & {'architecture', 'teacher', 'distiller'}


def test_best_checkpoint_is_of_the_last_stage(tmp_path):
    small_runs.build(
        tmp_path,
        **staged.settings(
            default_hooks__checkpoint=dict(
                type='CheckpointHook', interval=EPOCHS, save_best='accuracy/top1', rule='greater'
            )
        ),
    ).train()
    (best,) = tmp_path.glob('best_accuracy_top1_epoch_*.pth')
    assert int(best.stem.rpartition('_')[2]) > INIT


def test_a_stage_without_epochs_is_left_out(tmp_path):
    watch, spy = Watch(), staged.Snapshots()
    small_runs.build(
        tmp_path,
        watch,
        spy,
        **staged.settings(
            train_cfg=dict(
                _delete_=True,
                type='crd_plugin.StagedTrainLoop',
                max_epochs=1,
                stage_epochs=dict(init=0),
                val_begin=1,
            )
        ),
    ).train()
    assert watch.validated == [1]
    assert not changed(*spy.states, AB) and changed(*spy.states, HEAD)


@pytest.mark.parametrize(
    'stages, epochs, first, spans',
    [
        (['init', 'main'], 270, dict(init=30), [('init', 0, 30), ('main', 30, 270)]),
        (['a', 'b', 'c'], 6, dict(b=2, a=1), [('a', 0, 1), ('b', 1, 3), ('c', 3, 6)]),
        (['a', 'b', 'c'], 6, dict(a=0, b=2), [('b', 0, 2), ('c', 2, 6)]),
        (['main'], 5, {}, [('main', 0, 5)]),
    ],
)
def test_split_epochs(stages, epochs, first, spans):
    found = split_epochs(stages, epochs, first)
    assert found == [Span(*span) for span in spans]


@pytest.mark.parametrize(
    'stages, epochs, first, text',
    [
        (['init', 'main'], 9, dict(main=1), r"stage_epochs has \['main'\], but "),
        (['init', 'main'], 9, {}, r'stage_epochs has \[\], but the model has'),
        (['a', 'b', 'c'], 9, dict(a=1), 'all but the last'),
        (
            ['init', 'main'],
            2,
            dict(init=2),
            r'max_epochs is 2, of which '
            r'stage_epochs takes 2; .*train_cfg.stage_epochs.init=1',
        ),
        (['init', 'main'], 2, dict(init=-1), 'stage_epochs.init is -1'),
        (['init', 'main'], 2, dict(init=1.5), 'stage_epochs.init is 1.5'),
        (['main'], 0, {}, 'max_epochs is 0, expected'),
    ],
)
def test_epochs_that_do_not_fit(stages, epochs, first, text):
    with pytest.raises(ValueError, match=text):
        split_epochs(stages, epochs, first)


def test_a_model_without_stages_is_refused(tmp_path):
    runner = small_runs.build(tmp_path, **staged.settings(model=small_runs.model()))
    with pytest.raises(ValueError, match='FrozenTeacherDistill has none'):
        runner.train()


def test_a_loop_without_stages_is_refused(tmp_path):
    model = {**staged.model('ab'), '_delete_': True}
    runner = small_runs.build(tmp_path, model=model)
    with pytest.raises(
        ValueError,
        match=r"stages \('init', 'main'\), but "
        'none was begun; train it with .*StagedTrainLoop',
    ):
        runner.train()


# --- the schedules of configs/ ---------------------------------------------


def _rates(name, epochs, length):
    """Learning rate of the first iteration of each epoch, and the config."""
    cfg = Config.fromfile(small_runs.REPO / 'configs' / '_base_' / 'schedules' / f'{name}.py')
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], cfg.optim_wrapper.optimizer.lr)
    schedulers = []
    given = cfg.param_scheduler
    for one in given if isinstance(given, list) else [given]:
        one = dict(one, optimizer=optimizer)
        one.setdefault('end', epochs)
        schedulers.append(PARAM_SCHEDULERS.build(one, default_args=dict(epoch_length=length)))
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            for _ in range(1 if scheduler.by_epoch else length):
                scheduler.step()
    return rates, cfg


@pytest.mark.parametrize(
    'name, init, main',
    [
        ('cifar_b64-30e-240e', 0.05, 0.05),
        ('cifar_b64-30e-240e_lr001', 0.01, 0.01),
        ('cifar_b64-30e-240e_init001', 0.01, 0.05),
    ],
)
def test_published_schedules(name, init, main):
    rates, cfg = _rates(name, 270, 10)
    steps = ((1, 150), (0.1, 30), (0.01, 30), (0.001, 30))
    expected = [init] * 30 + [main * f for f, n in steps for _ in range(n)]
    assert rates == pytest.approx(expected)
    _check_loop(cfg, 270)


@pytest.mark.parametrize(
    'name, init', [('digits_b20-30e-100e', 0.05), ('digits_b20-30e-100e_init001', 0.01)]
)
def test_schedules_of_the_digits(name, init):
    rates, cfg = _rates(name, 130, 5)
    plain, _ = _rates('digits_b20-100e', 100, 5)
    assert rates == pytest.approx([init] * 30 + plain)
    _check_loop(cfg, 130)


def _check_loop(cfg, epochs):
    assert cfg.train_cfg.type == 'crd_plugin.StagedTrainLoop'
    assert cfg.train_cfg.max_epochs == epochs
    assert cfg.train_cfg.stage_epochs == dict(init=30)
    assert 'by_epoch' not in cfg.train_cfg and cfg.find_unused_parameters
