"""A killed and resumed run equals an uninterrupted one, bit for bit."""

import hashlib
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_flatten_with_path

from tests import small_runs

LAST, KILLED, SAVED = 16, 10, 8  # iterations; four make an epoch
SCHEDULER = dict(
    type='CosineAnnealingLR', by_epoch=True, begin=0, end=4, convert_to_iter_based=True
)
EPOCHS = dict(train_cfg__max_epochs=4, param_scheduler=SCHEDULER)
ITERATIONS = dict(
    train_cfg=dict(_delete_=True, type='IterBasedTrainLoop', max_iters=LAST, val_interval=4),
    train_dataloader__sampler=dict(_delete_=True, type='InfiniteSampler', shuffle=True),
    param_scheduler={**SCHEDULER, 'by_epoch': False, 'end': LAST, 'convert_to_iter_based': False},
    default_hooks__checkpoint=dict(by_epoch=False, interval=4),
    log_processor__by_epoch=False,
)
WORKERS = dict(train_dataloader__num_workers=2, train_dataloader__persistent_workers=True)
DRAWN = dict(randomness=dict(seed=None))
FILES = dict(epochs=('epoch_4.pth', 'epoch_2.pth'), iterations=('iter_16.pth', 'iter_8.pth'))


def _kill(runner: Any, *args: Any, **kwargs: Any) -> None:
    """Send SIGKILL, which nothing can catch."""
    if runner.iter + 1 == KILLED:
        os.kill(os.getpid(), signal.SIGKILL)


def _resume_here(tmp_path: Path, work_dir: Path, changes: dict) -> None:
    """Resume in this process."""
    small_runs.build(work_dir, resume=True, **changes).train()


def _resume_with_the_tool(tmp_path: Path, work_dir: Path, changes: dict) -> None:
    """Resume as a user does."""
    config = small_runs.write_config(tmp_path / 'config.py', work_dir, **changes)
    log = tmp_path / 'resumed.txt'
    process = small_runs.start('train.py', config, '--resume', 'auto', log=log)
    assert f'go on from {work_dir / "epoch_2.pth"}' in small_runs.finish(process, log)


@pytest.mark.parametrize(
    'kind, changes, resume',
    [
        ('epochs', EPOCHS, _resume_here),
        ('epochs', {**EPOCHS, **WORKERS, **DRAWN}, _resume_with_the_tool),
        ('iterations', {**ITERATIONS, **WORKERS, **DRAWN}, _resume_here),
    ],
    ids=['seed, no workers', 'drawn seed, workers, tool', 'iterations, drawn seed, workers'],
)
def test_killed_and_resumed_run(tmp_path, kind, changes, resume):
    last, saved = FILES[kind]
    work_dir, whole = tmp_path / 'killed', tmp_path / 'whole'
    runner = small_runs.build(work_dir, small_runs.Watch('after_train_iter', _kill), **changes)
    child = os.fork()
    if not child:
        runner.train()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    hashes = _hashes(work_dir)
    assert saved in hashes and last not in hashes
    resume(tmp_path, work_dir, changes)

    # The reference is told the seeds, which may have been drawn.
    seeds = small_runs.load(work_dir / saved)['random_state']
    told = dict(
        randomness=dict(seed=seeds['seed']), train_dataloader__sampler__seed=seeds['sampler_seed']
    )
    small_runs.build(whole, **{**changes, **told}).train()

    # Model, bank and Z, optimizer, schedules, seeds, position.
    _assert_same(_state(work_dir / last), _state(whole / last))
    train, val = _log(whole)
    assert [line['step'] for line in train] == list(range(1, LAST + 1))
    assert len(val) == 4
    # Iterations 9 and 10 were done twice, and so was the validation before them, which the
    # checkpoint does not have.
    assert _log(work_dir) == (train[:KILLED] + train[SAVED:], val[:2] + val[1:])
    again = _hashes(work_dir)
    assert {name: again[name] for name in hashes} == hashes


def _log(work_dir: Path) -> tuple[list, list]:
    """Logged lines of training and of validation."""
    lines = small_runs.scalars(work_dir)
    train = [line for line in lines if 'loss' in line]
    return train, [line for line in lines if 'loss' not in line]


def _state(path: Path) -> dict[str, Any]:
    """The parts of a checkpoint that must not depend on the interruption."""
    checkpoint = small_runs.load(path)
    meta, hub = checkpoint.pop('meta'), checkpoint.pop('message_hub')
    checkpoint['position'] = {key: meta[key] for key in ('epoch', 'iter', 'seed')}
    # The checkpoint of an epoch is saved before its validation.
    checkpoint['history'] = {
        key: value
        for key, value in hub['log_scalars'].items()
        if key.startswith('train/') and 'time' not in key
    }
    assert {'train/loss', 'train/mi_bound'} <= set(checkpoint['history'])
    assert {'state_dict', 'optimizer', 'param_schedulers', 'random_state'} <= set(checkpoint)
    return checkpoint


def _assert_same(first: Any, second: Any) -> None:
    """Both are equal in structure, type and every bit."""
    pairs = _leaves(first), _leaves(second)
    assert [key for key, _ in pairs[0]] == [key for key, _ in pairs[1]]
    assert len(pairs[0]) > 40
    for (key, one), (_, other) in zip(*pairs):
        assert type(one) is type(other), key
        if isinstance(one, (torch.Tensor, np.ndarray)):
            one, other = np.asarray(one), np.asarray(other)
            assert one.dtype == other.dtype and one.shape == other.shape, key
            assert one.tobytes() == other.tobytes(), key
        else:
            assert one == other, key


def _leaves(value: Any) -> list[tuple[Any, Any]]:
    """Values of a nested structure and where they are."""
    value['history'] = {key: each.data for key, each in value['history'].items()}
    return tree_flatten_with_path(value)[0]


def _hashes(work_dir: Path) -> dict[str, str]:
    """Checksum of every checkpoint."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(work_dir.glob('*.pth'))
    }
