"""CoCoRDHook: when averages move, what enters the queue, what is refused."""

import copy

import pytest
import torch
from mmengine.hooks import Hook

from crd_plugin.engine import CoCoRDHook
from tests import small_runs
from tests.cocord import run_changes

STEPS = small_runs.STEPS  # iterations per epoch
SIZE = 15  # keys in the queue
LOSS = 'distiller.distill_losses.loss_cocord.'
HOOK = dict(type='crd_plugin.CoCoRDHook')


class Spy(Hook):
    """Records the model's state before and after each iteration."""

    def __init__(self, priority: str) -> None:
        self.priority = priority
        self.before, self.after, self.pending = [], [], []

    def before_train_iter(self, runner, *args, **kwargs) -> None:
        self.before.append(copy.deepcopy(runner.model.state_dict()))

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        self.after.append(copy.deepcopy(runner.model.state_dict()))
        self.pending.append(runner.model.cocord_loss.queue.pending)


def break_projector(runner, *args, **kwargs):
    runner.model.cocord_loss.teacher_projector[3].weight.data[0, 0] = float('nan')


def build(tmp_path, *hooks, **changes):
    settings = {
        **run_changes(),
        **small_runs.without_validation(),
        'default_hooks__checkpoint': None,
    }
    return small_runs.build(tmp_path, *hooks, **{**settings, **changes})


@pytest.fixture(scope='module', params=[1, 2])
def watched(request, tmp_path_factory):
    """One epoch; gradients are accumulated over 1 or 2 iterations."""
    # The first sees what is there before CoCoRDHook, the second what is there after it.
    early, late = Spy('VERY_HIGH'), Spy('VERY_LOW')
    counts = dict(optim_wrapper__accumulative_counts=request.param)
    runner = build(tmp_path_factory.mktemp('watched'), early, late, **counts)
    runner.train()
    return request.param, runner, early, late


def averages_of(model):
    """Names of averaged parameters, of what they follow, and the momentum."""
    for name, _ in model.named_parameters():
        for average, source, momentum in (
            ('slow_student.', 'architecture.', 0.9),
            (f'{LOSS}slow_projector.', f'{LOSS}projector.', 0.9),
            (f'{LOSS}slow_connector.', f'{LOSS}connector.', 0.9),
            (f'{LOSS}teacher_projector.', f'{LOSS}projector.', 0.999),
        ):
            if name.startswith(average):
                yield name, source + name[len(average) :], momentum


def test_averages_move_once_per_optimizer_step(watched):
    """Before its forward pass, towards the parameters that it starts from."""
    counts, runner, early, late = watched
    names = list(averages_of(runner.model))
    # 6 tensors of the student, 6 of a projector, 2 of a connector, 6 of a projector.
    assert len(names) == 6 + 6 + 2 + 6
    moved = []
    for i, (old, new) in enumerate(zip(early.before, late.before)):
        for name, source, momentum in names:
            value = old[name]
            if i % counts == 0:
                value = momentum * old[name] + (1 - momentum) * old[source]
            torch.testing.assert_close(new[name], value)
        moved.append(not torch.equal(old[names[0][0]], new[names[0][0]]))
    # At first they are copies of the student.
    assert moved == [i % counts == 0 and i > 0 for i in range(STEPS)]


def test_keys_enter_after_every_iteration(watched):
    """Also while gradients are accumulated. 20 keys in 15 places."""
    _, _, early, late = watched
    rows, pointer = list(early.before[0][f'{LOSS}queue.keys']), 0
    for before, after, pending in zip(early.after, late.after, early.pending):
        assert torch.equal(before[f'{LOSS}queue.keys'], torch.stack(rows))
        for key in pending:
            rows[pointer] = key
            pointer = (pointer + 1) % SIZE
        assert torch.equal(after[f'{LOSS}queue.keys'], torch.stack(rows))
        assert after[f'{LOSS}queue.pointer'] == pointer
    assert late.pending == [None] * STEPS
    assert [len(keys) for keys in early.pending] == [6, 6, 6, 2]
    assert pointer == 20 % SIZE
    torch.testing.assert_close(torch.stack(rows).norm(dim=1), torch.ones(SIZE))


def test_missing_hook_is_named_in_the_second_step(tmp_path):
    runner = build(tmp_path, custom_hooks=[])
    message = r"never committed: CoCoRDHook is missing; add dict\(type='crd_plugin.CoCoRDHook'\) to"
    with pytest.raises(RuntimeError, match=message):
        runner.train()
    assert runner.iter == 1


def test_interval(tmp_path):
    runner = build(tmp_path, custom_hooks=[dict(HOOK, interval=3)])
    queue = runner.model.cocord_loss.queue
    queue.stage(torch.ones(2, 8))  # Left by another run; it does not stop this one.
    runner.train()
    assert queue.pointer == 20 % SIZE
    history = runner.message_hub.get_scalar('train/contrast').data[0]
    assert len(history) == 2  # Iterations 1 and 3.
    with pytest.raises(ValueError, match='interval is 0, expected at least'):
        CoCoRDHook(interval=0)


def test_terms_are_logged_and_not_added_to_the_loss(watched):
    counts, runner, *_ = watched
    lines = small_runs.scalars(runner.work_dir)
    assert len(lines) == STEPS
    for line in lines:
        total = line['contrast'] + 4 * line['prediction']
        assert line['distill.loss_cocord'] == pytest.approx(total, rel=1e-4)
        assert line['loss'] == pytest.approx(total + line['student.loss'], rel=1e-4)
        assert 0 <= line['contrast_top1'] <= 100
    contrast = float(runner.model.cocord_loss.terms.contrast)
    assert lines[-1]['contrast'] == pytest.approx(contrast, rel=1e-4)


@pytest.mark.parametrize(
    'hooks, message',
    [
        ([HOOK, HOOK], 'CoCoRDHook is registered 2 times'),
        ([HOOK, dict(type='SyncBuffersHook')], 'SyncBuffersHook averages every'),
        ([HOOK], 'Some keys are NaN or infinite'),
    ],
)
def test_refused_runs(tmp_path, hooks, message):
    watch = small_runs.Watch('before_train_iter', break_projector)
    with pytest.raises(ValueError, match=message):
        build(tmp_path, watch, custom_hooks=hooks).train()


def test_silent_with_models_without_a_queue(tmp_path):
    """It changes and logs nothing, and does not mind what other models may do."""
    plain = {'_delete_': True, **small_runs.net(6, dropout=0.2)}
    found = []
    for number, hooks in enumerate(([], [HOOK, HOOK])):
        hooks = [dict(type='SyncBuffersHook'), *hooks]
        runner = small_runs.build(tmp_path / str(number), model=plain, custom_hooks=hooks)
        runner.train()
        runner.val()
        runner.test()
        found.append((small_runs.scalars(runner.work_dir), runner.model.state_dict()))
    (lines, weights), (other_lines, other_weights) = found
    assert lines == other_lines
    torch.testing.assert_close(weights, other_weights, rtol=0, atol=0)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp('whole')
    small_runs.build(folder, **run_changes(), train_cfg__max_epochs=3).train()
    return folder


def test_resumed_run_equals_the_whole_one(tmp_path, whole):
    resuming = dict(load_from=str(whole / 'epoch_2.pth'), resume=True)
    runner = small_runs.build(tmp_path, **run_changes(), **resuming, train_cfg__max_epochs=3)
    runner.train()
    assert runner.iter == 3 * STEPS
    expected, found = (
        small_runs.load(folder / 'epoch_3.pth')['state_dict'] for folder in (whole, tmp_path)
    )
    assert any('slow_student.' in key for key in found)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert found[f'{LOSS}queue.pointer'] == 3 * 20 % SIZE
    # With the validation of epoch 2, which its checkpoint does not have.
    assert small_runs.scalars(tmp_path) == small_runs.scalars(whole)[-STEPS - 2 :]


@pytest.mark.parametrize('part', ['queue.keys', 'slow_student'])
def test_resuming_without_a_part_is_refused(tmp_path, whole, part):
    saved = small_runs.load(whole / 'epoch_2.pth')
    weights = {key: value for key, value in saved['state_dict'].items() if part not in key}
    path = tmp_path / 'part.pth'
    torch.save({**saved, 'state_dict': weights}, path)
    runner = build(tmp_path, load_from=str(path), resume=True, train_cfg__max_epochs=3)
    with pytest.raises(ValueError, match=f'The checkpoint has no {part} of CoCoRD'):
        runner.train()
