"""StagedTrainLoop: switching, resuming, several processes."""

from types import SimpleNamespace

import pytest
from mmengine.hooks import Hook

from crd_plugin.engine import StagedTrainLoop
from crd_plugin.engine.loops.staged_train_loop import split_epochs
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


def check_moved(method, states):
    """Weights and running statistics of the parts of each stage moved, of no other."""
    assert len(states) == 1 + EPOCHS
    for epoch, (before, after) in enumerate(zip(states, states[1:])):
        expected = TRAINED[method]['init' if epoch < INIT else 'main']
        moved = changed(before, after)
        for prefix in expected:
            assert any(name.startswith(prefix) for name in moved), prefix
        assert all(name.startswith(expected) for name in moved)
        yield before, moved, expected


def test_each_stage_trains_its_parts(whole):
    method, _, _, spy = whole
    for before, moved, expected in check_moved(method, spy.states):
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
    losses = [{key for key in line if '.loss' in key} for line in (train[0], train[-1])]
    first, second = {'distill.loss_ab'}, {'student.loss', 'distill.loss_crd'}
    if method == 'ft':
        first, second = {'distill.loss_ft_reconstruction'}, second | {'distill.loss_ft'}
    assert losses == [first, second]
    assert len(val) == EPOCHS - INIT
    text = next(work_dir.glob('*/*.log')).read_text()
    assert f'Stage 1 of 2, "init": epochs 1 to {INIT}; losses of' in text
    assert f'Stage 2 of 2, "main": epochs {INIT + 1} to {EPOCHS};' in text


@pytest.mark.parametrize('whole, broken', [('ab', 6), ('ft', 9)], indirect=['whole'])
def test_resumed_run_equals_the_whole(whole, tmp_path, broken):
    """Broken in the first stage, and just behind it.

    It goes on from the last whole epoch; all that the last checkpoint has is the same, and the log
    behind the break.
    """
    method, reference, _, _ = whole
    runner = small_runs.build(tmp_path, small_runs.FailHook(broken - 1), **staged.settings(method))
    with pytest.raises(ArithmeticError):
        runner.train()
    resumed = (broken - 1) // STEPS
    assert (tmp_path / 'last_checkpoint').read_text().endswith(f'epoch_{resumed}.pth')
    small_runs.build(tmp_path, resume=True, **staged.settings(method)).train()
    name = f'epoch_{EPOCHS}.pth'
    resume._assert_same(resume._state(tmp_path / name), resume._state(reference / name))
    ours, theirs = (resume._log(folder)[0] for folder in (tmp_path, reference))
    assert ours[broken - 1 :] == theirs[resumed * STEPS :]


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    """Weights of two processes, epoch by epoch."""
    return small_runs.run_ranks(staged.work, tmp_path_factory.mktemp('ranks'))


@pytest.mark.parametrize('method', METHODS)
def test_two_processes_train_the_same_weights(ranks, method):
    first, second = (rank[method] for rank in ranks)
    for epoch, (one, other) in enumerate(zip(first, second)):
        for name, value in one.items():
            # Running statistics are each rank's own.
            if 'running' not in name:
                assert staged.same(value, other[name]), (epoch, name)
    assert len(list(check_moved(method, first))) == EPOCHS


def test_processes_that_would_wait_for_each_other(ranks):
    for rank in ranks:
        assert rank['refused'].startswith('find_unused_parameters is False')


def test_mixed_precision_and_accumulation(tmp_path):
    wrapper = dict(type='AmpOptimWrapper', dtype='bfloat16', accumulative_counts=2)
    spy = staged.Snapshots()
    small_runs.train(tmp_path, spy, **staged.settings('ft', optim_wrapper=wrapper))
    first, between, last = (spy.states[i] for i in (0, INIT, EPOCHS))
    assert changed(first, between, PARAPHRASER)
    assert not changed(first, between, 'architecture')
    assert not changed(between, last, PARAPHRASER)
    assert changed(between, last, 'architecture')
    assert all(value.isfinite().all() for value in last.values())


def test_split_epochs():
    for first, spans in (
        (dict(b=2, a=1), dict(a=range(1), b=range(1, 3), c=range(3, 6))),
        (dict(a=0, b=2), dict(b=range(2), c=range(2, 6))),
    ):
        assert list(split_epochs(with_stages('abc'), 6, first).items()) == list(spans.items())
    assert split_epochs(with_stages(['main']), 5, {}) == dict(main=range(5))


def with_stages(stages):
    return SimpleNamespace(stages=tuple(stages))


@pytest.mark.parametrize(
    'stages, epochs, first, text',
    [
        (['init', 'main'], 9, dict(main=1), r"stage_epochs has \['main'\], but "),
        (['a', 'b', 'c'], 9, dict(a=1), 'all but the last'),
        (
            ['init', 'main'],
            2,
            dict(init=2),
            'max_epochs is 2, of .* takes 2; .*stage_epochs.NAME',
        ),
        (['init', 'main'], 2, dict(init=-1), 'stage_epochs.init is -1'),
        (['init', 'main'], 2, dict(init=1.5), 'stage_epochs.init is 1.5'),
        (['main'], 0, {}, 'max_epochs is 0, of which'),
    ],
)
def test_epochs_that_do_not_fit(stages, epochs, first, text):
    with pytest.raises(ValueError, match=text):
        split_epochs(with_stages(stages), epochs, first)


@pytest.mark.parametrize(
    'changes, text',
    [
        (staged.settings(model=small_runs.model()), 'FrozenTeacherDistill has none'),
        (
            dict(model={**staged.model('ab'), '_delete_': True}),
            r"stages \('init', 'main'\), but none was begun; train it with .*StagedTrainLoop",
        ),
    ],
)
def test_model_or_loop_without_stages(tmp_path, changes, text):
    with pytest.raises(ValueError, match=text):
        small_runs.build(tmp_path, **changes).train()
