"""Tests of the tool: exit status, table on stdout, one line a problem."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIG = """
default_scope = 'mmpretrain'
custom_imports = dict(imports=['crd_plugin'])
train_dataloader = dict(
    batch_size=3,
    dataset=dict(
        type='crd_plugin.Digits',
        pipeline=[dict(type='Resize', scale=16), dict(type='PackInputs')]))
model = dict(
    type='ImageClassifier',
    backbone=dict(type='crd_plugin.CIFARResNet', depth=8, base_channels=4),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=16))
"""


def run(folder, *argv):
    """The tool in a process of its own, inside an empty folder."""
    place = folder / 'cwd'
    place.mkdir(exist_ok=True)
    path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
    done = subprocess.run(
        [sys.executable, ROOT / 'tools' / 'check_config.py', *map(str, argv)],
        cwd=place,
        env=dict(os.environ, PYTHONPATH=path, PYTHONDONTWRITEBYTECODE='1'),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert not list(place.iterdir())
    return done


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'tiny.py'
    path.write_text(CONFIG)
    return path


def test_fine(tmp_path, config):
    done = run(tmp_path, config)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ''
    assert done.stdout.startswith('Config   tiny.py\n')
    for text in ('3 x 3 x 16 x 16 uint8', 'Losses', 'Parameters', '\nfine ('):
        assert text in done.stdout


def test_problems(tmp_path, config):
    done = run(
        tmp_path,
        config,
        '--batch-size',
        2,
        '--cfg-options',
        'model.head.num_classes=7',
        'load_from=nowhere.pth',
    )
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 2 and all(line.startswith('error: ') for line in lines)
    assert 'load_from=nowhere.pth does not exist' in lines[0]
    assert 'model.head.num_classes is 7' in lines[1]
    assert '2 x 3 x 16 x 16' in done.stdout
    assert '2 problems' in done.stdout


def test_arguments_in_one_process(tmp_path, config, capsys):
    import importlib.util

    from crd_plugin.cli import arguments as cli

    spec = importlib.util.spec_from_file_location(
        'check_config', ROOT / 'tools' / 'check_config.py'
    )
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert cli.run(tool.main, [str(tmp_path / 'tini.py')]) == 1
    assert 'does not exist; the nearest are' in capsys.readouterr().err
    assert cli.run(tool.main, [str(config), '--batch-size', '0']) == 1
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and 'batch_size is 0' in error
    config.write_text("_base_ = ['gone.py']\n")
    with pytest.raises(SystemExit) as status:
        cli.run(tool.main, [str(config)])
    assert status.value.code == 1
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and 'gone.py' in error
