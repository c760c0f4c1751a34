"""The scope ``crd_plugin`` and the names of the package resolve from everywhere."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from mmengine.registry import DefaultScope

import crd_plugin
from crd_plugin import registry

TYPES = [
    ('MODELS', 'CRDLoss'),
    ('MODELS', 'EmbeddingConnector'),
    ('MODELS', 'FrozenTeacherDistill'),
    ('TASK_UTILS', 'SampleFieldRecorder'),
    ('DATASETS', 'SampleIndexDataset'),
    ('HOOKS', 'MemoryBankHook'),
]


@pytest.mark.parametrize('scope', ['mmengine', 'mmpretrain', 'mmrazor'])
@pytest.mark.parametrize('node, name', TYPES)
def test_prefixed_type_resolves(scope, node, name):
    root = import_module(f'{scope}.registry')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        found = getattr(root, node).get(f'crd_plugin.{name}')
    assert found is not None
    assert found.__module__.startswith('crd_plugin.')
    assert found.__name__ == name


@pytest.mark.parametrize('node', registry.__all__)
def test_locations_exist_and_root_knows_the_child(node):
    ours = getattr(registry, node)
    assert ours.scope == 'crd_plugin'
    root = getattr(import_module('mmengine.registry'), node)
    assert root.children['crd_plugin'] is ours
    for location in ours._locations:
        assert import_module(location)


def run(code):
    """Run code in a fresh interpreter; return the last line that it prints."""
    env = dict(os.environ, PYTHONPATH=str(Path(__file__).resolve().parent.parent))
    result = subprocess.run(
        [sys.executable, '-c', code], env=env, capture_output=True, text=True, check=True
    )
    return result.stdout.splitlines()[-1]  # onedl-mmpretrain prints a line when it is imported


def test_prefix_alone_loads_the_package():
    # As in a config without `custom_imports`.
    code = (
        'from mmengine.registry import DATASETS;'
        'print(DATASETS.get("crd_plugin.SampleIndexDataset").__module__)'
    )
    assert run(code).startswith('crd_plugin.datasets')


# --- names of the package ---------------------------------------------------------------------- #


def test_every_registered_class_is_importable_from_the_package():
    names = set(dir(crd_plugin))
    found = set()
    for node in registry.__all__:
        registered = getattr(registry, node)
        registered.import_from_location()
        for cls in registered.module_dict.values():
            if isinstance(cls, type) and cls.__module__.startswith('crd_plugin.'):
                assert getattr(crd_plugin, cls.__name__) is cls
                found.add(cls.__name__)
    assert {'CRDLoss', 'FitNetLoss', 'MemoryBankHook', 'ResidentDataset'} <= found <= names
    assert crd_plugin.MemoryBank.__module__ == 'crd_plugin.models.memory_bank'


def test_star_imports_what_is_public():
    names = {}
    exec('from crd_plugin.models import *', names)
    assert (
        {'ATLoss', 'CRDLoss', 'FrozenTeacherDistill', 'MemoryBank', 'StageOutputsRecorder'}
        <= {*names}
        <= {*dir(crd_plugin.models), '__builtins__'}
    )


@pytest.mark.parametrize('name', ['crd_loss', 'NoSuchLoss', '__wrapped__'])
def test_unknown_name_is_refused(name):
    with pytest.raises(AttributeError, match=f"'crd_plugin' has no attribute '{name}'"):
        getattr(crd_plugin, name)


def test_losses_and_bank_need_torch_and_mmengine_alone():
    code = (
        'import sys; from crd_plugin import CRDLoss, EmbeddingConnector, KeyQueue, MemoryBank;'
        "print({'mmpretrain', 'mmrazor', 'mmcv', 'cv2'} & {*sys.modules})"
    )
    assert run(code) == 'set()'
