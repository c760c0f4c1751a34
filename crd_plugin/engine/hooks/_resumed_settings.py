"""Whether a run may go on from a checkpoint, and what of its config counts from then on.

MMEngine drops the config's settings of optimizer and schedules. Here, a schedule that differs, or
other batches per epoch, put the run where a run with the new config would be after as many epochs.
Several optimizers, and schedules that depend on metrics, are left to MMEngine.
"""

import warnings
from collections.abc import Iterator
from typing import Any

from mmengine.dist import get_world_size
from mmengine.runner import EpochBasedTrainLoop

# What a scheduler counts; all else in its state is a setting.
_COUNTED = {'optimizer', 'last_step', '_global_step', '_last_value'}


def batches(runner: Any) -> dict[str, Any]:
    """Return batches per epoch, samples per batch (None if they vary) and ranks, to be saved."""
    loader = runner.train_loop.dataloader
    return dict(epoch_length=len(loader), batch_size=loader.batch_size, world_size=get_world_size())


def counts_epochs(runner: Any) -> bool:
    """Tell whether the training loop goes through the data epoch by epoch."""
    return isinstance(runner.train_loop, EpochBasedTrainLoop)


def follow_config(runner: Any, checkpoint: dict[str, Any]) -> None:
    """Change a checkpoint so that a run that takes it over follows its config."""
    if not {'epoch', 'iter'} <= set(checkpoint.get('meta') or ()):
        return  # mere weights, which are refused where they are loaded
    for part in ('message_hub', 'optimizer'):
        if part not in checkpoint:
            raise ValueError(
                f'The checkpoint has no {part}, so training cannot be resumed from it; resume from '
                'one such as epoch_1.pth, not best_*.pth, or start from its weights with load_from.'
            )
    meta, now = checkpoint['meta'], batches(runner)
    before = checkpoint.get('batches', {})
    moved = False
    if counts_epochs(runner):
        length = before.get('epoch_length') or meta['iter'] / max(meta['epoch'], 1)
        if length * meta['epoch'] != meta['iter'] or int(length) != length:
            raise ValueError(
                f'The checkpoint was saved in the middle of an epoch (epoch {meta["epoch"] + 1}, '
                f'iteration {meta["iter"]}), but this loop resumes between two; resume from one '
                'that was saved after an epoch (by_epoch=True in default_hooks.checkpoint), or '
                'start from its weights with load_from.'
            )
        before = {**before, 'epoch_length': int(length)}
        moved = now['epoch_length'] * meta['epoch'] != meta['iter']
        meta['iter'] = now['epoch_length'] * meta['epoch']
    changes = _differences('', _readable(before), _readable(now))
    if not isinstance(runner.param_schedulers, dict) and 'param_groups' in checkpoint['optimizer']:
        changes += _follow_schedules(runner, checkpoint, moved)
    if changes:
        runner.logger.warning(
            f'Resuming with other settings than the checkpoint was saved with: '
            f'{", ".join(changes)}. The run goes on as one that had them from its start.'
        )


def _readable(cut: dict[str, Any]) -> dict[str, Any]:
    """Name what decides over schedules: an equal global batch on other ranks changes nothing."""
    found = {'iterations per epoch': cut.get('epoch_length')}
    if cut.get('batch_size'):
        found['global batch size'] = cut['batch_size'] * cut['world_size']
    return found


def _follow_schedules(runner: Any, checkpoint: dict[str, Any], moved: bool) -> list[str]:
    """Follow the config's optimizer and schedules; return what has changed."""
    fresh, saved = runner.param_schedulers or [], checkpoint.get('param_schedulers', [])
    if any(getattr(scheduler, 'need_val_args', False) for scheduler in fresh):
        return []
    changes: list[str] = []
    for number in range(max(len(fresh), len(saved))):
        old = _settings(saved[number]) if number < len(saved) else {}
        new = _settings(fresh[number].state_dict()) if number < len(fresh) else {}
        name = f'param_scheduler[{number}]'
        changes += _differences(f'{name}.', old, new) if old.keys() == new.keys() else [name]
    replayed = bool(changes) or moved
    if replayed:
        _replay(fresh, checkpoint['meta']['epoch'], checkpoint['meta']['iter'])
        checkpoint['param_schedulers'] = [scheduler.state_dict() for scheduler in fresh]
    scheduled = {name for s in fresh for name in (s.param_name, f'initial_{s.param_name}')}
    for old, new in _parameter_groups(runner, checkpoint):
        settings = {key: value for key, value in new.items() if key not in {'params', *scheduled}}
        changes += _differences('optimizer.', old, settings)
        old.update(settings)
        if replayed:
            old.update({key: new[key] for key in scheduled & new.keys()})
    return list(dict.fromkeys(changes))


def _parameter_groups(runner: Any, checkpoint: dict[str, Any]) -> Iterator[tuple[dict, dict]]:
    """Pair the parameter groups of the checkpoint with those of the config."""
    saved = checkpoint['optimizer']
    yield from zip(saved['param_groups'], runner.optim_wrapper.optimizer.param_groups, strict=False)
    # With several groups, MMEngine keeps the learning rate for the log in one more.
    ours = getattr(runner.optim_wrapper, 'base_param_settings', None)
    if ours and saved.get('base_param_settings'):
        yield saved['base_param_settings'], ours


def _settings(state: dict[str, Any]) -> dict[str, Any]:
    """The settings in the state of a scheduler."""
    return {
        key: value
        for key, value in state.items()
        if key not in _COUNTED and not callable(value) and key != 'verbose'
    }


def _replay(schedulers: list[Any], epochs: int, iterations: int) -> None:
    """Step fresh schedulers to a position, in the order of training."""
    rounds = max(epochs, 1)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)  # the optimizer takes no steps here
        for _ in range(rounds):
            for _ in range(iterations // rounds):
                for scheduler in schedulers:
                    if not scheduler.by_epoch:
                        scheduler.step()
            for scheduler in schedulers if epochs else ():
                if scheduler.by_epoch:
                    scheduler.step()


def _differences(prefix: str, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Say which values have changed; what was not saved is passed over."""
    changed = []
    for key, value in now.items():
        if before.get(key) is not None and before[key] != value:
            # Milestones are a Counter.
            pair = [sorted(x) if isinstance(x, dict) else x for x in (before[key], value)]
            changed.append('{}{} {} -> {}'.format(prefix, key, *pair))
    return changed
