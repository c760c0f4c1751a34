"""A killed and resumed run equals an uninterrupted one, bit for bit."""

import hashlib
import importlib.util
import time
from pathlib import Path
from typing import Any, Dict, Iterator, Tuple

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from crd_plugin.cli import arguments as cli
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
    default_hooks__checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=4),
    log_processor__by_epoch=False,
)
WORKERS = dict(train_dataloader__num_workers=2, train_dataloader__persistent_workers=True)
DRAWN = dict(randomness=dict(seed=None))
CASES = {
    'epochs, seed, no workers': (EPOCHS, 'epoch_4.pth', 'epoch_2.pth'),
    'epochs, drawn seed, workers': ({**EPOCHS, **WORKERS, **DRAWN}, 'epoch_4.pth', 'epoch_2.pth'),
    'iterations, drawn seed, workers': (
        {**ITERATIONS, **WORKERS, **DRAWN},
        'iter_16.pth',
        'iter_8.pth',
    ),
}


@pytest.mark.parametrize('case', CASES)
def test_killed_and_resumed_run(tmp_path, case):
    changes, last, saved = CASES[case]
    work_dir = tmp_path / 'killed'
    marker = tmp_path / 'marker'
    pause = [
        dict(type='crd_plugin.MemoryBankHook', interval=1),
        dict(type='PauseHook', iteration=KILLED, marker=str(marker)),
    ]
    paused = small_runs.write_config(
        tmp_path / 'paused.py', work_dir, **changes, custom_hooks=pause
    )
    log = tmp_path / 'killed.txt'
    process = small_runs.start('train.py', paused, log=log)
    _wait_for(marker, process, log)
    process.kill()  # SIGKILL
    assert process.wait() == -9
    assert not (work_dir / last).exists()
    hashes = _hashes(work_dir)
    assert saved in hashes

    config = small_runs.write_config(tmp_path / 'config.py', work_dir, **changes)
    log = tmp_path / 'resumed.txt'
    resumed = small_runs.start('train.py', config, '--resume', 'auto', log=log)
    # The reference is told the seeds, which may have been drawn.
    seeds = small_runs.load(work_dir / saved)['random_state']
    whole = tmp_path / 'whole'
    reference = small_runs.write_config(
        tmp_path / 'reference.py',
        whole,
        **{
            **changes,
            'randomness': dict(seed=seeds['seed']),
            'train_dataloader__sampler__seed': seeds['sampler_seed'],
        },
    )
    other_log = tmp_path / 'whole.txt'
    other = small_runs.start('train.py', reference, log=other_log)
    assert f'go on from {work_dir / saved}' in small_runs.finish(resumed, log)
    small_runs.finish(other, other_log)

    # Model, bank and Z, optimizer, schedules, seeds, position.
    _assert_same(_state(work_dir / last), _state(whole / last))
    train, val = _log(whole)
    assert [line['step'] for line in train] == list(range(1, LAST + 1))
    assert len(val) == 4
    again, val_again = _log(work_dir)
    # Iterations 9 and 10 were done twice.
    assert again == train[:KILLED] + train[SAVED:]
    assert val_again == val
    again = _hashes(work_dir)
    assert {name: again[name] for name in hashes} == hashes


def _wait_for(marker: Path, process, log: Path) -> None:
    deadline = time.monotonic() + 180
    while not marker.exists():
        assert process.poll() is None, log.read_text()[-4000:]
        assert time.monotonic() < deadline, log.read_text()[-4000:]
        time.sleep(0.05)


def _log(work_dir: Path) -> Tuple[list, list]:
    """Lines of training and of validation."""
    lines = small_runs.scalars(work_dir)
    return (
        [line for line in lines if 'loss' in line],
        [line for line in lines if 'loss' not in line],
    )


def _state(path: Path) -> Dict[str, Any]:
    """What must not depend on the interruption."""
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


def _assert_same(first: Any, second: Any, place: str = '') -> None:
    """Equal in structure, type and every bit."""
    pairs = list(_leaves(first, place)), list(_leaves(second, place))
    assert [key for key, _ in pairs[0]] == [key for key, _ in pairs[1]]
    assert len(pairs[0]) > 40
    for (key, one), (_, other) in zip(*pairs):
        assert type(one) is type(other), key
        if isinstance(one, torch.Tensor):
            one, other = one.numpy(), other.numpy()
        if isinstance(one, np.ndarray):
            assert one.dtype == other.dtype and one.shape == other.shape, key
            assert one.tobytes() == other.tobytes(), key
        else:
            assert one == other, key


def _leaves(value: Any, place: str) -> Iterator[Tuple[str, Any]]:
    if isinstance(value, HistoryBuffer):
        value = dict(enumerate(value.data))
    elif isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f'{place}.{key}')
    else:
        yield place, value


def _hashes(work_dir: Path) -> Dict[str, str]:
    """Checksum of every checkpoint."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(work_dir.glob('*.pth'))
    }


# --- failures --------------------------------------------------------------


@pytest.fixture(scope='module')
def broken_run(tmp_path_factory):
    """Work dir of a run that broke down in its third epoch."""
    work_dir = tmp_path_factory.mktemp('broken')
    runner = small_runs.build(work_dir, train_cfg__max_epochs=2, **small_runs.without_validation())
    runner.train()
    hashes = _hashes(work_dir)
    runner = small_runs.build(
        work_dir,
        small_runs.FailHook(KILLED - 1),
        load_from=str(work_dir / 'epoch_2.pth'),
        resume=True,
        train_cfg__max_epochs=4,
        **small_runs.without_validation(),
    )
    with pytest.raises(ArithmeticError, match='broken on purpose'):
        runner.train()
    return work_dir, hashes


def test_failing_run_leaves_earlier_checkpoints(broken_run):
    work_dir, hashes = broken_run
    assert list(hashes) == ['epoch_1.pth', 'epoch_2.pth']
    assert _hashes(work_dir) == hashes
    named = (work_dir / 'last_checkpoint').read_text()
    assert Path(named).name == 'epoch_2.pth'
    # They are whole, too.
    assert small_runs.load(work_dir / 'epoch_2.pth')['meta']['iter'] == SAVED


def test_resuming_from_a_truncated_checkpoint(broken_run, tmp_path, capsys):
    work_dir, hashes = broken_run
    config = small_runs.write_config(tmp_path / 'config.py', work_dir, train_cfg__max_epochs=4)
    truncated = tmp_path / 'truncated.pth'
    whole = (work_dir / 'epoch_2.pth').read_bytes()
    truncated.write_bytes(whole[: len(whole) // 2])
    path = small_runs.REPO / 'tools' / 'train.py'
    spec = importlib.util.spec_from_file_location('train_tool', path)
    train_tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(train_tool)
    status = cli.run(train_tool.main, [str(config), '--resume', str(truncated)])
    assert status == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f'error: checkpoint {truncated} (')
    assert 'is truncated' in error and 'give an earlier one' in error
    assert _hashes(work_dir) == hashes
    assert Path((work_dir / 'last_checkpoint').read_text()).name == ('epoch_2.pth')
