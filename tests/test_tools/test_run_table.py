"""tools/run_table.py: real runs of the digits, then the command line."""

import hashlib
import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from crd_plugin.cli import arguments as cli
from crd_plugin.cli import launch
from crd_plugin.cli.runs import RECORD
from tests import tables

TOOL = 'run_table.py'


@pytest.fixture(scope='module')
def tool():
    return tables.load_tool(TOOL)


# --- real runs ------------------------------------------------------------- #

# Two epochs of five steps, 100 digits to validate on.
LEAF = """
_base_ = '{}'
train_cfg = dict(max_epochs=2)
val_dataloader = dict(batch_size=50, dataset=dict(indices=100))
default_hooks = dict(logger=dict(interval=1))
"""


@pytest.fixture
def configs(tmp_path):
    """A student alone, and CRD that pauses in its second epoch, with a random teacher."""
    teacher = tables.save_networks(tmp_path, dict(teacher='teacher'))['teacher']
    crd, student = tmp_path / 'crd.py', tmp_path / 'student.py'
    student.write_text(LEAF.format(tables.STUDENT))
    crd.write_text(
        LEAF.format(tables.CRD) + f"model = dict(teacher_ckpt='{teacher}')\n"
        "custom_imports = dict(imports=['crd_plugin', 'tests.tables'])\n"
        f"default_hooks.update(pause=dict(type='PauseOnce', marker='{tmp_path / 'paused'}'))\n"
    )
    return crd, student


@pytest.fixture
def call(tool, monkeypatch, capsys):
    """Call a tool in this process and check its exit status; returns stdout and stderr."""
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    monkeypatch.setenv('OMP_NUM_THREADS', '1')

    def call(*args, main=tool.main, status=0):
        try:
            found = cli.run(main, list(map(str, args)))
        except SystemExit as error:
            found = error.code
        out, error = capsys.readouterr()
        assert found == status, out + error
        return out, error

    return call


def _states(call, *args):
    *lines, _ = call('--dry-run', *args)[0].splitlines()
    return {title: state.strip() for title, state in (line.split('  ', 1) for line in lines)}


@pytest.mark.slow
def test_probes_of_checkpoints(call, tmp_path):
    """A student alone is probed, then the same command only prints the table."""
    (checkpoint,) = tables.save_networks(tmp_path, {'own/seed_3': 'student'}).values()
    leaf = tables.CONFIGS / 'transfer' / 'probe_resnet8w4_b20-100e_digits-5-9.py'
    options = ['--cfg-options', 'train_cfg.max_epochs=2', 'val_dataloader.dataset.indices=100']
    args = [leaf, '--probe', checkpoint, '--work-dir', tmp_path / 'probes', '--jobs', 1, *options]
    first, second = call(*args)[0], call(*args)[0]
    assert first.startswith('1 runs: 1 new') and second.startswith('1 runs: 1 done')
    assert _is_done(tmp_path / 'probes' / leaf.stem / 'own' / 'seed_3')
    (row,) = (line for line in second.splitlines() if line.startswith(f'| {leaf.stem} of own '))
    assert row in first
    assert f'- {leaf.stem} of own: trained with {" ".join(options[1:])}' in second


def _is_done(run_dir):
    record = run_dir / RECORD
    return record.is_file() and json.loads(record.read_text())['finished']


@pytest.mark.slow
def test_interrupted_and_resumed_runs(call, configs, tmp_path):
    work, options = tmp_path / 'table', ['--work-dir', tmp_path / 'table', '--jobs', 2]
    args = [*configs, *options]
    crd, student = work / 'crd' / 'seed_0', work / 'student' / 'seed_0'

    # One waits in its second epoch while the other ends.
    process = subprocess.Popen(
        [sys.executable, str(tables.REPO / 'tools' / TOOL), *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(tables.REPO)},  # of the hook that pauses
    )
    try:
        tables.wait_for(lambda: (tmp_path / 'paused').exists() and _is_done(student), process)
        states = _states(call, *args)
        assert states == {'crd, seed 0': 'in use', 'student, seed 0': 'done'}
        # A second start neither waits for it nor disturbs it.
        _, error = call(configs[0], *options, status=1)
        assert 'another process trains there' in error
    finally:
        process.send_signal(signal.SIGTERM)
        out, error = process.communicate(timeout=60)
    assert process.returncode == 130, out + error
    assert error.rstrip().endswith('interrupted; the same command goes on.')
    assert 'failed: ' not in error
    assert f'1/2 (cpu): crd, seed 0: new -> {crd / launch.LOG}' in out
    assert '2/2 done: student, seed 0\n' in out
    assert '[student, seed 0, 0:' in out and 'accuracy/top1' in out

    assert _states(call, *args, '--seeds', 0, 1) == {
        'crd, seed 0': 'resumes at epoch 2 of 2',
        'student, seed 0': 'done',
        'crd, seed 1': 'new',
        'student, seed 1': 'new',
    }
    changed = [*args, '--cfg-options', 'val_dataloader.batch_size=25']
    assert _states(call, *changed)['student, seed 0'] == 'settings changed, starts over'

    # The same command goes on.
    out, _ = call(*args)
    assert out.startswith('2 runs: 1 resumes, 1 done\n')
    log = ' '.join((crd / launch.LOG).read_text().split())  # MMEngine pads numbers
    assert log.count('$ ') == 2 and '--resume auto: go on from' in log
    assert log.count('Epoch(train) [1]') == 5  # the first epoch, once
    assert (crd / 'epoch_2.pth').is_file()
    record = json.loads((crd / RECORD).read_text())
    assert record['finished'] and record['seconds'] is None and record['epochs'] == 2
    before = sorted(crd.iterdir())
    assert call(*args)[0] == '2 runs: 2 done\n' and sorted(crd.iterdir()) == before

    # The numbers of the table are those that MMEngine wrote.
    make_table = tables.load_tool('analysis_tools/make_table.py').main
    row, _ = json.loads(call(work, '--format', 'json', main=make_table)[0])
    top1 = [entry['accuracy/top1'] for entry in tables.read_logs(crd)]
    assert len(top1) == 2 and row['config'] == 'crd'
    assert row['last'] == dict(mean=top1[-1], std=None)
    assert row['best']['mean'] == max(top1)
    digest = hashlib.sha256((tmp_path / 'teacher' / 'epoch_2.pth').read_bytes()).hexdigest()
    assert record['teacher'] == digest and row['teacher'] == digest[:8]


# --- places to train at ---------------------------------------------------- #


def test_places_to_train_at(tool, monkeypatch):
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    monkeypatch.setenv('OMP_NUM_THREADS', '1')

    def places(*args, gpus=4):
        monkeypatch.setattr(torch.cuda, 'device_count', lambda: gpus)
        return [name.removeprefix('gpu ') for name, _ in tool.find_devices(*args)]

    assert places(['0,2'], None) == ['0', '2'] and places(['1', '3'], None) == ['1', '3']
    assert places(None, None) == ['0', '1', '2', '3']
    assert places(None, 2) == ['cpu', 'cpu'] and places(None, None, gpus=0) == ['cpu']
    for words, gpus, message in (
        (['4'], 4, '--gpus 4: the GPUs here are 0,1,2,3'),
        (['1', '1'], 4, '--gpus 1,1: .* at most once'),
        (['0'], 0, 'are none; .* --jobs 1'),
    ):
        with pytest.raises(cli.UsageError, match=message):
            places(words, None, gpus=gpus)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '2,3')
    assert places(None, None, gpus=2) == ['2', '3'] and places(['3'], None, gpus=2) == ['3']
    assert tool.find_devices(['3'], None)[0][1] == dict(CUDA_VISIBLE_DEVICES='3')
    # The cores are shared rather than used by each run.
    monkeypatch.delenv('OMP_NUM_THREADS')
    monkeypatch.setattr('os.cpu_count', lambda: 8)
    shared = dict(CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS='2')
    assert tool.find_devices(None, 4) == [('cpu', shared)] * 4
    assert tool.find_devices(None, 1) == [('cpu', dict(CUDA_VISIBLE_DEVICES=''))]


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
    with pytest.raises(cli.UsageError, match='names no config'):
        found('configs/_base_')
    (tmp_path / 'a.py').touch()
    with pytest.raises(cli.UsageError, match='a.py have one name'):
        found('configs', 'a.py')


def test_all_configs_and_values_come_before_the_next_seed(tool, tmp_path):
    configs = str(tables.CONFIGS / 'vanilla' / '*digits.py')
    words = [configs, *'--seeds 4 2 4 --sweep train_dataloader.batch_size=10,20'.split()]
    runs = tool.plan(tool.parse_args([*words, '--work-dir', str(tmp_path)]))
    assert [str(run.run_dir.relative_to(tmp_path)) for run in runs] == [
        f'vanilla_{net}_b20-100e_digits,batch_size={value}/seed_{seed}'
        for seed in (4, 2)
        for net in ('resnet14', 'resnet8w4')
        for value in (10, 20)
    ]
    assert runs[1].settings.config.train_dataloader.batch_size == 20


@pytest.mark.parametrize(
    'words, message',
    [
        (['--seeds', '-1'], 'a seed is at least 0'),
        (['--jobs', '0'], 'at least 1 training'),
        (['--cfg-options', 'a.b'], 'expected KEY=VALUE'),
        (['--cfg-options', 'randomness.seed=1'], 'error: randomness.seed=1: each run has its own'),
        (['--sweep', 'work_dir=a,b'], 'error: work_dir=a: each run has its own; give --work-dir'),
        (['--sweep', 'a'], 'error: --sweep a: expected KEY=V1'),
        (['--sweep', 'a=1', '--probe', 'x.pth'], 'not of a probe; leave one out'),
        (['--probe', 'x.pth', '--seeds', '1'], 'leave it out with --probe'),
        (['endles.py'], 'error: config endles.py does not exist; the nearest are endless.py'),
        (['endless.py'], 'error: endless.py has no train_cfg.max_epochs'),
    ],
)
def test_wrong_arguments_are_told(call, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'endless.py').write_text('model = dict()\n')
    words = [tables.STUDENT, *words] if words[0].startswith('--') else words
    # The command line is judged by argparse, which ends with 2, the rest by the tool.
    by_parser = not message.startswith('error: ')
    error = call(*words, status=2 if by_parser else 1)[1]
    assert message in error and (by_parser or error.count('\n') == 1)


def test_configs_of_many_gpus_are_warned_of(tool, tmp_path, capsys):
    leaf = "_base_ = '" + str(tables.CRD) + "'\ntrain_dataloader = dict(batch_size=5)\n"
    for name in ('a', 'b'):
        (tmp_path / f'{name}.py').write_text(leaf)
    argv = [str(tmp_path / '?.py'), '--dry-run', '--work-dir', str(tmp_path)]
    tool.main(argv)
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and 'for batches of 20, one GPU has 5' in error
    for option in ('train_dataloader.batch_size=20', 'auto_scale_lr.enable=True'):
        assert option in error
        tool.main([*argv, '--cfg-options', option])
        assert not capsys.readouterr().err
    assert not list(tmp_path.glob('*/seed_0'))
