"""tools/run_table.py: real runs of the digits, then each state and error."""

import json
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from crd_plugin.cli import arguments as cli
from crd_plugin.cli import launch
from tests import tables

TOOL = 'run_table.py'
CRD = tables.CONFIGS / 'crd' / f'crd_{tables.PAIR}.py'
STUDENT = tables.CONFIGS / 'vanilla' / 'vanilla_resnet8w4_b20-100e_digits.py'


@pytest.fixture(scope='module')
def tool():
    return tables.load_tool(TOOL)


# --- real runs ------------------------------------------------------------- #


def _states(folder, *args):
    lines, _ = tables.call(folder, TOOL, '--dry-run', *args)
    return {title: state.strip() for title, state in (line.split('  ', 1) for line in lines[:-1])}


def _words(path):
    """Text with single spaces: MMEngine pads numbers."""
    return ' '.join(path.read_text().split())


def _is_done(run_dir):
    record = run_dir / launch.RECORD
    return record.is_file() and json.loads(record.read_text())['finished']


def _wait_for(condition, process):
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, 'waited in vain'
        time.sleep(0.05)


@pytest.mark.slow
def test_interrupted_resumed_failed_and_changed_runs(tmp_path):
    configs = tables.write_configs(tmp_path)
    work = tmp_path / 'table'
    names = [configs / name for name in ('crd.py', 'broken.py', 'student.py')]
    args = [*names, '--work-dir', work, '--jobs', 2]
    crd, student = work / 'crd' / 'seed_0', work / 'student' / 'seed_0'

    # One waits in its second epoch while another fails and the third ends.
    process = tables.start(tmp_path, TOOL, *args)
    try:
        _wait_for(lambda: (tmp_path / 'paused').exists() and _is_done(student), process)
        assert launch.in_use(crd) and not launch.in_use(student)
        assert _states(tmp_path, *args)['crd, seed 0'] == 'in use'
        # A second start neither waits for it nor disturbs it.
        _, error = tables.call(tmp_path, TOOL, names[0], *args[3:], status=1)
        assert 'another process trains there' in error
    finally:
        process.send_signal(signal.SIGTERM)
        out, error = process.communicate(timeout=60)
    assert process.returncode == 130, out + error
    assert error.rstrip().endswith('interrupted; the same command goes on.')
    assert not launch.in_use(crd)
    # What failed is told with the last lines and the log.
    assert 'failed: broken, seed 0: training ended with code 1' in error
    assert 'batch_size' in error
    assert str(work / 'broken' / 'seed_0' / launch.LOG) in error
    assert 'failed: crd' not in error
    assert f'1/3 (cpu): crd, seed 0: new -> {crd / launch.LOG}' in out
    assert '3/3 done: student, seed 0, top-1 ' in out
    assert '[student, seed 0, 0:' in out and 'accuracy/top1' in out

    assert _states(tmp_path, *args, '--seeds', 0, 1) == {
        'crd, seed 0': 'resumes at epoch 2 of 2',
        'broken, seed 0': 'new',
        'student, seed 0': 'done',
        'crd, seed 1': 'new',
        'broken, seed 1': 'new',
        'student, seed 1': 'new',
    }

    # The same command goes on, here with one seed more.
    again = [names[0], '--seeds', 0, 1, *args[3:]]
    lines, _ = tables.call(tmp_path, TOOL, *again)
    assert lines[0] == '2 runs: 1 resumes, 1 new'
    log = _words(crd / launch.LOG)
    assert log.count('$ ') == 2 and 'resume from' in log
    assert log.count('Epoch(train) [1]') == 5  # the first epoch, once
    assert (crd / 'epoch_2.pth').is_file()
    record = json.loads((crd / launch.RECORD).read_text())
    assert record['finished'] and record['seconds'] is None
    assert len(record['teacher']) == 64 and record['epochs'] == 2
    assert (crd.with_name('seed_1') / 'epoch_2.pth').is_file()
    before = sorted(crd.iterdir())
    lines, _ = tables.call(tmp_path, TOOL, *again)
    assert lines == ['2 runs: 2 done'] and sorted(crd.iterdir()) == before

    # Other settings: a new run, the old one is kept aside; a failing one
    # beside it makes the status 1.
    changed = [
        names[2],
        names[1],
        '--work-dir',
        work,
        '--jobs',
        2,
        '--cfg-options',
        'val_dataloader.batch_size=25',
    ]
    assert _states(tmp_path, *changed)['student, seed 0'] == 'settings changed, starts anew'
    lines, error = tables.call(tmp_path, TOOL, *changed, status=1)
    assert 'error: 1 run(s) failed' in error
    old = student.with_name('seed_0_old1')
    assert (old / 'epoch_2.pth').is_file()
    # 100 digits in batches of 25 rather than 50.
    assert 'Epoch(val) [2][2/2]' in _words(old / launch.LOG)
    assert 'Epoch(val) [2][4/4]' in _words(student / launch.LOG)


# --- states of a folder ---------------------------------------------------- #


@pytest.fixture
def job(tool, tmp_path):
    """A run of the student alone, 100 epochs."""
    return tool.Job(tool.Cell(STUDENT, []), 0, tmp_path)


def _record(job, finished=False, **changes):
    job.run.run_dir.mkdir(parents=True, exist_ok=True)
    job.run.record.write_text(
        json.dumps(
            dict(signature=job.cell.signature, teacher=job.teacher, finished=finished) | changes
        )
    )


def _reach(job, *epochs):
    for epoch in epochs:
        (job.run.run_dir / f'epoch_{epoch}.pth').touch()
    (job.run.run_dir / 'last_checkpoint').write_text(f'x/epoch_{epochs[-1]}.pth')


def _validate(job, *epochs):
    log = job.run.run_dir / '20260101_000000' / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, 'a') as file:
        for epoch in epochs:
            entry = {'accuracy/top1': 50.0, 'accuracy/top5': 90.0, 'step': epoch}
            file.write(json.dumps(entry) + '\n')


def _state(job):
    job.examine()
    return job.state, job.checkpoint and job.checkpoint.name


def test_new_resumed_and_done(job):
    assert _state(job) == ('new', None)
    _record(job)
    assert _state(job) == ('new', None)  # failed before the first epoch
    _reach(job, 1, 2)
    _validate(job, 1, 2)
    assert _state(job) == ('resumes', 'epoch_2.pth')
    assert job.reached == 2
    assert job.describe() == 'resumes at epoch 3 of 100'
    _record(job, finished=True)
    assert _state(job) == ('done', None)


def test_killed_between_a_checkpoint_and_its_validation(job):
    """Resumed from that checkpoint the epoch would never be validated."""
    _record(job)
    _reach(job, 1)
    assert _state(job) == ('resumes', 'epoch_1.pth')  # rather than anew
    _reach(job, 6, 7)
    _validate(job, *range(1, 7))
    assert _state(job) == ('resumes', 'epoch_6.pth')
    _validate(job, 7)
    assert _state(job) == ('resumes', 'epoch_7.pth')
    _reach(job, 99, 100)
    assert _state(job) == ('resumes', 'epoch_99.pth')
    _validate(job, 100)
    assert _state(job) == ('done', None)


def test_without_the_last_validation_a_run_is_not_done(job):
    _record(job)
    _reach(job, 100)
    assert _state(job) == ('new', None)


def test_epochs_that_are_validated(tool):

    def validated(*options):
        cell = tool.Cell(STUDENT, ['train_cfg.max_epochs=7', *options])
        return [epoch for epoch in range(1, 8) if cell.validates(epoch)]

    assert validated() == [1, 2, 3, 4, 5, 6, 7]
    assert validated('train_cfg.val_interval=3') == [3, 6, 7]
    assert validated('train_cfg.val_begin=5') == [5, 6, 7]
    assert validated('train_cfg.stage_epochs.init=3') == [4, 5, 6, 7]
    assert validated('val_cfg=None') == []


def test_changed_settings_and_teacher(job, tool, tmp_path):
    _record(job, finished=True, signature='of another config')
    assert _state(job) == ('settings changed', None)
    assert job.describe() == 'settings changed, starts anew'

    teacher = tables.write_teacher(tmp_path / 'teacher.pth')
    cell = tool.Cell(CRD, [f'model.teacher_ckpt={teacher}'])
    crd = tool.Job(cell, 1, tmp_path)
    _record(crd, finished=True)
    assert _state(crd) == ('done', None)
    torch.save(dict(state_dict={}), teacher)
    assert _state(crd) == ('settings changed', None)
    # A finished run stays one when its teacher is not at hand.
    teacher.unlink()
    assert _state(crd) == ('done', None)
    _record(crd)
    assert crd.describe() == 'done'
    assert _state(crd) == ('new', None)
    assert crd.describe() == f'new, teacher {teacher} is missing'


def test_settings_do_not_depend_on_the_seed_but_on_options(tool):
    path = CRD
    cells = [tool.Cell(path, options) for options in ([], ['randomness.x=1'])]
    assert cells[0].signature == tool.Cell(path, []).signature
    assert cells[0].signature != cells[1].signature


def test_a_foreign_folder_is_left_alone(job):
    job.run.run_dir.mkdir(parents=True)
    (job.run.run_dir / 'thesis.tex').write_text('precious')
    with pytest.raises(cli.UsageError, match='no run of run_table.py'):
        job.examine()
    with pytest.raises(cli.UsageError, match='no run of run_table.py'):
        job.train(print)
    assert (job.run.run_dir / 'thesis.tex').read_text() == 'precious'


def test_a_run_that_another_tool_finished_meanwhile_is_left_alone(job):
    assert job.state == 'new'
    _record(job, finished=True)
    job.run.command = None  # whoever starts it fails
    job.train(print)
    assert job.state == 'done'


def test_a_config_that_was_edited_meanwhile_is_not_trained(tool, tmp_path):
    """Else its record would tell of other settings than it was run with."""
    config = tmp_path / 'own.py'
    config.write_text(f"_base_ = '{STUDENT}'\n")
    job = tool.Job(tool.Cell(config, []), 0, tmp_path)
    config.write_text(f"_base_ = '{STUDENT}'\ntrain_cfg = dict(max_epochs=9)")
    with pytest.raises(cli.UsageError, match='own.py .* has changed since'):
        job.train(print)
    assert not job.run.run_dir.exists()


# --- the queue ------------------------------------------------------------- #


def test_one_run_a_gpu_and_failures_do_not_stop_others(tool, tmp_path, capsys):
    """Two runs wait for each other, so they must be side by side."""
    cell = tool.Cell(STUDENT, [])
    jobs = [tool.Job(cell, seed, tmp_path) for seed in range(4)]
    code = """
import os, sys, time
from pathlib import Path
seed, folder = int(sys.argv[1]), Path(sys.argv[2])
(folder / f'started_{seed}').touch()
end = time.time() + 20
while seed < 2 and not (folder / f'started_{1 - seed}').exists():
    assert time.time() < end
    time.sleep(0.01)
print('Epoch(train) [100][5/5]', 'GPU', os.environ['CUDA_VISIBLE_DEVICES'])
print('Epoch(val) [100][5/5]', 'GPU', os.environ['CUDA_VISIBLE_DEVICES'])
lock = folder / ('gpu_' + os.environ['CUDA_VISIBLE_DEVICES'])
lock.touch(exist_ok=False)
time.sleep(0.2)
lock.unlink()
sys.exit(seed == 1)
"""
    for job in jobs:
        job.run.command = lambda resume, seed=job.run.seed: [
            sys.executable,
            '-c',
            code,
            str(seed),
            str(tmp_path),
        ]
    missing = tool.Job(tool.Cell(CRD, ['model.teacher_ckpt=gone.pth']), 0, tmp_path)
    table = tool.Table(
        [*jobs, missing], [(f'gpu {gpu}', dict(CUDA_VISIBLE_DEVICES=str(gpu))) for gpu in (3, 5)]
    )
    table.train()
    assert {job.title for job, _ in table.failures} == {jobs[1].title, missing.title}
    assert [job.state for job in jobs] == ['new'] * 4
    for job in jobs:
        job.examine()
    assert [job.state for job in jobs] == ['done', 'new', 'done', 'done']
    out = capsys.readouterr().out
    assert '1/5 (gpu 3)' in out and '2/5 (gpu 5)' in out
    assert 'GPU 3' in out and 'GPU 5' in out
    tool.report_failures(table.failures)
    error = capsys.readouterr().err
    assert 'the teacher gone.pth does not exist; train it first' in error
    assert 'ended with code 1' in error and 'error: 2 run(s) failed' in error
    assert table.progress.done == pytest.approx(4)


def test_an_unexpected_error_is_a_failure_too(job, tool, capsys):
    job.train = lambda *args, **kwargs: 1 / 0
    table = tool.Table([job], [('cpu', {})])
    table.train()
    tool.report_failures(table.failures)
    assert 'ZeroDivisionError: division by zero' in capsys.readouterr().err


@pytest.fixture
def gpus(monkeypatch):
    """A machine with four GPUs."""
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)


def _names(devices):
    return [name for name, _ in devices]


def test_gpus(tool, gpus, monkeypatch):
    assert tool.find_devices(['0,2'], None) == [
        ('gpu 0', dict(CUDA_VISIBLE_DEVICES='0')),
        ('gpu 2', dict(CUDA_VISIBLE_DEVICES='2')),
    ]
    assert _names(tool.find_devices(['1', '3'], None)) == ['gpu 1', 'gpu 3']
    assert len(tool.find_devices(None, None)) == 4
    for words, message in (
        (['4'], '--gpus 4: this machine has 4 GPU'),
        (['1', '1'], 'names a GPU twice'),
    ):
        with pytest.raises(cli.UsageError, match=message):
            tool.find_devices(words, None)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '2,3')
    assert _names(tool.find_devices(None, None)) == ['gpu 2', 'gpu 3']
    assert tool.os.environ['CUDA_VISIBLE_DEVICES'] == '2,3'


def test_cpu(tool, gpus, monkeypatch):
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    cpu = ('cpu', dict(CUDA_VISIBLE_DEVICES=''))
    assert tool.find_devices(None, 2) == [cpu, cpu]
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    assert tool.find_devices(None, None) == [cpu]
    with pytest.raises(cli.UsageError, match='has 0 GPU.* --jobs 1'):
        tool.find_devices(['0'], None)
    # The cores are shared rather than used by each run.
    monkeypatch.delenv('OMP_NUM_THREADS')
    monkeypatch.setattr(tool.os, 'cpu_count', lambda: 8)
    assert tool.find_devices(None, 4)[0][1]['OMP_NUM_THREADS'] == '2'


# --- the command line ------------------------------------------------------ #


def test_configs_are_files_folders_and_globs(tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('b.py', 'a.py', 'readme.md', '_base_/c.py', 'sub/d.py'):
        path = tmp_path / 'configs' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def found(*words):
        return [path.as_posix() for path in tool.find_configs(words)]

    every = ['configs/a.py', 'configs/b.py', 'configs/sub/d.py']
    assert found('configs') == every
    assert found('configs/*.py') == every[:2]
    assert found('configs/**/*') == every
    assert found('configs/b.py', 'configs', './configs/a.py') == [every[1], every[0], every[2]]
    for word in ('configs/z*.py', 'configs/_base_'):
        with pytest.raises(cli.UsageError, match='names no config'):
            found(word)
    with pytest.raises(cli.UsageError, match='c.py does not exist'):
        found('configs/c.py')
    (tmp_path / 'a.py').touch()
    with pytest.raises(cli.UsageError, match='a.py have one name'):
        found('configs', 'a.py')


def test_seeds_come_one_after_the_other(tool, tmp_path):
    args = tool.parse_args(
        [
            str(tables.CONFIGS / 'vanilla' / '*digits.py'),
            '--seeds',
            '4',
            '2',
            '4',
            '--work-dir',
            str(tmp_path),
        ]
    )
    jobs = tool.plan(args)
    assert [(job.run.name.split('_')[1], job.run.seed) for job in jobs] == [
        ('resnet14', 4),
        ('resnet8w4', 4),
        ('resnet14', 2),
        ('resnet8w4', 2),
    ]
    assert jobs[0].run.run_dir == (tmp_path / 'vanilla_resnet14_b20-100e_digits' / 'seed_4')
    assert jobs[0].run.options == ['randomness.seed=4']


@pytest.mark.parametrize(
    'words, message',
    [
        (['--seeds', '-1'], 'a seed is at least 0'),
        (['--jobs', '0'], 'at least 1 training'),
        (['--jobs', '1', '--gpus', '0'], 'not allowed with'),
        (['--cfg-options', 'a.b'], 'expected KEY=VALUE'),
        (['--cfg-options', 'randomness.seed=1'], 'give --seeds instead'),
    ],
)
def test_wrong_arguments_are_told(tool, capsys, words, message):
    with pytest.raises(SystemExit) as caught:
        tool.parse_args(['config.py', *words])
    assert caught.value.code == 2 and message in capsys.readouterr().err


def test_a_config_without_epochs_is_told(tool, tmp_path, capsys):
    config = tmp_path / 'endless.py'
    config.write_text('model = dict()\n')
    assert cli.run(tool.main, [str(config)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f'error: {config} has no train_cfg.max_epochs')
    assert error.count('\n') == 1


def test_configs_of_many_gpus_are_warned_of(tool, tmp_path, capsys):
    leaf = "_base_ = '" + str(CRD) + "'\ntrain_dataloader = dict(batch_size=5)\n"
    for name in ('a', 'b'):
        (tmp_path / f'{name}.py').write_text(leaf)
    argv = [str(tmp_path / '?.py'), '--dry-run', '--work-dir', str(tmp_path)]
    tool.main(argv)
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and 'a.py and 1 more' in error
    assert 'for batches of 20, one GPU has 5' in error
    for option in ('train_dataloader.batch_size=20', 'auto_scale_lr.enable=True'):
        assert option in error
        tool.main([*argv, '--cfg-options', option])
        assert not capsys.readouterr().err
    assert not list(Path(tmp_path).glob('*/seed_0'))
