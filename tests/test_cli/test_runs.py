"""Settings, states and records of runs."""

import json
import os
import subprocess
import sys

import pytest

from crd_plugin.cli import launch
from crd_plugin.cli.arguments import UsageError
from crd_plugin.cli.runs import Run, Settings, files_below, load_config, read_record, run_of
from tests.tables import CRD, REPO, STUDENT


@pytest.fixture(scope='module')
def settings():
    """The student alone, 100 epochs."""
    return Settings(STUDENT, [])


@pytest.fixture
def run(settings, tmp_path):
    return Run('student', settings, 3, tmp_path / 'run')


def _train(run, code=''):
    """Let a run be a few lines of Python; the lines of its epochs."""
    run.command = lambda resume: [sys.executable, '-c', code]
    seen = []
    run.train(launch.Trainings(), lambda *args: seen.append(args))
    return seen


def _record(run, finished=False, **changes):
    run.run_dir.mkdir(parents=True, exist_ok=True)
    run._write_record(finished)
    record = json.loads(run.record.read_text())
    run.record.write_text(json.dumps(record | changes))


def _reach(run, epoch):
    (run.run_dir / f'epoch_{epoch}.pth').touch()
    (run.run_dir / 'last_checkpoint').write_text(f'x/epoch_{epoch}.pth')


def _state(run):
    run.examine()
    return run.state, run.checkpoint and run.checkpoint.name


def test_the_signature_depends_on_options_but_not_on_the_seed(settings, tmp_path):
    seeded = tmp_path / 'seeded.py'
    seeded.write_text(f"_base_ = '{STUDENT}'\nrandomness = dict(seed=7)\n")
    assert Settings(seeded, []).signature == settings.signature
    signatures = {
        Settings(STUDENT, options).signature
        for options in ([], ['randomness.x=1'], ['train_cfg.max_epochs=3'])
    }
    assert len(signatures) == 3 and settings.signature in signatures
    assert load_config(STUDENT, ['train_cfg.max_epochs=3']).train_cfg.max_epochs == 3


def test_the_signature_is_that_of_another_process(tmp_path):
    """Of sets the order, and of functions the address, differs between processes."""
    path = tmp_path / 'own.py'
    path.write_text(
        f"_base_ = '{STUDENT}'\ntrain_dataloader = dict(dataset=dict(dataset=dict(\n"
        f"    a=set('abcdefgh'), b=lambda x: x)))\n"
    )
    code = f'from crd_plugin.cli.runs import *; print(Settings(Path("{path}"), []).signature)'
    found = {
        subprocess.run(
            [sys.executable, '-c', code],
            env={**os.environ, 'PYTHONPATH': str(REPO), 'PYTHONHASHSEED': seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in '12'
    }
    assert len(found) == 1


@pytest.mark.parametrize(
    'option, message',
    [
        ('randomness.seed=1', 'each run has its own; give --seeds instead'),
        ('work_dir=x', 'each run has its own; give --work-dir instead'),
        ('default_hooks.checkpoint.out_dir=x', 'would overwrite their checkpoints in .*out_dir=x;'),
    ],
)
def test_what_runs_cannot_share_is_refused(option, message):
    with pytest.raises(UsageError, match=message):
        Settings(STUDENT, [option])


# --- states of a folder ---------------------------------------------------- #


def test_states_from_new_to_done(run):
    assert _state(run) == ('new', None)
    run.run_dir.mkdir()
    (run.run_dir / launch.LOCK).touch()
    assert _state(run) == ('new', None)
    _record(run)
    assert _state(run) == ('new', None)  # failed before the first epoch
    _reach(run, 1)
    _reach(run, 2)
    assert _state(run) == ('resumes', 'epoch_2.pth') and run.reached == 2
    assert run.describe() == 'resumes at epoch 3 of 100'
    # Killed before its record says that it is finished; resuming makes up the last validation.
    _reach(run, 100)
    assert _state(run) == ('resumes', 'epoch_100.pth')
    assert run.describe() == 'resumes with the validation of epoch 100'
    _record(run, finished=True)
    assert _state(run)[0] == run.describe() == 'done' and run.reached == 0
    with launch.hold(run.run_dir):
        assert _state(run) == ('in use', None)


def test_changed_settings_seed_and_teacher(run, tmp_path):
    for change in (dict(signature='of another config'), dict(seed=4)):
        _record(run, finished=True, **change)
        assert _state(run) == ('settings changed', None)
        assert run.describe() == 'settings changed, starts over'

    teachers = [tmp_path / f'seed_{i}.pth' for i in range(2)]
    for name, option in (('one', teachers[1]), ('two', f'[{",".join(map(str, teachers))}]')):
        for teacher in teachers:
            teacher.write_bytes(b'weights')
        settings = Settings(CRD, [f'model.teacher_ckpt={option}'])
        crd = Run('crd', settings, 1, tmp_path / name)
        _record(crd, finished=True)
        assert _state(crd) == ('done', None)
        teachers[1].write_bytes(b'other weights')
        assert _state(crd) == ('settings changed', None)
        _record(crd, finished=True)
        moved = tmp_path / 'moved.pth'
        moved.write_bytes(b'other weights')
        crd.settings = Settings(CRD, [f'model.teacher_ckpt={option}'.replace('seed_1', 'moved')])
        assert _state(crd) == ('done', None)  # the same weights
        _record(crd, finished=True, signature=crd.settings.former_signature)
        assert _state(crd) == ('done', None)
        _record(crd, finished=True, signature=settings.former_signature)
        assert _state(crd) == ('settings changed', None)
        crd.settings = settings
        _record(crd, finished=True)
        # A finished run stays one when its teacher is not at hand.
        teachers[1].unlink()
        assert _state(crd) == ('done', None) and crd.describe() == 'done'
        _record(crd)
        assert _state(crd) == ('new', None)
        assert crd.describe() == f'new, model.teacher_ckpt {teachers[1]} is missing'
        message = 'seed_1.pth does not exist; give the path of a trained'
        with pytest.raises(UsageError, match=message):
            _train(crd)


@pytest.mark.parametrize(
    'key', ['load_from', 'model.student_ckpt', 'model.backbone.init_cfg.checkpoint']
)
def test_other_weights_that_were_replaced(tmp_path, key):
    """Records that were written before these counted stay valid."""
    file = tmp_path / 'a.pth'
    file.write_bytes(b'weights')
    settings = Settings(STUDENT, [f'{key}={file}', 'model.backbone.init_cfg.type=Pretrained'])
    run = Run('student', settings, 1, tmp_path / 'run')
    _record(run, finished=True)
    assert _state(run)[0] == 'done' and run.teacher == ''
    file.write_bytes(b'other weights')
    assert _state(run)[0] == 'settings changed'
    record = json.loads(run.record.read_text())
    del record['weights']
    run.record.write_text(json.dumps(record))
    assert _state(run)[0] == 'done'
    file.unlink()
    _record(run)
    with pytest.raises(UsageError, match=f'^{key} {file} does not exist; .* {key}=FILE'):
        _train(run)


def test_a_folder_that_cannot_be_locked_is_listed(run):
    _record(run, finished=True)
    (run.run_dir / launch.LOCK).mkdir()  # cannot be opened, even by root
    assert _state(run)[0] == 'done'


def test_links_are_followed_but_not_in_circles(tmp_path):
    (tmp_path / 'a' / 'b').mkdir(parents=True)
    (tmp_path / 'a' / 'b' / 'file').touch()
    (tmp_path / 'a' / 'link').symlink_to('b')
    (tmp_path / 'a' / 'b' / 'back').symlink_to(tmp_path / 'a')
    found = [str(path.relative_to(tmp_path)) for path in files_below(tmp_path / 'a')]
    assert found == ['a/b/file', 'a/link/file']
    assert list(files_below(tmp_path / 'gone')) == []


def test_a_foreign_folder_is_left_alone(run):
    run.run_dir.mkdir()
    (run.run_dir / 'thesis.tex').write_text('precious')
    with pytest.raises(UsageError, match='no run of this tool: there is no run.json; move it'):
        _train(run)
    assert [path.name for path in run.run_dir.iterdir()] == ['thesis.tex']


@pytest.mark.parametrize(
    'checkpoint, expected',
    [
        ('kd_x/epoch_240.pth', ('kd_x', 0)),
        ('kd_x/seed_1/epoch_240.pth', ('kd_x', 1)),
        ('demo/kd_seed12/epoch_100.pth', ('kd', 12)),
        ('crd_x/seed_2/best_accuracy_top1_epoch_9.pth', ('crd_x', 2)),
        ('published/net-abcdef01.pth', ('net-abcdef01', 0)),
    ],
)
def test_a_checkpoint_is_named_after_its_run(checkpoint, expected):
    assert run_of(checkpoint) == expected


# --- training -------------------------------------------------------------- #


def test_command_names_all_that_the_training_depends_on(run):
    command = run.command(resume=True)
    assert command[0] == sys.executable
    assert command[1:] == [
        *(str(REPO / 'tools' / 'train.py'), str(STUDENT)),
        *('--work-dir', str(run.run_dir)),
        *('--resume', 'auto'),
        *('--cfg-options', 'randomness.seed=3'),
    ]
    assert '--resume' not in run.command()


def test_what_was_trained_is_recorded(tmp_path):
    run = Run(
        'student', Settings(STUDENT, ['log_level=INFO'], {'resume': 'True'}), 3, tmp_path / 'run'
    )
    assert _train(run, 'print("Epoch(val) [1][4/4]  top1: 9")') == [
        (1, True, 'Epoch(val) [1][4/4]  top1: 9')
    ]
    record = read_record(run.record)
    assert record.pop('seconds') > 0
    assert record == dict(
        config=STUDENT.as_posix(),
        seed=3,
        options=['log_level=INFO', 'resume=True'],
        sweep={'resume': 'True'},
        epochs=100,
        signature=run.settings.signature,
        teacher='',
        weights='',
        finished=True,
    )
    # The time before an interruption is not known, so the sum is not.
    _record(run)
    _reach(run, 5)
    _train(run)
    assert read_record(run.record)['seconds'] is None
    _record(run)
    with pytest.raises(subprocess.CalledProcessError, match='status 7'):
        _train(run, 'raise SystemExit(7)')
    assert read_record(run.record)['finished'] is False


@pytest.mark.parametrize('reached', [True, False])
def test_a_changed_run_is_kept_aside_if_it_has_a_checkpoint(run, reached):
    _record(run, signature='of another config')
    if reached:
        _reach(run, 5)
    _train(run)
    assert run.run_dir.with_name('run_old1').is_dir() == reached
    assert not list(run.run_dir.glob('epoch_*'))


def test_what_happened_since_the_runs_were_listed(run, tmp_path):
    """Another tool trains there, or has finished the run, or the config was edited."""
    _record(run)
    before = run.record.read_text()
    with launch.hold(run.run_dir), pytest.raises(UsageError, match='another process trains there'):
        _train(run)
    assert run.record.read_text() == before
    _record(run, finished=True)
    _train(run, 'raise SystemExit(1)')
    assert run.state == 'done'

    config = tmp_path / 'own.py'
    config.write_text(f"_base_ = '{STUDENT}'\n")
    own = Run('own', Settings(config, []), 0, tmp_path / 'own')
    config.write_text(f"_base_ = '{STUDENT}'\ntrain_cfg = dict(max_epochs=9)")
    # Else its record would tell of other settings than it was trained with.
    with pytest.raises(UsageError, match='own.py .* has changed since'):
        _train(own)
    assert not own.run_dir.exists()
