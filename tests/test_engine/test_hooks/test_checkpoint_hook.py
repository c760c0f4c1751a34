"""CheckpointHook: what is left when a run dies while it saves; otherwise MMEngine's hook."""

import itertools
import os
import re
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import mmengine.hooks.checkpoint_hook as upstream
import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging import MessageHub
from mmengine.runner import save_checkpoint
from torch import nn

from crd_plugin.engine.hooks import checkpoint_hook
from crd_plugin.registry import HOOKS
from tests import small_runs

ACCURACIES = (50.0, 60.0, 55.0)  # of the three epochs
NUMBER = itertools.count()
SETTINGS = dict(interval=1, max_keep_ckpts=1, save_best='accuracy', rule='greater')


class FakeRunner:
    """What the hook needs of a runner; checkpoints are written by MMEngine."""

    def __init__(self, work_dir, model=None) -> None:
        self.work_dir = str(work_dir)
        self.model = model or nn.Identity()
        self.cfg = Config()
        self.epoch, self.iter, self.max_epochs = 0, 0, len(ACCURACIES)
        self.message_hub = MessageHub(f'checkpoint-{next(NUMBER)}')
        self.logger = SimpleNamespace(info=lambda text: None)

    def save_checkpoint(self, out_dir, filename, *args, meta, backend_args=None, **kwargs) -> None:
        """Save the epoch, a large tensor and the hook's own notes."""
        state = dict(
            epoch=meta['epoch'],
            weights=torch.full((1000,), float(meta['epoch'])),
            state_dict=self.model.state_dict(),
            notes=dict(self.message_hub.runtime_info),
        )
        save_checkpoint(state, f'{out_dir}/{filename}', backend_args=backend_args)


def build(**changes):
    return HOOKS.build({'type': 'crd_plugin.CheckpointHook', **SETTINGS, **changes})


def train(runner, hook):
    """Call the hook as three epochs with validation do."""
    hook.before_train(runner)
    while runner.epoch < runner.max_epochs:
        hook.after_train_epoch(runner)
        runner.epoch += 1
        accuracy = ACCURACIES[runner.epoch - 1]
        hook.after_val_epoch(runner, dict(accuracy=accuracy, loss=abs(accuracy - 52)))
    hook.after_train(runner)


def files(folder):
    return sorted(path.name for path in Path(folder).iterdir() if path.is_file())


def pointed(folder):
    """The latest checkpoint, which must be whole and at most one behind the newest file."""
    newest = 0
    for path in folder.glob('*.pth'):
        saved = small_runs.load(path)
        assert (saved['weights'] == saved['epoch']).all()
        newest = max(newest, saved['epoch'])
    pointer = folder / 'last_checkpoint'
    if not pointer.exists():
        assert newest <= 1
        return None
    latest = small_runs.load(Path(pointer.read_text()))
    assert latest['epoch'] >= newest - 1
    best = latest['notes'].get('best_ckpt')
    assert best is None or Path(best).exists()
    return latest


@contextmanager
def dying(moment, die):
    """Call ``die`` with the function of the so-manyth write, rename or removal in its place."""
    count = itertools.count(1)

    def or_die(function):
        def wrapper(*args, **kwargs):
            if next(count) == moment:
                die(function)
            return function(*args, **kwargs)

        return wrapper

    with (
        mock.patch.object(checkpoint_hook.os, 'fsync', or_die(os.fsync)),
        mock.patch.object(checkpoint_hook.os, 'replace', or_die(os.replace)),
        mock.patch.object(LocalBackend, 'remove', or_die(LocalBackend.remove)),
    ):
        yield count


def test_killed_at_any_moment(tmp_path):
    """Until a run survives, each run is killed one event later than the one before."""
    seen = set()
    for moment in itertools.count(1):
        folder = tmp_path / str(moment)
        folder.mkdir()
        child = os.fork()
        if not child:
            with dying(moment, lambda _: os.kill(os.getpid(), signal.SIGKILL)):
                train(FakeRunner(folder), build())
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        latest = pointed(folder)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        seen.add(latest and latest['epoch'])
        # The run that goes on removes what is left over, of the pointer too.
        (folder / 'last_checkpoint.part').touch()
        runner = FakeRunner(folder)
        if latest:
            runner.epoch = latest['epoch']
            runner.message_hub.update_info_dict(latest['notes'])
        train(runner, build())
        assert pointed(folder)['epoch'] == 3
        assert not list(folder.glob('*.part'))
    assert seen == {None, 1, 2, 3} and moment > 25
    assert files(folder) == ['best_accuracy_epoch_2.pth', 'epoch_3.pth', 'last_checkpoint']


@pytest.mark.parametrize('moment', range(9, 18))
def test_full_disk_is_told_with_the_file_and_leaves_no_part(tmp_path, moment):
    failed = []

    def fail(function):
        failed.append(function.__name__)
        raise OSError(28, 'No space left on device')  # does not say which file

    with dying(moment, fail), pytest.raises(OSError, match='No space left') as caught:
        train(FakeRunner(tmp_path), build())
    named = re.search("device: '.*(epoch_[0-9].pth|last_checkpoint)'$", str(caught.value))
    assert bool(named) == (failed[0] != 'remove')
    assert pointed(tmp_path)['epoch'] in (1, 2)
    assert not list(tmp_path.glob('*.part'))


@pytest.mark.parametrize(
    'changes',
    [
        dict(SETTINGS, published_keys=['epoch', 'weights']),
        dict(SETTINGS, max_keep_ckpts=2, save_best=['accuracy', 'loss'], rule=['greater', 'less']),
        dict(interval=2, by_epoch=True, save_last=False, filename_tmpl='model_{}.ckpt'),
        dict(interval=-1, save_last=False, save_best='accuracy', rule='greater'),
    ],
    ids=['published', 'two best', 'interval', 'best alone'],
)
def test_files_are_those_of_mmengine(tmp_path, changes):
    found = []
    for name in ('mmengine.CheckpointHook', 'crd_plugin.CheckpointHook'):
        folder = tmp_path / name
        folder.mkdir()
        train(FakeRunner(folder), HOOKS.build(dict(type=name, **changes)))
        contents = {}
        for path in folder.glob('*.*'):
            saved = small_runs.load(path)
            # A published file has a hash in its name, which depends on the process.
            name = re.sub('-[0-9a-f]{8}', '-hash', path.name)
            contents[name] = (saved['epoch'], list(saved))
        pointer = folder / 'last_checkpoint'
        found.append((contents, pointer.exists() and Path(pointer.read_text()).name))
    assert found[0] == found[1] and found[1][0]


def test_other_storage_is_used_as_it_is(tmp_path):
    written = []

    @register_backend('tests.other', force=True)
    class Other(LocalBackend):
        def put(self, obj, filepath):
            written.append(Path(filepath).name)
            super().put(obj, filepath)

    train(FakeRunner(tmp_path), build(save_best=None, backend_args=dict(backend='tests.other')))
    assert written == ['epoch_1.pth', 'epoch_2.pth', 'epoch_3.pth']
    assert files(tmp_path) == ['epoch_3.pth', 'last_checkpoint']


def test_validation_alone(tmp_path):
    """It saves nothing before training; afterwards a best checkpoint may be written again."""
    runner, hook = FakeRunner(tmp_path), build()
    hook.after_val_epoch(runner, dict(accuracy=1.0))
    assert files(tmp_path) == []
    train(runner, hook)
    for accuracy in (70.0, 80.0):
        hook.after_val_epoch(runner, dict(accuracy=accuracy))
    assert files(tmp_path) == ['best_accuracy_epoch_3.pth', 'epoch_3.pth', 'last_checkpoint']


class Split(nn.Module):
    """Has half of its rows, and all of them while they are gathered."""

    gathered = 0

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer('rows', torch.zeros(2))

    @contextmanager
    def gather_rows_for_checkpoint(self):
        self.gathered += 1
        self.rows = torch.arange(4.0)
        yield
        self.rows = self.rows[:2]


@pytest.mark.parametrize('rank', [0, 1])
def test_split_state_is_gathered_on_every_rank_and_saved_whole(tmp_path, monkeypatch, rank):
    model = nn.Sequential(nn.Linear(1, 1), Split())
    runner = FakeRunner(tmp_path, model)
    if rank:
        for module in (upstream, checkpoint_hook):
            monkeypatch.setattr(module, 'is_main_process', lambda: False)
        monkeypatch.setattr(runner, 'save_checkpoint', lambda *args, **kwargs: None)
    train(runner, build())
    # After each epoch and after each validation, since it may have been the best.
    assert model[1].gathered == 6 and len(model[1].rows) == 2
    saved = ['best_accuracy_epoch_2.pth', 'epoch_3.pth']
    assert files(tmp_path) == ([] if rank else [*saved, 'last_checkpoint'])
    for name in [] if rank else saved:
        assert small_runs.load(tmp_path / name)['state_dict']['1.rows'].tolist() == [0, 1, 2, 3]


def test_the_config_is_formatted_once(tmp_path, monkeypatch):
    """It took longer than an epoch of a small run, twice per epoch."""
    formatted = []
    original = Config.pretty_text.fget
    monkeypatch.setattr(
        Config, 'pretty_text', property(lambda cfg: formatted.append(1) or original(cfg))
    )
    runner = small_runs.build(tmp_path, train_cfg__max_epochs=3)
    before = len(formatted)
    runner.train()
    assert len(formatted) - before <= 2  # one by MMEngine for the log
    saved = small_runs.load(tmp_path / 'epoch_3.pth')['meta']['cfg']
    assert Config.fromstring(saved, '.py').to_dict() == runner.cfg.to_dict()


# --- resuming -------------------------------------------------------------- #

BEST = dict(
    default_hooks__checkpoint__save_best='accuracy/top1',
    default_hooks__checkpoint__max_keep_ckpts=1,
)


ITERATIONS = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=8, val_interval=4)


def die_at(epoch):
    """A hook that ends the run after a number of epochs, before their validation has ended."""

    def die(runner, *args, **kwargs):
        if runner.epoch == epoch:
            raise ArithmeticError

    return small_runs.Watch('after_val_iter', die)


def validations(work_dir):
    lines = [line for line in small_runs.scalars(work_dir) if 'accuracy/top1' in line]
    return {line['step']: line['accuracy/top1'] for line in lines}


def checkpoints(work_dir):
    """Weights and notes of each checkpoint, without the folder in paths."""
    found = {}
    for path in Path(work_dir).glob('*.pth'):
        saved = small_runs.load(path)
        notes = saved['message_hub']['runtime_info']
        for key in ('cfg', 'experiment_name', 'epoch', 'iter'):  # of the last step
            notes.pop(key)
        for key in notes.keys() & {'best_ckpt', 'last_ckpt'}:
            notes[key] = Path(notes[key]).name
        history = saved['message_hub']['log_scalars'].get('val/accuracy/top1')
        notes['validations'] = history and history.data[0].tolist()
        found[path.name] = (saved['state_dict'], notes)
    return found


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """Work dir of three epochs without interruption."""
    folder = tmp_path_factory.mktemp('whole')
    small_runs.build(folder, train_cfg__max_epochs=3, **BEST).train()
    return folder


@pytest.mark.parametrize('after', [1, 2, 3])
def test_a_lost_validation_is_made_up(tmp_path, whole, after):
    """It was left out, and with it the best checkpoint where it was the best."""
    changes = dict(BEST, train_cfg__max_epochs=3)
    with pytest.raises(ArithmeticError):
        small_runs.build(tmp_path, die_at(after), **changes).train()
    assert after not in validations(tmp_path)
    small_runs.build(tmp_path, resume=True, **changes).train()
    assert validations(tmp_path) == validations(whole)
    found, expected = checkpoints(tmp_path), checkpoints(whole)
    assert found.keys() == expected.keys()
    for name, (weights, notes) in expected.items():
        assert found[name][1] == notes
        torch.testing.assert_close(found[name][0], weights, rtol=0, atol=0)


def test_a_lost_validation_is_made_up_in_a_loop_of_iterations(tmp_path):
    changes = dict(
        train_cfg=ITERATIONS,
        train_dataloader__sampler=dict(_delete_=True, type='InfiniteSampler', shuffle=True),
        default_hooks__checkpoint=dict(by_epoch=False, interval=2),
        default_hooks__logger__log_metric_by_epoch=False,
        log_processor__by_epoch=False,
    )

    def die(runner):
        if runner.iter == 4:
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        small_runs.build(tmp_path, small_runs.Watch('before_val', die), **changes).train()
    assert validations(tmp_path) == {}
    small_runs.build(tmp_path, resume=True, **changes).train()
    assert list(validations(tmp_path)) == [4, 8]
    # Where none was due, none is made up.
    load_from = str(tmp_path / 'iter_6.pth')
    small_runs.build(tmp_path, resume=True, load_from=load_from, **changes).train()
    assert list(validations(tmp_path)) == [4, 8]


def test_integers_in_place_of_weights_are_refused(tmp_path, whole):
    saved = small_runs.load(whole / 'epoch_3.pth')
    name = 'architecture.backbone.conv.weight'
    saved['state_dict'][name] = saved['state_dict'][name].long()
    torch.save(saved, tmp_path / 'damaged.pth')
    load_from = str(tmp_path / 'damaged.pth')
    with pytest.raises(ValueError, match=f'{name} is torch.int64 in the checkpoint, expected'):
        small_runs.build(tmp_path, resume=True, load_from=load_from).train()


def test_a_finished_run_says_so_and_is_left_as_it_is(tmp_path, whole, caplog):
    folder = tmp_path / 'copy'
    shutil.copytree(whole, folder)
    before = {path.name: path.read_bytes() for path in folder.glob('*.pth')}
    runner = small_runs.build(folder, resume=True, train_cfg__max_epochs=3, **BEST)
    runner.logger.addHandler(caplog.handler)
    runner.train()
    assert 'The run is finished: epoch 3 of 3 is done; raise train_cfg.max_epochs' in caplog.text
    assert {path.name: path.read_bytes() for path in folder.glob('*.pth')} == before


@pytest.mark.parametrize(
    'changes, fix',
    [
        (dict(default_hooks__checkpoint__by_epoch=False), 'by_epoch=True, and interval in epochs'),
        (dict(train_cfg=ITERATIONS), 'by_epoch=False, and interval in iterations'),
    ],
)
def test_a_hook_that_does_not_count_what_the_loop_counts(tmp_path, changes, fix):
    """Its checkpoints would be in the middle of an epoch, or at the end of training alone."""
    with pytest.raises(ValueError, match=f'default_hooks.checkpoint.by_epoch is .* set {fix}'):
        small_runs.train(tmp_path, **changes)
    assert not list(tmp_path.glob('*.pth'))


def test_a_copied_work_dir_leaves_the_best_checkpoint_of_the_other_alone(tmp_path, whole):
    """It was removed as soon as the copy had a better one."""
    folder, (best,) = tmp_path / 'copy', whole.glob('best_*.pth')
    shutil.copytree(whole, folder)
    changes = dict(BEST, default_hooks__checkpoint__rule='less', train_cfg__max_epochs=12)
    small_runs.build(folder, resume=True, load_from=str(folder / 'epoch_3.pth'), **changes).train()
    assert best.exists() and not (folder / best.name).exists()
    assert len(list(folder.glob('best_*.pth'))) == 1


def test_an_unknown_argument_is_refused_before_training():
    checkpoint_hook.CheckpointHook(interval=1, save_optimizer=False, published_keys=['meta'])
    with pytest.raises(TypeError, match="unexpected keyword argument 'intervals'"):
        checkpoint_hook.CheckpointHook(intervals=1)
