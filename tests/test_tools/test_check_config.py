"""Tests of the tool: exit status, tables on stdout, one line per problem."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from crd_plugin.cli import arguments as cli

TOOL = Path(__file__).parents[2] / 'tools' / 'check_config.py'
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


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'tiny.py'
    path.write_text(CONFIG)
    return path


def test_in_a_subprocess(tmp_path, config):
    """It says that all is fine and leaves no file behind."""
    place = tmp_path / 'cwd'
    place.mkdir()
    path = os.pathsep.join([str(TOOL.parents[1]), os.environ.get('PYTHONPATH', '')])
    done = subprocess.run(
        [sys.executable, TOOL, config],
        cwd=place,
        env=dict(os.environ, PYTHONPATH=path, PYTHONDONTWRITEBYTECODE='1'),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert 'error' not in done.stderr and not list(place.iterdir())
    assert done.stdout.startswith('Config   tiny.py\n')
    for text in ('3 x 3 x 16 x 16 uint8', 'Losses', 'Parameters', '\nfine ('):
        assert text in done.stdout


def call(capsys, *argv):
    """Exit status, output and errors of a call in this process."""
    spec = importlib.util.spec_from_file_location('check_config', TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    try:
        status = cli.run(tool.main, [str(arg) for arg in argv])
    except SystemExit as error:
        status = error.code
    return status, *capsys.readouterr()


def test_problem(config, capsys):
    options = ('--batch-size', 2, '--cfg-options', 'model.head.in_channels=7')
    status, out, error = call(capsys, config, *options)
    assert status == 1
    assert error == (
        'error: model.head.in_channels is 7, but the feature has 16 channels, shape (2, 16); set '
        'in_channels=16.\n'
    )
    assert '2 x 3 x 16 x 16' in out and '1 problem (' in out


@pytest.mark.parametrize(
    'argv, message',
    [
        (['tini.py'], 'does not exist; the nearest are'),
        (['tiny.py', '--batch-size', '0'], 'batch_size is 0'),
        (['child.py'], 'gone.py'),
    ],
)
def test_mistake(config, capsys, argv, message):
    (config.parent / 'child.py').write_text("_base_ = ['gone.py']\n")
    status, _, error = call(capsys, config.parent / argv[0], *argv[1:])
    assert status == 1
    assert error.count('\n') == 1 and message in error
