"""RandomStateHook: numbers that depend on seed and position alone."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook

from crd_plugin.engine import RandomStateHook
from crd_plugin.engine.hooks.random_state_hook import seed_everything
from tests import small_runs

ITERATIONS = dict(
    train_cfg=dict(_delete_=True, type='IterBasedTrainLoop', max_iters=6),
    train_dataloader__sampler=dict(_delete_=True, type='InfiniteSampler', shuffle=True),
    default_hooks__checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=3),
    log_processor__by_epoch=False,
)


class Spy(Hook):
    """Keeps ids and images of every batch, and draws a number in each."""

    def __init__(self) -> None:
        self.batches, self.draws = [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        ids = [sample.sample_idx for sample in data_batch['data_samples']]
        self.batches.append((ids, torch.stack(list(data_batch['inputs']))))
        self.draws.append(_draw())


def _draw():
    return random.random(), np.random.rand(), torch.rand(1).item()


def _train(work_dir, **changes):
    """Train without validation; what was read, what was drawn, the runner."""
    spy = Spy()
    runner = small_runs.build(work_dir, spy, **{**small_runs.without_validation(), **changes})
    runner.train()
    # Left to the garbage collector, workers are waited for in vain.
    runner.train_dataloader._iterator = None
    vars(getattr(runner.train_loop, 'dataloader_iterator', spy)).pop('_iterator', None)
    return spy, runner


def _resume(work_dir, name, **changes):
    return _train(work_dir, load_from=str(work_dir / name), resume=True, **changes)


def _equal(first, second):
    assert first.draws == second.draws
    for (ids, images), (other_ids, other_images) in zip(first.batches, second.batches):
        assert ids == other_ids
        assert torch.equal(images, other_images)


def _tail(spy, start):
    rest = Spy()
    rest.batches, rest.draws = spy.batches[start:], spy.draws[start:]
    return rest


# --- seeding ---------------------------------------------------------------


def test_same_counters_same_numbers():
    seed_everything(1, 2, 3)
    first = [_draw() for _ in range(3)]
    seed_everything(1, 2, 3)
    assert [_draw() for _ in range(3)] == first


def test_every_counter_and_generator_counts():
    streams = []
    for counters in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)):
        seed_everything(*counters)
        streams.append(_draw())
    for numbers in zip(*streams):
        assert len(set(numbers)) == len(streams)
    # No generator repeats another's stream.
    assert len({number for draw in streams for number in draw}) == 15


def test_iteration_forgets_what_was_drawn_before():
    hook = RandomStateHook()
    runner = SimpleNamespace(seed=5, iter=17)
    hook.before_train_iter(runner, 0)
    expected = _draw()
    random.random(), np.random.rand(9), torch.rand(99)
    hook.before_train_iter(runner, 3)
    assert _draw() == expected
    runner.iter = 18
    hook.before_train_iter(runner, 0)
    assert not set(_draw()) & set(expected)


# --- in training -----------------------------------------------------------


def test_checkpoint_holds_the_drawn_seeds(tmp_path):
    _, runner = _train(tmp_path, randomness=dict(seed=None))
    state = small_runs.load(tmp_path / 'epoch_1.pth')['random_state']
    assert state == dict(seed=runner.seed, sampler_seed=runner.train_dataloader.sampler.seed)
    assert isinstance(runner.seed, int)


def test_resumed_run_takes_over_drawn_seeds(tmp_path):
    drawn = dict(randomness=dict(seed=None), train_cfg__max_epochs=2)
    whole, first = _train(tmp_path, **drawn)
    rest, second = _resume(tmp_path, 'epoch_1.pth', **drawn)
    assert len(rest.batches) == small_runs.STEPS
    _equal(_tail(whole, small_runs.STEPS), rest)
    assert second.seed == first.seed
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


def test_loading_weights_alone_keeps_the_runs_own_seeds(tmp_path):
    drawn = dict(randomness=dict(seed=None))
    _, first = _train(tmp_path, **drawn)
    checkpoint = str(tmp_path / 'epoch_1.pth')
    _, second = _train(tmp_path, load_from=checkpoint, **drawn)
    assert second.seed != first.seed
    assert second.train_dataloader.sampler.seed != first.train_dataloader.sampler.seed


def test_validation_leaves_training_as_it_is(tmp_path):
    spies = []
    for val in (dict(), small_runs.without_validation()):
        spy = Spy()
        small_runs.build(
            tmp_path, spy, train_cfg__max_epochs=2, default_hooks__checkpoint=None, **val
        ).train()
        spies.append(spy)
    assert len(spies[0].draws) == 2 * small_runs.STEPS
    _equal(*spies)


def test_number_of_workers_leaves_training_as_it_is(tmp_path):
    whole, _ = _train(tmp_path, train_cfg__max_epochs=2, default_hooks__checkpoint=None)
    workers, _ = _train(
        tmp_path,
        train_cfg__max_epochs=2,
        default_hooks__checkpoint=None,
        train_dataloader__num_workers=2,
        train_dataloader__persistent_workers=True,
    )
    _equal(whole, workers)
    # Augmented anew in each epoch.
    epochs = [
        {
            index: image
            for ids, images in whole.batches[start : start + small_runs.STEPS]
            for index, image in zip(ids, images)
        }
        for start in (0, small_runs.STEPS)
    ]
    changed = [
        not torch.equal(epochs[0][index], epochs[1][index])
        for index in range(small_runs.NUM_SAMPLES)
    ]
    assert sum(changed) > small_runs.NUM_SAMPLES / 2


def test_seeds_reach_a_data_set_inside_a_wrapper(tmp_path):
    cfg = small_runs.config(tmp_path)
    repeated = dict(
        _delete_=True, type='RepeatDataset', times=2, dataset=cfg.train_dataloader.dataset
    )
    first, _ = _train(tmp_path, train_dataloader__dataset=repeated)
    torch.rand(3)
    second, runner = _train(tmp_path, train_dataloader__dataset=repeated)
    assert len(runner.train_dataloader.dataset) == 2 * small_runs.NUM_SAMPLES
    _equal(first, second)


def test_data_set_without_seeds_of_its_own(tmp_path):
    """Plain training on any data set repeats itself without workers."""
    cfg = small_runs.config(tmp_path)
    plain = dict(
        train_cfg__max_epochs=2,
        model={**cfg.model.architecture, '_delete_': True},
        train_dataloader__dataset={**cfg.train_dataloader.dataset.dataset, '_delete_': True},
        custom_hooks=[],
    )
    whole, first = _train(tmp_path, **plain)
    rest, second = _resume(tmp_path, 'epoch_1.pth', **plain)
    _equal(_tail(whole, small_runs.STEPS), rest)
    weight = [runner.model.head.fc.weight for runner in (first, second)]
    assert torch.equal(*weight)


@pytest.mark.parametrize('num_workers', [0, 2])
def test_loop_by_iterations_resumes(tmp_path, num_workers):
    changes = dict(
        ITERATIONS, randomness=dict(seed=None), train_dataloader__num_workers=num_workers
    )
    whole, first = _train(tmp_path, **changes)
    rest, second = _resume(tmp_path, 'iter_3.pth', **changes)
    assert len(rest.batches) == 3
    _equal(_tail(whole, 3), rest)
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


def test_loop_by_iterations_augments_every_pass_anew(tmp_path):
    """The same batch comes again and again, never the same images."""
    spy, _ = _train(
        tmp_path,
        **{
            **ITERATIONS,
            'train_dataloader__sampler__shuffle': False,
            'train_dataloader__batch_size': small_runs.NUM_SAMPLES,
        },
    )
    ids = [ids for ids, _ in spy.batches]
    assert len(ids) == 6 and all(other == ids[0] for other in ids)
    images = [images for _, images in spy.batches]
    for i, batch in enumerate(images):
        assert not any(torch.equal(batch, other) for other in images[:i])


def test_loop_by_iterations_reads_nothing_before_hooks_ran(tmp_path):
    """MMEngine starts to read when the loop is built; compat mends it."""
    seen = {}

    class Look(Hook):
        def before_train(self, runner) -> None:
            iterator = runner.train_loop.dataloader_iterator
            seen.update(started='_iterator' in vars(iterator))

    runner = small_runs.build(tmp_path, Look(), **{**ITERATIONS, **small_runs.without_validation()})
    runner.train()
    assert seen == dict(started=False)
    assert '_iterator' in vars(runner.train_loop.dataloader_iterator)
