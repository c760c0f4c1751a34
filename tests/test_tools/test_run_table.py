"""tools/run_table.py: real runs of the digits, then the command line."""

import hashlib
import json
import signal
import time

import pytest
import torch

from crd_plugin.cli import arguments as cli
from crd_plugin.cli import launch
from crd_plugin.cli.runs import RECORD
from tests import tables

TOOL = 'run_table.py'
CRD = tables.CONFIGS / 'crd' / f'crd_{tables.PAIR}.py'
STUDENT = tables.CONFIGS / 'vanilla' / 'vanilla_resnet8w4_b20-100e_digits.py'


@pytest.fixture(scope='module')
def tool():
    return tables.load_tool(TOOL)


# --- real runs ------------------------------------------------------------- #


@pytest.fixture
def call(tool, tmp_path, monkeypatch, capsys):
    """Call a tool in this process and check its exit status; returns stdout and stderr."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))

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


def _words(path):
    """Text with single spaces: MMEngine pads numbers."""
    return ' '.join(path.read_text().split())


def _is_done(run_dir):
    record = run_dir / RECORD
    return record.is_file() and json.loads(record.read_text())['finished']


def _wait_for(condition, process):
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, 'waited in vain'
        time.sleep(0.05)


@pytest.mark.slow
def test_interrupted_resumed_failed_and_changed_runs(call, tmp_path):
    configs = tables.write_configs(tmp_path)
    work = tmp_path / 'table'
    names = [configs / name for name in ('crd.py', 'broken.py', 'student.py')]
    args = [*names, '--work-dir', work, '--jobs', 2]
    crd, student = work / 'crd' / 'seed_0', work / 'student' / 'seed_0'

    # One waits in its second epoch while another fails and the third ends.
    process = tables.start(tmp_path, TOOL, *args)
    try:
        _wait_for(lambda: (tmp_path / 'paused').exists() and _is_done(student), process)
        states = _states(call, *args)
        assert (states['crd, seed 0'], states['student, seed 0']) == ('in use', 'done')
        # A second start neither waits for it nor disturbs it.
        _, error = call(names[0], *args[3:], status=1)
        assert 'another process trains there' in error
    finally:
        process.send_signal(signal.SIGTERM)
        out, error = process.communicate(timeout=60)
    assert process.returncode == 130, out + error
    assert error.rstrip().endswith('interrupted; the same command goes on.')
    # What failed is told with the last lines and the log.
    assert 'failed: broken, seed 0: training ended with code 1' in error
    assert 'batch_size' in error
    assert str(work / 'broken' / 'seed_0' / launch.LOG) in error
    assert 'failed: crd' not in error
    assert f'1/3 (cpu): crd, seed 0: new -> {crd / launch.LOG}' in out
    assert '3/3 done: student, seed 0, top-1 ' in out
    assert '[student, seed 0, 0:' in out and 'accuracy/top1' in out

    assert _states(call, *args, '--seeds', 0, 1) == {
        'crd, seed 0': 'resumes at epoch 2 of 2',
        'broken, seed 0': 'new',
        'student, seed 0': 'done',
        'crd, seed 1': 'new',
        'broken, seed 1': 'new',
        'student, seed 1': 'new',
    }

    # The same command goes on.
    again = [names[0], *args[3:]]
    out, _ = call(*again)
    assert out.startswith('1 runs: 1 resumes\n')
    log = _words(crd / launch.LOG)
    assert log.count('$ ') == 2 and 'resume from' in log
    assert log.count('Epoch(train) [1]') == 5  # the first epoch, once
    assert (crd / 'epoch_2.pth').is_file()
    record = json.loads((crd / RECORD).read_text())
    assert record['finished'] and record['seconds'] is None and record['epochs'] == 2
    before = sorted(crd.iterdir())
    assert call(*again)[0] == '1 runs: 1 done\n' and sorted(crd.iterdir()) == before

    # Other settings: a new run, the old one is kept aside.
    changed = [names[2], *args[3:], '--cfg-options', 'val_dataloader.batch_size=25']
    assert _states(call, *changed) == {'student, seed 0': 'settings changed, starts over'}
    call(*changed)
    old = student.with_name('seed_0_old1')
    assert (old / 'epoch_2.pth').is_file()
    # 100 digits in batches of 25 rather than 50.
    assert 'Epoch(val) [2][2/2]' in _words(old / launch.LOG)
    assert 'Epoch(val) [2][4/4]' in _words(student / launch.LOG)

    # The numbers of the table are those that MMEngine wrote.
    make_table = tables.load_tool('analysis_tools/make_table.py').main
    rows = json.loads(call(work, '--format', 'json', main=make_table)[0])
    assert [row['config'] for row in rows] == ['broken', 'crd', 'student']
    entries = [
        json.loads(line)
        for log in sorted(crd.glob('*/vis_data/scalars.json'))
        for line in log.read_text().splitlines()
    ]
    top1 = [entry['accuracy/top1'] for entry in entries if 'accuracy/top1' in entry]
    assert len(top1) == tables.NUM_EPOCHS
    assert rows[1]['last'] == dict(mean=top1[-1], std=None)
    assert rows[1]['best']['mean'] == max(top1)
    assert rows[0]['notes'] == ['seed 0 is at epoch 0 of 2']
    digest = hashlib.sha256((tmp_path / 'teacher.pth').read_bytes()).hexdigest()
    assert record['teacher'] == digest and rows[1]['teacher'] == digest[:8]


# --- places to train at ---------------------------------------------------- #


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
    configs = str(tables.CONFIGS / 'vanilla' / '*digits.py')
    words = [configs, *'--seeds 4 2 4 --work-dir'.split(), str(tmp_path)]
    runs = tool.plan(tool.parse_args(words))
    names = ['resnet14', 'resnet8w4']
    assert [(run.name.split('_')[1], run.seed) for run in runs] == [
        (name, seed) for seed in (4, 2) for name in names
    ]
    assert runs[0].run_dir == tmp_path / 'vanilla_resnet14_b20-100e_digits' / 'seed_4'
    assert runs[0].options == ['randomness.seed=4']


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
    assert not list(tmp_path.glob('*/seed_0'))
