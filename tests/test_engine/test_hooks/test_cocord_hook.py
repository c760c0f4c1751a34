"""CoCoRDHook: when averages move, what enters the queue, what is refused."""

import copy
import logging

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from crd_plugin.engine import CoCoRDHook
from crd_plugin.checkpoints.publish import publish_student
from crd_plugin.registry import MODELS
from tests import small_runs
from tests.cocord import run_changes

STEPS = small_runs.STEPS  # iterations an epoch
LAST_BATCH = small_runs.NUM_SAMPLES - (STEPS - 1) * small_runs.BATCH_SIZE


class Spy(Hook):
    """Looks at the model before the hook moves it and after it wrote."""

    def __init__(self, priority: str) -> None:
        self.priority = priority
        self.before, self.after = [], []

    def before_train_iter(self, runner, *args, **kwargs) -> None:
        """The state."""
        self.before.append(_state(runner))

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        """The state, and the keys that wait."""
        self.after.append((_state(runner), runner.model.cocord_loss.queue.pending))


def _state(runner):
    return copy.deepcopy(runner.model.state_dict())


def _build(tmp_path, *hooks, **changes):
    return small_runs.build(
        tmp_path,
        *hooks,
        **{
            **run_changes(),
            **small_runs.without_validation(),
            'default_hooks__checkpoint': None,
            **changes,
        },
    )


def _averages(model):
    """Averages with what they follow and their momentum."""
    loss = 'distiller.distill_losses.loss_cocord.'
    for name, _ in model.named_parameters():
        for average, source, momentum in (
            ('slow_student.', 'architecture.', 0.9),
            (f'{loss}slow_projector.', f'{loss}projector.', 0.9),
            (f'{loss}slow_connector.', f'{loss}connector.', 0.9),
            (f'{loss}teacher_projector.', f'{loss}projector.', 0.999),
        ):
            if name.startswith(average):
                yield name, source + name[len(average) :], momentum


# --- averages --------------------------------------------------------------


@pytest.mark.parametrize('counts', [1, 2])
def test_averages_move_once_an_optimizer_step(tmp_path, counts):
    """With the parameters that the step starts from; before its forward."""
    early, late = Spy('VERY_HIGH'), Spy('VERY_LOW')
    runner = _build(tmp_path, early, late, optim_wrapper__accumulative_counts=counts)
    runner.train()
    names = list(_averages(runner.model))
    # Four parts: 6 tensors of a student, 6 of a projector, 2 of a connector.
    assert len(names) == 6 + 6 + 2 + 6
    moved = []
    for i, (old, new) in enumerate(zip(early.before, late.before)):
        for name, source, momentum in names:
            value = old[name]
            if i % counts == 0:
                value = momentum * old[name] + (1 - momentum) * old[source]
            torch.testing.assert_close(new[name], value)
        moved.append(not torch.equal(old[names[0][0]], new[names[0][0]]))
    # The first time they are copies of the student.
    assert moved == [i % counts == 0 and i > 0 for i in range(STEPS)]


def test_batch_norm_is_not_averaged(tmp_path):
    """Twice a step: student, slow student, projectors, predictor; teacher's
    projector once; teacher never."""
    runner = _build(tmp_path)
    runner.train()
    tracked = {
        name: int(value)
        for name, value in runner.model.state_dict().items()
        if name.endswith('num_batches_tracked')
    }
    loss = 'distiller.distill_losses.loss_cocord.'
    assert tracked == {
        'architecture.backbone.bn.num_batches_tracked': 2 * STEPS,
        'slow_student.backbone.bn.num_batches_tracked': 2 * STEPS,
        'teacher.backbone.bn.num_batches_tracked': 0,
        f'{loss}projector.1.num_batches_tracked': 2 * STEPS,
        f'{loss}slow_projector.1.num_batches_tracked': 2 * STEPS,
        f'{loss}predictor.1.num_batches_tracked': 2 * STEPS,
        f'{loss}teacher_projector.1.num_batches_tracked': STEPS,
    }
    # Statistics of its own: of other parameters.
    student, slow = (
        runner.model.state_dict()[f'{part}.backbone.bn.running_mean']
        for part in ('architecture', 'slow_student')
    )
    assert not torch.equal(student, slow)


def test_stopped_distillation_leaves_only_the_student(tmp_path):
    spy = Spy('VERY_LOW')
    runner = _build(tmp_path, spy)
    runner.model.distillation_stopped = True
    runner.train()
    first, last = spy.before[0], spy.after[-1][0]
    for name, value in first.items():
        moved = not torch.equal(value, last[name])
        if name.startswith(('slow_student', 'distiller', 'teacher')):
            assert not moved, name
        elif name.endswith('weight'):
            assert moved, name
    tracked = last['architecture.backbone.bn.num_batches_tracked']
    assert tracked == STEPS


# --- queue -----------------------------------------------------------------


@pytest.mark.parametrize('counts', [1, 2])
def test_keys_enter_after_every_iteration(tmp_path, counts):
    """Also while gradients are accumulated. 20 keys in 15 places."""
    early, late = Spy('VERY_HIGH'), Spy('VERY_LOW')
    runner = _build(tmp_path, early, late, optim_wrapper__accumulative_counts=counts)
    runner.train()
    prefix = 'distiller.distill_losses.loss_cocord.queue.'
    rows, pointer = list(early.before[0][prefix + 'keys']), 0
    assert len(rows) == 15
    for (before, pending), (after, left) in zip(early.after, late.after):
        assert torch.equal(before[prefix + 'keys'], torch.stack(rows))
        for key in pending:
            rows[pointer] = key
            pointer = (pointer + 1) % 15
        assert torch.equal(after[prefix + 'keys'], torch.stack(rows))
        assert after[prefix + 'pointer'] == pointer
        assert left is None
    assert [len(keys) for _, keys in early.after] == [6, 6, 6, LAST_BATCH]
    assert pointer == 20 % 15
    torch.testing.assert_close(torch.stack(rows).norm(dim=1), torch.ones(15))


def test_missing_hook_is_named_in_the_second_step(tmp_path):
    runner = _build(tmp_path, custom_hooks=[])
    with pytest.raises(
        RuntimeError,
        match=r"never committed: CoCoRDHook is missing; add dict\(type='"
        r"crd_plugin.CoCoRDHook'\) to custom_hooks",
    ):
        runner.train()
    assert runner.iter == 1


def test_keys_that_are_left_over_do_not_stop_another_run(tmp_path):
    runner = _build(tmp_path)
    queue = runner.model.cocord_loss.queue
    queue.stage(torch.ones(2, 8))
    runner.train()
    assert queue.pointer == 20 % 15


# --- log -------------------------------------------------------------------


def test_terms_are_logged_and_not_summed(tmp_path):
    runner = _build(tmp_path)
    runner.train()
    lines = small_runs.scalars(tmp_path)
    assert len(lines) == STEPS
    for line in lines:
        total = line['contrast'] + 4 * line['prediction']
        assert line['distill.loss_cocord'] == pytest.approx(total, rel=1e-4)
        assert line['loss'] == pytest.approx(total + line['student.loss'], rel=1e-4)
        assert 0 <= line['contrast_top1'] <= 100
    last = runner.model.cocord_loss.terms
    assert lines[-1]['contrast'] == pytest.approx(float(last.contrast), rel=1e-4)


def test_interval(tmp_path):
    hook = dict(type='crd_plugin.CoCoRDHook', interval=3)
    runner = _build(tmp_path, custom_hooks=[hook])
    runner.train()
    history = runner.message_hub.get_scalar('train/contrast').data[0]
    assert len(history) == 2  # iterations 1 and 3


def test_bad_interval():
    with pytest.raises(ValueError, match='interval is 0, expected at least'):
        CoCoRDHook(interval=0)
    with pytest.raises(ValueError, match='interval is 1.5, expected an int'):
        CoCoRDHook(interval=1.5)


def test_keys_that_are_not_finite(tmp_path):
    runner = _build(tmp_path)
    weight = runner.model.cocord_loss.teacher_projector[3].weight
    runner.register_hook(_Break(weight))
    with pytest.raises(ValueError, match='Some keys are NaN or infinite'):
        runner.train()


class _Break(Hook):
    """Makes one weight NaN."""

    priority = 'LOWEST'

    def __init__(self, weight) -> None:
        self.weight = weight

    def before_train_iter(self, *args, **kwargs) -> None:
        """After CoCoRDHook."""
        self.weight.data[0, 0] = float('nan')


# --- what is refused -------------------------------------------------------


def test_hook_there_twice(tmp_path):
    hook = dict(type='crd_plugin.CoCoRDHook')
    runner = _build(tmp_path, custom_hooks=[hook, hook])
    with pytest.raises(ValueError, match='CoCoRDHook is registered 2 times'):
        runner.train()


def test_buffers_must_not_be_averaged(tmp_path):
    hooks = [dict(type='crd_plugin.CoCoRDHook'), dict(type='SyncBuffersHook')]
    runner = _build(tmp_path, custom_hooks=hooks)
    with pytest.raises(ValueError, match='SyncBuffersHook averages every'):
        runner.train()


def test_another_model_is_warned_of(tmp_path):
    hooks = [dict(type='crd_plugin.CoCoRDHook'), dict(type='crd_plugin.MemoryBankHook')]
    runner = small_runs.build(
        tmp_path,
        custom_hooks=hooks,
        default_hooks__checkpoint=None,
        **small_runs.without_validation(),
    )
    with _captured(runner.logger) as lines:
        runner.train()
    assert any('CoCoRDHook found a FrozenTeacherDistill instead of' in line for line in lines)


class _captured:
    """Messages of a logger while the block runs."""

    def __init__(self, logger) -> None:
        self.logger = logger

    def __enter__(self) -> list:
        self.lines = []
        self.handler = logging.Handler()
        self.handler.emit = lambda record: self.lines.append(record.getMessage())
        self.logger.addHandler(self.handler)
        return self.lines

    def __exit__(self, *args) -> None:
        self.logger.removeHandler(self.handler)


# --- checkpoints -----------------------------------------------------------


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """Work dir of three epochs without a break."""
    folder = tmp_path_factory.mktemp('whole')
    cfg = small_runs.config(folder, **run_changes(), train_cfg__max_epochs=3)
    Runner.from_cfg(cfg).train()
    return folder


def test_resumed_run_equals_the_whole_one(tmp_path, whole):
    runner = small_runs.build(
        tmp_path,
        **run_changes(),
        train_cfg__max_epochs=3,
        load_from=str(whole / 'epoch_2.pth'),
        resume=True,
    )
    runner.train()
    assert runner.iter == 3 * STEPS
    expected, found = (small_runs.load(folder / 'epoch_3.pth') for folder in (whole, tmp_path))
    assert set(found['state_dict']) == set(expected['state_dict'])
    assert any('slow_student.' in key for key in found['state_dict'])
    for key, value in expected['state_dict'].items():
        assert torch.equal(found['state_dict'][key], value), key
    pointer = 'distiller.distill_losses.loss_cocord.queue.pointer'
    assert found['state_dict'][pointer] == 3 * 20 % 15
    lines = small_runs.scalars(whole)
    assert small_runs.scalars(tmp_path) == lines[-STEPS - 1 :]


def test_resuming_without_the_parts_is_refused(tmp_path, whole):
    saved = small_runs.load(whole / 'epoch_2.pth')
    for part in ('queue.keys', 'slow_student'):
        weights = {key: value for key, value in saved['state_dict'].items() if part not in key}
        path = tmp_path / f'{part}.pth'
        torch.save({**saved, 'state_dict': weights}, path)
        runner = _build(tmp_path, load_from=str(path), resume=True, train_cfg__max_epochs=3)
        with pytest.raises(ValueError, match=f'The checkpoint has no {part} of CoCoRD'):
            runner.train()


def test_evaluation_and_export_are_the_student_alone(tmp_path, whole):
    """Accuracy of the last epoch, from the checkpoint and from the export."""
    logged = [line for line in small_runs.scalars(whole) if 'accuracy/top1' in line]
    checkpoint = whole / 'epoch_3.pth'
    cfg = small_runs.config(tmp_path, **run_changes(), load_from=str(checkpoint))
    tested = Runner.from_cfg(cfg).test()
    assert tested['accuracy/top1'] == pytest.approx(logged[-1]['accuracy/top1'])

    published = publish_student(checkpoint, tmp_path / 'student.pth')
    found = small_runs.load(published)
    weights = found['state_dict']
    assert not any(
        word in key
        for key in weights
        for word in ('slow_student', 'distiller', 'teacher', 'architecture')
    )
    plain = MODELS.build(small_runs.net(6, dropout=0.2))
    plain.load_state_dict(weights)
    saved = small_runs.load(checkpoint)['state_dict']
    for key, value in plain.state_dict().items():
        assert torch.equal(value, saved[f'architecture.{key}'])
    assert 'CoCoRDDistill' not in found['meta']['cfg']
    cfg = small_runs.config(
        tmp_path,
        model={'_delete_': True, **small_runs.net(6, dropout=0.2)},
        custom_hooks=[],
        load_from=str(published),
    )
    assert Runner.from_cfg(cfg).test() == tested
