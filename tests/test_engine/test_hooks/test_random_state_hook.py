"""RandomStateHook: numbers that depend on the seed and the position in training alone."""

import random
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, pseudo_collate
from mmengine.hooks import Hook
from torch.utils.data import DataLoader, Dataset, Subset

from crd_plugin.engine.hooks import random_state_hook
from crd_plugin.engine.hooks.random_state_hook import seed_everything, seeded_reading
from tests import small_runs

ITERATIONS = dict(
    train_cfg=dict(_delete_=True, type='IterBasedTrainLoop', max_iters=6),
    train_dataloader__sampler=dict(_delete_=True, type='InfiniteSampler', shuffle=True),
    default_hooks__checkpoint=dict(by_epoch=False),
    log_processor__by_epoch=False,
)
WORKERS = dict(train_dataloader__num_workers=2, train_dataloader__persistent_workers=True)


class Spy(Hook):
    """Keeps ids and images of every batch, and draws numbers in each iteration."""

    def __init__(self) -> None:
        self.batches, self.draws = [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        ids = [sample.sample_idx for sample in data_batch['data_samples']]
        self.batches.append((ids, torch.stack(list(data_batch['inputs']))))
        self.draws.append(_draw())


def _draw():
    return random.random(), np.random.rand(), torch.rand(1).item()


def _train(work_dir, **changes):
    """Train without validation; return what was read and drawn, and the runner."""
    spy = Spy()
    runner = small_runs.train(work_dir, spy, **changes)
    # Workers that are left to the garbage collector are waited for in vain.
    runner.train_dataloader._iterator = None
    vars(getattr(runner.train_loop, 'dataloader_iterator', spy)).pop('_iterator', None)
    return spy, runner


def _assert_equal(first, second, start=0):
    """The second run read and drew what the first did from an iteration on."""
    assert first.draws[start:] == second.draws
    assert len(first.batches[start:]) == len(second.batches)
    for (ids, images), (other_ids, other_images) in zip(first.batches[start:], second.batches):
        assert ids == other_ids
        assert torch.equal(images, other_images)


# --- iterations ------------------------------------------------------------


def test_every_counter_and_generator_counts():
    streams = []
    for counters in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)):
        seed_everything(*counters)
        streams.append(_draw())
        seed_everything(*counters)
        assert _draw() == streams[-1]
    # No generator repeats another's stream.
    assert len({number for draw in streams for number in draw}) == 15


# --- reading ---------------------------------------------------------------


class Noise(Dataset):
    """Sample i is i and a draw from each generator that an augmentation may use."""

    def __len__(self):
        return 12

    def __getitem__(self, idx):
        return (idx, *_draw())


def _loader(num_workers, seed=7):
    dataset = Noise()
    seeded_reading(dataset).set_seed(seed)
    return DataLoader(
        dataset,
        batch_size=3,
        sampler=DefaultSampler(dataset, shuffle=True, seed=0),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        collate_fn=pseudo_collate,
    )


def _epoch(loader, epoch):
    loader.sampler.set_epoch(epoch)
    loader.dataset.__getitems__.set_epoch(epoch)
    return [torch.tensor(batch, dtype=torch.float64) for batch in loader]


def test_an_epoch_is_the_same_after_a_restart_with_any_number_of_workers():
    running = _loader(2)
    epochs = [torch.cat(_epoch(running, epoch), 1) for epoch in range(3)]
    for num_workers in (0, 1):
        assert torch.equal(torch.cat(_epoch(_loader(num_workers), 2), 1), epochs[2])
    # 3 epochs of 12 samples, three generators: no draw comes back.
    assert torch.cat(epochs, 1)[1:].unique().numel() == 3 * 12 * 3
    other = torch.cat(_epoch(_loader(0, seed=8), 2), 1)
    assert torch.equal(other[0], epochs[2][0]) and not torch.equal(other[1:], epochs[2][1:])


def test_reading_leaves_the_random_state_as_it_is(monkeypatch):
    dataset = Noise()
    seeded_reading(dataset)
    seed_everything(1, 2, 3)
    undisturbed = [_draw(), _draw()]
    for fails in (False, True):
        if fails:
            monkeypatch.setattr(Noise, '__getitem__', lambda self, idx: _draw() / 0)
        seed_everything(1, 2, 3)
        first = _draw()
        with pytest.raises(TypeError) if fails else nullcontext():
            dataset.__getitems__([4, 1])
        assert [first, _draw()] == undisturbed


def test_a_batch_that_comes_again_is_augmented_differently():
    runs = []
    for _ in range(2):
        dataset = Noise()
        reading = seeded_reading(dataset)
        reading.set_seed(1)
        runs.append([dataset.__getitems__([2, 5]) for _ in range(3)])
        reading.set_epoch(1)
        runs[-1].append(dataset.__getitems__([2, 5]))
    assert len({batch[0] for batch in runs[0]}) == 4
    assert runs[0] == runs[1]


def test_data_sets_that_read_batches_or_take_no_attribute():
    dataset = Subset(Noise(), [4, 3])
    reading = seeded_reading(dataset)
    assert [idx for idx, *_ in dataset.__getitems__([1, 0])] == [3, 4]
    # As if train() is called twice: running workers know the first one.
    assert seeded_reading(dataset) is reading
    assert seeded_reading([1, 2])([1, 0]) == [2, 1]


# --- training --------------------------------------------------------------


def test_resumed_run_takes_over_drawn_seeds(tmp_path):
    drawn = dict(randomness=dict(seed=None), train_cfg__max_epochs=2)
    checkpoint = str(tmp_path / 'epoch_1.pth')
    whole, first = _train(tmp_path, **drawn)
    rest, second = _train(tmp_path, load_from=checkpoint, resume=True, **drawn)
    _assert_equal(whole, rest, small_runs.STEPS)
    assert len(rest.batches) == small_runs.STEPS
    state = small_runs.load(checkpoint)['random_state']
    sampler_seed = first.train_dataloader.sampler.seed
    assert state == dict(seed=first.seed, sampler_seed=sampler_seed)
    assert isinstance(first.seed, int) and second.seed == first.seed
    # Loading weights alone keeps the run's own seeds.
    _, third = _train(tmp_path, load_from=checkpoint, **drawn)
    assert third.seed != first.seed
    assert third.train_dataloader.sampler.seed != sampler_seed


def test_validation_and_workers_leave_training_as_it_is(tmp_path):
    two = dict(train_cfg__max_epochs=2, default_hooks__checkpoint=None)
    whole, _ = _train(tmp_path, **two)
    workers, _ = _train(tmp_path, **two, **WORKERS)
    _assert_equal(whole, workers)
    validated = Spy()
    small_runs.build(tmp_path, validated, **two).train()
    _assert_equal(whole, validated)
    assert len(whole.draws) == 2 * small_runs.STEPS
    # Images differ from epoch to epoch.
    epochs = [
        {index: image for ids, images in batches for index, image in zip(ids, images)}
        for batches in (whole.batches[: small_runs.STEPS], whole.batches[small_runs.STEPS :])
    ]
    changed = [not torch.equal(epochs[0][index], image) for index, image in epochs[1].items()]
    assert sum(changed) > small_runs.NUM_SAMPLES / 2


def test_loop_by_iterations_augments_every_pass_differently(tmp_path):
    """The same batch comes again and again, never the same images; a resumed run goes on so."""
    whole_set = dict(
        train_dataloader__sampler__shuffle=False,
        train_dataloader__batch_size=small_runs.NUM_SAMPLES,
    )
    spy, _ = _train(tmp_path, **{**ITERATIONS, **whole_set})
    ids = [ids for ids, _ in spy.batches]
    assert len(ids) == 6 and all(other == ids[0] for other in ids)
    images = [images for _, images in spy.batches]
    for i, batch in enumerate(images):
        assert not any(torch.equal(batch, other) for other in images[:i])
    changes = dict(load_from=str(tmp_path / 'iter_3.pth'), resume=True)
    rest, _ = _train(tmp_path, **{**ITERATIONS, **whole_set, **changes})
    _assert_equal(spy, rest, start=3)


def test_ranks_with_unequal_numbers_of_batches(tmp_path, monkeypatch):
    """They waited for each other for ever."""
    lengths = torch.tensor([4]), torch.tensor([3])
    monkeypatch.setattr(random_state_hook, 'all_gather', lambda own: lengths if own == 4 else None)
    message = 'The 2 ranks have 4, 3 batches per epoch.*set train_dataloader.sampler.round_up=True'
    with pytest.raises(ValueError, match=message):
        small_runs.train(tmp_path)
    monkeypatch.setattr(random_state_hook, 'all_gather', lambda own: [own, own])
    small_runs.train(tmp_path)
