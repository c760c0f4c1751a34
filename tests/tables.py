"""Tiny but real tables: configs of the digits for the tests of tools.

Two epochs of five steps, 100 digits to validate on, a random teacher.
"""

import functools
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS

REPO = Path(__file__).parents[1]
CONFIGS = REPO / 'configs'
PAIR = 'resnet14_resnet8w4_b20-100e_digits'
NUM_EPOCHS = 2
# Registered as a function: tools that only read the config need no torch.
PAUSE = '''
from mmengine.registry import HOOKS


@HOOKS.register_module()
def pause_once(marker):
    import time
    from pathlib import Path

    from mmengine.hooks import Hook

    class PauseOnce(Hook):
        """Wait in the second epoch to be killed, but not when resumed."""

        def before_train_iter(self, runner, *args, **kwargs):
            if runner.epoch == 1 and not Path(marker).exists():
                Path(marker).touch()
                time.sleep(600)

    return PauseOnce()
'''
LEAF = """
_base_ = '{base}'
train_cfg = dict(max_epochs={epochs})
val_dataloader = dict(batch_size=50, dataset=dict(indices=100))
default_hooks = dict(logger=dict(interval=1))
"""


def load_tool(name: str) -> ModuleType:
    """A script of ``tools/`` as a module."""
    spec = importlib.util.spec_from_file_location(f'tool_{Path(name).stem}', REPO / 'tools' / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def load_benchmark(name: str) -> ModuleType:
    """A script of ``tools/benchmarks/`` as a module; it imports others of that folder."""
    folder = str(REPO / 'tools' / 'benchmarks')
    sys.path.insert(0, folder)
    try:
        return load_tool(f'benchmarks/{name}.py')
    finally:
        sys.path.remove(folder)


def write_teacher(path: Path) -> Path:
    """Save the digits' teacher with random weights."""
    config = Config.fromfile(CONFIGS / 'vanilla' / 'vanilla_resnet14_b20-100e_digits.py')
    torch.manual_seed(0)
    torch.save(dict(state_dict=MODELS.build(config.model).state_dict()), path)
    return path


def write_configs(folder: Path) -> Path:
    """Write teacher.pth, student.py, crd.py and broken.py.

    ``crd.py`` pauses in its second epoch until it is killed, unless the file ``paused`` is there;
    ``broken.py`` fails when its data loader is built.
    """
    folder.mkdir(parents=True, exist_ok=True)
    teacher = write_teacher(folder / 'teacher.pth')
    (folder / 'pausing.py').write_text(PAUSE)
    student = CONFIGS / 'vanilla' / 'vanilla_resnet8w4_b20-100e_digits.py'
    configs = folder / 'method'
    configs.mkdir()
    (configs / 'student.py').write_text(LEAF.format(base=student, epochs=NUM_EPOCHS))
    (configs / 'crd.py').write_text(
        LEAF.format(base=CONFIGS / 'crd' / f'crd_{PAIR}.py', epochs=NUM_EPOCHS)
        + f"model = dict(teacher_ckpt='{teacher}')\n"
        "custom_imports = dict(imports=['crd_plugin', 'pausing'])\n"
        f"default_hooks.update(pause=dict(type='pause_once', marker='{folder / 'paused'}'))\n"
    )
    (configs / 'broken.py').write_text(
        "_base_ = './student.py'\ntrain_dataloader = dict(batch_size=-1)\n"
    )
    return configs


def write_run(
    folder: Path, name: str, seed: int, top1: Sequence[float] = (), **changes: Any
) -> Path:
    """Write record and log of a run of three epochs; return its folder."""
    run_dir = folder / name / f'seed_{seed}'
    log = run_dir / '20260101_000000' / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    entries = [
        {'accuracy/top1': value, 'accuracy/top5': 99.0, 'step': epoch}
        for epoch, value in enumerate(top1, 1)
    ]
    log.write_text('\n'.join(map(json.dumps, entries)))
    record = dict(
        config=f'configs/crd/{name}.py',
        seed=seed,
        options=[],
        epochs=3,
        signature='s',
        teacher='abcdef0123456789',
        finished=True,
        seconds=1.0,
    )
    (run_dir / 'run.json').write_text(json.dumps(record | changes))
    return run_dir


def start(folder: Path, name: str, *args: Any) -> subprocess.Popen:
    """Start a tool in a folder, without a GPU."""
    path = [str(REPO), str(folder), os.environ.get('PYTHONPATH', '')]
    return subprocess.Popen(
        [sys.executable, str(REPO / 'tools' / name), *map(str, args)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(
            os.environ,
            CUDA_VISIBLE_DEVICES='',
            OMP_NUM_THREADS='1',
            PYTHONPATH=os.pathsep.join(filter(None, path)),
        ),
    )


def call(folder: Path, name: str, *args: Any) -> list[str]:
    """Run a tool in a folder; return the lines of its output."""
    process = start(folder, name, *args)
    try:
        out, error = process.communicate(timeout=180)
    finally:
        process.terminate()  # its trainings end with it
    assert process.returncode == 0, out + error
    return out.splitlines()
