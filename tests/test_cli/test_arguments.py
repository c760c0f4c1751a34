"""tools/train.py, test.py and check_config.py, the shell scripts and messages."""

import argparse
import importlib.util
import json
import os
import pickle
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mmpretrain
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer
from mmpretrain.visualization import UniversalVisualizer

from crd_plugin.cli import arguments as cli
from crd_plugin.compat import load_checkpoint_file
from tests import small_runs

ROOT = Path(__file__).resolve().parent.parent.parent
TOOLS = ROOT / 'tools'


def tool(name):
    """One of the scripts, as a module."""
    spec = importlib.util.spec_from_file_location(f'tools_{name}', TOOLS / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(name, *argv):
    """Run a script in this process, which forgets earlier runs, and return its exit status."""
    for kept in (MMLogger, MessageHub, Visualizer, UniversalVisualizer, DefaultScope):
        kept._instance_dict.clear()
    try:
        return cli.run(tool(name).main, [str(arg) for arg in argv])
    except SystemExit as error:
        return error.code


def run(command):
    """Run a script as on the command line and return its exit status."""
    return call(*shlex.split(command))


def environment():
    """Variables for a script in another process, without a GPU."""
    return dict(os.environ, CUDA_VISIBLE_DEVICES='', PYTHONPATH=str(ROOT), PYTHON=sys.executable)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Start in a folder with a plain config and a distilling one."""
    student = dict(small_runs.net(6), _delete_=True)
    for name, changes in (('distill', {}), ('plain', dict(model=student, custom_hooks=[]))):
        hook = dict(type='VisualizationHook')
        cfg = small_runs.config('here', default_hooks__visualization=hook, **changes)
        for key in ('experiment_name', 'work_dir'):
            cfg.pop(key)
        (tmp_path / f'{name}.py').write_text(f'{cfg.pretty_text}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    return tmp_path


@pytest.fixture
def trained(folder):
    """A checkpoint ``trained.pth`` of the distilling config in the folder."""
    assert run('train distill.py --work-dir run --no-check') == 0
    os.rename('run/epoch_1.pth', 'trained.pth')


def log_of(work_dir):
    """Text of all logs of a work dir."""
    return '\n'.join(path.read_text() for path in sorted(Path(work_dir).rglob('*.log')))


# --- flags ----------------------------------------------------------------- #


@pytest.mark.parametrize('name', ['train', 'test'])
def test_every_flag_of_mmpretrain_is_taken(name, capsys):
    theirs = Path(mmpretrain.__file__).parent / '.mim' / 'tools'
    flags = re.findall(r"'(--[\w-]+)'", (theirs / f'{name}.py').read_text())
    assert len(flags) > 8
    parser_args = ['c.py'] + (['c.pth'] if name == 'test' else [])
    module = tool(name)
    with pytest.raises(SystemExit):
        module.parse_args(['--help'])
    text = capsys.readouterr().out
    for flag in set(flags) - {'--local_rank', '--local-rank'}:
        assert f'{flag} ' in text or f'{flag}]' in text, flag
    for flag in ('--local_rank', '--local-rank'):
        assert module.parse_args([*parser_args, flag, '3']).local_rank == 3


@pytest.mark.parametrize('name', ['train', 'test', 'check_config'])
def test_help_imports_nothing_slow(name):
    code = f"""if True:
        import runpy, sys
        sys.argv = ['{name}.py', '--help']
        try:
            runpy.run_path({str(TOOLS / f'{name}.py')!r}, run_name='__main__')
        finally:
            slow = {{'torch', 'mmcv', 'mmpretrain', 'mmrazor', 'matplotlib'}}
            assert not slow & set(sys.modules), slow & set(sys.modules)
        """
    command = [sys.executable, '-c', code]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert '--cfg-options' in done.stdout


def merged(flags=''):
    """Config of plain.py after the arguments of train.py."""
    train = tool('train')
    args = train.parse_args(['plain.py', *flags.split()])
    cfg = cli.load_config(args.config)
    train.merge_args(cfg, args)
    return cfg


def test_defaults(folder):
    cfg = merged()
    assert cfg.work_dir == './work_dirs/plain'
    assert cfg.launcher == 'none' and not cfg.get('resume')
    loader = cfg.train_dataloader
    assert loader.collate_fn.type == 'default_collate'
    assert loader.pin_memory is torch.cuda.is_available()
    # Without workers, none can be kept.
    assert loader.persistent_workers is False


def test_which_work_dir_counts(folder):
    with open('plain.py', 'a') as file:
        file.write("work_dir = 'mine'\n")
    assert merged().work_dir == 'mine'
    assert merged('--work-dir other').work_dir == 'other'
    assert merged('--work-dir other --cfg-options work_dir=last').work_dir == 'last'


def test_flags_of_the_data_loader(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    options = '--cfg-options train_dataloader.num_workers=2'
    cfg = merged(options)
    assert cfg.train_dataloader.pin_memory and cfg.train_dataloader.persistent_workers
    assert cfg.val_dataloader.persistent_workers is False
    loader = merged(f'--no-pin-memory --no-persistent-workers {options}').train_dataloader
    assert not loader.pin_memory and not loader.persistent_workers


def test_no_validate_and_amp_and_auto_scale(folder):
    with open('plain.py', 'a') as file:
        file.write('auto_scale_lr = dict(base_batch_size=8)\n')
    cfg = merged('--no-validate --amp --auto-scale-lr')
    assert cfg.val_cfg is cfg.val_dataloader is cfg.val_evaluator is None
    wrapper = cfg.optim_wrapper
    assert (wrapper.type, wrapper.loss_scale) == ('AmpOptimWrapper', 'dynamic')
    assert cfg.auto_scale_lr.enable is True


@pytest.mark.parametrize(
    'text, value',
    [
        ('3', 3),
        ('None', None),
        ('[a,b]', ['a', 'b']),
        ('a,1', ['a', 1]),
        ('[(1,2), x]', [(1, 2), 'x']),
        ('/a b/c.pth', '/a b/c.pth'),
        ('"/a b/c,d.pth"', '/a b/c,d.pth'),
        ("'3'", '3'),
        ("""['/a b/c,d.pth',"e",3]""", ['/a b/c,d.pth', 'e', 3]),
        ('"a b","c"', ['a b', 'c']),
        ('("a b",)', ('a b',)),
        (r'"C:\new"', r'C:\new'),
        ("o'brien/a.pth", "o'brien/a.pth"),
        ('a(b,c', 'a(b,c'),
    ],
)
def test_texts_in_quotes_and_single_ones_stand_as_they_are(text, value):
    parser = argparse.ArgumentParser()
    cli.add_options(parser)
    found = parser.parse_args(['--cfg-options', f'load_from={text}']).cfg_options
    assert found == dict(load_from=value) and type(found['load_from']) is type(value)


@pytest.mark.parametrize(
    'text',
    ['a/b.pth', '/a b/c.pth', 'a,t=0.1/b.pth', "o'b,c", '"q",', '7', '[x]', 'a(,b', r'C:\t,u'],
)
def test_a_composed_setting_is_read_as_its_text(text):
    key, _, value = cli.setting('load_from', text).partition('=')
    assert key == 'load_from' and cli.read_value(value) == text
    assert (value == text) == (text in ('a/b.pth', '/a b/c.pth', 'a(,b'))


# --- mistakes -------------------------------------------------------------- #


def error_of(capsys, status):
    """The one line that a mistake gives."""
    assert status == 1
    lines = capsys.readouterr().err.strip().splitlines()
    (line,) = (line for line in lines if line.startswith('error: '))
    return line


FILES = dict(
    child="_base_ = 'no_such_base.py'",
    apex="_base_ = 'plain.py'\noptim_wrapper = dict(type='ApexOptimWrapper')",
    untested="_base_ = 'plain.py'\ntest_evaluator = None",
    unseen="_base_ = 'plain.py'\ndefault_hooks = dict(_delete_=True)",
)


@pytest.mark.parametrize(
    'command, message',
    [
        ('train plan.py', 'error: config plan.py does not exist; the nearest are plain.py'),
        ('train zzzzzzzzzzz.py', 'error: config zzzzzzzzzzz.py does not exist.'),
        ('train child.py', 'no_such_base.py'),
        ('test plain.py nope.pth', 'checkpoint nope.pth does not exist'),
        ('test plain.py cut.pth --work-dir w', 'cut.pth (9 bytes) is truncated'),
        ('train plain.py --resume cut.pth --work-dir w', 'cut.pth (9 bytes) is truncated'),
        ('train plain.py --resume no.pth', '--resume no.pth does not exist'),
        ('train plain.py --work-dir w --resume', 'w has no whole checkpoint (epoch_7.pth is damag'),
        ('train plain.py --auto-scale-lr', 'auto_scale_lr = dict(base_batch_size='),
        ('train apex.py --amp', 'the config has ApexOptimWrapper'),
        ('test untested.py nope.pth', 'has no `test_evaluator`'),
        ('test unseen.py nope.pth --show-dir x', 'VisualizationHook'),
        ('check_config plan.py', 'does not exist; the nearest are plain.py'),
        ('check_config plain.py --batch-size 0', 'batch_size is 0'),
    ],
)
def test_mistake_in_files_or_flags(folder, capsys, command, message):
    for name, text in FILES.items():
        Path(f'{name}.py').write_text(f'{text}\n')
    if 'un' in command:
        Path('nope.pth').touch()
    Path('w').mkdir()
    Path('w/last_checkpoint').write_text('gone/epoch_8.pth')
    Path('w/epoch_7.pth').write_text('torn')
    Path('cut.pth').write_bytes(b'PK\x03\x04 torn')
    assert message in error_of(capsys, run(command))
    assert not Path('work_dirs').exists()


def test_check_config_of_a_sound_config(folder, capsys):
    before = set(folder.iterdir())
    assert run('check_config plain.py --batch-size 3') == 0
    assert set(folder.iterdir()) == before
    out, error = capsys.readouterr()
    assert not error and out.startswith('Config   plain.py\n')
    for text in ('3 x 3 x 8 x 8 uint8', 'Losses', 'Parameters', '\nfine ('):
        assert text in out
    assert run('check_config plain.py --cfg-options model.head.in_channels=7') == 1
    assert '1 problem (' in capsys.readouterr().out


@pytest.mark.parametrize(
    'launcher, variable, program',
    [
        ('pytorch', 'WORLD_SIZE', 'torchrun or tools/dist_train.sh'),
        ('slurm', 'SLURM_PROCID', 'srun or tools/slurm_train.sh'),
    ],
)
def test_launcher_without_its_variables(folder, capsys, monkeypatch, launcher, variable, program):
    monkeypatch.delenv(variable, raising=False)
    error = error_of(capsys, run(f'train plain.py --launcher {launcher}'))
    assert f'--launcher {launcher} needs' in error and variable in error
    assert error.endswith(f'start the script with {program}.')
    assert error == error_of(capsys, run(f'train plain.py --cfg-options launcher={launcher}'))


def test_an_unknown_launcher(folder):
    with pytest.raises(cli.UsageError, match="is 'rocket', expected none, pytorch, slurm, mpi."):
        merged('--cfg-options launcher=rocket')


def test_slurm_without_the_address_of_its_first_node(folder, monkeypatch):
    """MMEngine would take what the shell says of a missing scontrol for it, and wait for ever."""
    for name in ('PROCID', 'NTASKS', 'NODELIST'):
        monkeypatch.setenv(f'SLURM_{name}', '1')
    monkeypatch.delenv('MASTER_ADDR', raising=False)
    monkeypatch.setenv('PATH', str(folder))
    with pytest.raises(cli.UsageError, match='no scontrol here, .* set the .* MASTER_ADDR to'):
        merged('--launcher slurm')
    monkeypatch.setenv('MASTER_ADDR', 'node-1')
    assert merged('--launcher slurm').launcher == 'slurm'
    monkeypatch.delenv('MASTER_ADDR')
    (folder / 'scontrol').touch(0o755)
    assert merged('--launcher slurm').launcher == 'slurm'


@pytest.mark.parametrize(
    'flags, message',
    [
        ('--out-item metrics', 'add --out FILE'),
        ('--out a.txt', 'must end in one of .pkl'),
        ('--out a.json', 'must end in one of .pkl'),
        ('--interval 0', 'at least 1'),
        ('--tta --show-dir x', 'leave out --tta'),
        ('--launcher rocket', 'invalid choice'),
    ],
)
def test_refused_arguments(capsys, flags, message):
    with pytest.raises(SystemExit) as caught:
        tool('test').parse_args(['c.py', 'c.pth', *flags.split()])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    'option, message',
    [
        ('model.architecture.head.in_channels=65', 'but the feature has 6 channels'),
        ('model.distiller.student_recorders.feat.source=necks', 'the nearest are neck, neck.gap.'),
        ('optim_wrapper.optimizer.momentum=x', 'not supported between instances of'),
    ],
)
def test_training_says_what_the_dry_run_says(folder, capsys, option, message):
    assert run(f'train distill.py --work-dir w --cfg-options {option}') == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error: ')]
    assert run(f'check_config distill.py --cfg-options {option}') == 1
    assert lines == capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]
    assert not list(Path('w').glob('*/'))


def test_error_before_there_is_a_log_file_has_a_traceback(folder, capsys):
    assert run('train plain.py --work-dir w --cfg-options train_cfg=None') == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('error: train_dataloader, train_cfg, and optim_wrapper should be')
    assert 'Traceback (most recent call last):' in Path('w/error.log').read_text()


@pytest.mark.parametrize('error', [ZeroDivisionError(), OSError('no file is to blame')])
def test_a_real_bug_keeps_its_traceback(error):
    def main(argv):
        raise error

    with pytest.raises(type(error)):
        cli.run(main)


def test_a_file_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / 'file').touch()
    assert cli.run(lambda argv: (tmp_path / 'file' / 'x').mkdir()) == 1
    assert capsys.readouterr().err == f'error: {tmp_path}/file/x: Not a directory\n'


# --- running --------------------------------------------------------------- #


def test_resume_goes_on(folder):
    assert run('train plain.py --work-dir w --resume --no-validate') == 0
    assert 'no checkpoint in w yet' in log_of('w') and 'accuracy/top1' not in log_of('w')
    # A work dir may be moved between two runs.
    os.rename('w', 'moved')
    options = '--cfg-options train_cfg.max_epochs=2'
    assert run(f'train plain.py --work-dir moved --resume auto {options}') == 0
    assert 'go on from moved/epoch_1.pth' in log_of('moved')
    meta = load_checkpoint_file('moved/epoch_2.pth')['meta']
    assert meta['epoch'] == 2 and meta['iter'] == 8


def scores(command, out):
    """Scores ``(N, C)``, as a test run writes them with --out."""
    assert run(f'test {command} --out {out}') == 0
    with open(out, 'rb') as file:
        return torch.stack([item['pred_score'] for item in pickle.load(file)])


def test_tta_averages_the_image_and_its_mirror(trained):
    tta = scores('distill.py trained.pth --work-dir a --tta', 'tta.pkl')
    plain = scores('distill.py trained.pth --work-dir b', 'plain.pkl')
    # The mirrored view, through a config of its own.
    Path('mirror.py').write_text(
        "_base_ = 'distill.py'\n"
        'test_dataloader = dict(dataset=dict(pipeline=[\n'
        "    dict(type='RandomFlip', prob=1.), dict(type='PackInputs')]))\n"
    )
    mirror = scores('mirror.py trained.pth --work-dir c', 'mirror.pkl')
    assert torch.allclose(tta, (plain + mirror) / 2, atol=1e-6)
    assert not torch.equal(plain, mirror)


def test_amp_and_show_dir(trained):
    command = 'test distill.py trained.pth --work-dir a --amp --show-dir shown --interval 25'
    assert run(command) == 0
    assert len(list(Path('shown').glob('*.png'))) == 2
    cfg = Config.fromfile(next(Path('a').rglob('config.py')))
    assert cfg.test_cfg.fp16 is True


# --- shell scripts --------------------------------------------------------- #


def shell(name, *argv, cwd, **variables):
    """Run a shell script of tools/."""
    return subprocess.run(
        [TOOLS / name, *map(str, argv)],
        env=dict(environment(), **variables),
        cwd=cwd,
        capture_output=True,
        text=True,
    )


def test_two_processes_train_and_test_on_cpu(folder):
    work_dir = folder / 'two processes'
    flags = ('--work-dir', work_dir)
    result = shell('dist_train.sh', 'distill.py', 2, *flags, cwd=folder, PORT='29731')
    assert result.returncode == 0, result.stderr
    assert 'Epoch(train) [1][2/2]' in log_of(work_dir)
    file = work_dir / 'epoch_1.pth'
    flags = '--work-dir tested --out-item metrics --out'.split()
    words = ('distill.py', file, 2, *flags, 'two.json')
    result = shell('dist_test.sh', *words, cwd=folder, PORT='29732')
    assert result.returncode == 0, result.stderr
    assert call('test', 'distill.py', file, *flags, 'one.json') == 0
    one, two = (json.loads(Path(f'{name}.json').read_text()) for name in ('one', 'two'))
    assert one == two and one['accuracy/top5'] > 0


@pytest.mark.parametrize(
    'name, argv',
    [
        ('slurm_train.sh', ['part', 'my job', 'a config.py', 'work dir']),
        ('slurm_test.sh', ['part', 'my job', 'a config.py', 'c.pth']),
    ],
)
def test_slurm_scripts_keep_arguments_whole(tmp_path, name, argv):
    for file in ('a config.py', 'c.pth'):
        (tmp_path / file).touch()
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\nfor word; do echo "$word"; done\n')
    srun.chmod(0o755)
    variables = dict(GPUS='2', SRUN_ARGS='--time=1 --quiet')
    variables['PATH'] = f'{tmp_path}{os.pathsep}{os.environ["PATH"]}'
    words = shell(name, *argv, '--amp', cwd=tmp_path, **variables).stdout.splitlines()
    wanted = '--partition=part --gres=gpu:2 --ntasks=2 --ntasks-per-node=2 --time=1 --quiet'
    script = str(TOOLS / name.split('_')[1].replace('.sh', '.py'))
    wanted = [*wanted.split(), '--job-name=my job', 'a config.py', '--launcher=slurm', script]
    assert not set(wanted) - set(words) and words[-1] == '--amp'


DIST, SLURM = 'dist_train.sh config.py', 'slurm_train.sh part job'


@pytest.mark.parametrize(
    'command, variables, message',
    [
        ('dist_train.sh', {}, 'CONFIG GPUS [flags of train.py]'),
        ('dist_test.sh config.py', {}, 'CONFIG CHECKPOINT GPUS [flags of test.py]'),
        ('slurm_train.sh a b', {}, 'PARTITION JOB_NAME CONFIG WORK_DIR [flags of train.py]'),
        ('slurm_test.sh a b c', {}, 'PARTITION JOB_NAME CONFIG CHECKPOINT [flags of test.py]'),
        ('dist_train.sh gone.py 2', {}, 'CONFIG gone.py does not exist'),
        ('dist_test.sh config.py gone.pth 2', {}, 'CHECKPOINT gone.pth does not exist'),
        (f'{DIST} two', {}, "GPUS is 'two', expected a number of at least 1"),
        (f'{DIST} 0', {}, "GPUS is '0', expected"),
        (f'{DIST} 2 --amp', dict(PORT='high'), "PORT is 'high', expected"),
        (f'{DIST} 2', dict(PORT='65536'), 'PORT is 65536, expected a number below 65536'),
        (f'{DIST} 2', dict(PORT='TAKEN'), 'is in use, perhaps by another run; choose one: PORT='),
        (f'{DIST} 3', dict(PYTHON='TWO_GPUS'), 'GPUS is 3, but this machine has 2; start at most'),
        (f'{SLURM} gone.py work', {}, 'CONFIG gone.py does not exist'),
        (f'{SLURM} config.py work', dict(GPUS='-1'), "GPUS is '-1', expected"),
        (f'{SLURM} config.py work', dict(CPUS_PER_TASK='x'), "CPUS_PER_TASK is 'x', expected"),
    ],
)
def test_shell_scripts_check_their_arguments(tmp_path, command, variables, message):
    """Before anything is started."""
    (tmp_path / 'config.py').touch()
    python = tmp_path / 'python'  # stands in for a Python on a machine with two GPUs
    python.write_text('#!/bin/sh\necho 2\n')
    python.chmod(0o755)
    name, *argv = command.split()
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        real = dict(TAKEN=str(taken.getsockname()[1]), TWO_GPUS=str(python))
        variables = {key: real.get(value, value) for key, value in variables.items()}
        variables = dict(PYTHON=str(python), PORT=variables.pop('PORT', '29735')) | variables
        result = shell(name, *argv, cwd=tmp_path, **variables)
    assert result.returncode == 2 and result.stdout == ''
    (line,) = result.stderr.splitlines()
    assert line.startswith(('error: ', 'usage: ')) and message in line


# --- the runner ------------------------------------------------------------ #


@pytest.fixture
def built(monkeypatch):
    """Configs that runners are built from."""
    configs = []
    runner = SimpleNamespace(register_hook=lambda hook: None)
    build = lambda cfg: configs.append(cfg) or runner  # noqa: E731
    monkeypatch.setattr('mmengine.runner.Runner.from_cfg', build)
    return configs


@pytest.mark.parametrize('deterministic, found', [(False, None), (True, ':4096:8')])
def test_cublas_is_deterministic_on_demand(built, monkeypatch, deterministic, found):
    name = 'CUBLAS_WORKSPACE_CONFIG'
    monkeypatch.setenv(name, '')  # What is set is taken back.
    monkeypatch.delenv(name)
    cfg = Config(dict(randomness=dict(deterministic=deterministic), work_dir='run'))
    cli.build_runner(cfg)
    assert os.environ.get(name) == found
    monkeypatch.setenv(name, ':16:8')
    cli.build_runner(cfg)
    assert os.environ[name] == ':16:8'


def test_runs_of_one_second_have_names_of_their_own(built):
    for more in ({}, {}, dict(experiment_name='mine')):
        cli.build_runner(Config(dict(work_dir='work_dirs/kd', **more)))
    *named, given = (cfg.experiment_name for cfg in built)
    assert len(set(named)) == 2 and all(name.startswith('kd-') for name in named)
    assert given == 'mine'


@pytest.mark.parametrize(
    'given, types',
    [
        ('[TensorboardVisBackend]', ['LocalVisBackend', 'TensorboardVisBackend']),
        ('TensorboardVisBackend', ['LocalVisBackend', 'TensorboardVisBackend']),
        ('WandbVisBackend,LocalVisBackend', ['WandbVisBackend', 'LocalVisBackend']),
        ('[]', ['LocalVisBackend']),
        ('None', ['LocalVisBackend']),
    ],
)
def test_numbers_are_always_written_to_a_file(built, given, types):
    backends = [dict(type='Other')]
    cfg = Config(dict(work_dir='run', visualizer=dict(type='Visualizer', vis_backends=backends)))
    parser = argparse.ArgumentParser()
    cli.add_common_arguments(parser)
    args = parser.parse_args(['--cfg-options', f'visualizer.vis_backends={given}'])
    cfg.merge_from_dict(args.cfg_options)
    cli.build_runner(cfg)
    assert [backend['type'] for backend in cfg.visualizer.vis_backends] == types


@pytest.mark.parametrize('wrong', ['[dict(type=TensorboardVisBackend)]', '[{kind:a}]'])
def test_backends_that_the_command_line_cannot_give(folder, capsys, wrong):
    assert call('train', 'plain.py', '--cfg-options', f'visualizer.vis_backends={wrong}') == 1
    assert 'error: visualizer.vis_backends has ' in capsys.readouterr().err
