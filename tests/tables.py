"""Configs, tools and finished runs for the tests of tables."""

import importlib.util
import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, DefaultScope

from crd_plugin.registry import MODELS
from tests.config_files import parsed

REPO = Path(__file__).parents[1]
CONFIGS = REPO / 'configs'
TEACHER = 'resnet14_b20-100e_digits'
PAIR = 'resnet14_resnet8w4_b20-100e_digits'
STUDENT = CONFIGS / 'vanilla' / 'vanilla_resnet8w4_b20-100e_digits.py'
CRD = CONFIGS / 'crd' / f'crd_{PAIR}.py'
KD = CONFIGS / 'kd' / f'kd_{PAIR}.py'


def load_tool(name: str) -> ModuleType:
    """A script of ``tools/`` as a module."""
    spec = importlib.util.spec_from_file_location(f'tool_{Path(name).stem}', REPO / 'tools' / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@HOOKS.register_module()
class PauseOnce(Hook):
    """Wait in the second epoch to be killed, but not when resumed."""

    def __init__(self, marker: str) -> None:
        self.marker = Path(marker)

    def before_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        """Leave a mark and wait."""
        if runner.epoch == 1 and not self.marker.exists():
            self.marker.touch()
            time.sleep(600)


def wait_for(
    condition: Callable[[], Any], process: subprocess.Popen | None = None, seconds: float = 120
) -> None:
    """Wait until something holds, while a process runs."""
    end = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, 'the process has ended'
        assert time.monotonic() < end, 'waited in vain'
        time.sleep(0.02)


def save_networks(folder: Path, kinds: Mapping[str, str]) -> dict[str, str]:
    """Save checkpoints of random networks of ``KD``; return their paths.

    Kinds: 'teacher', 'student' (alone), 'published' (its weights only) and 'distilled'.
    """
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        teacher, *students = (
            MODELS.build(parsed(KD).model[role]).state_dict()
            for role in ('teacher', *['architecture'] * len(kinds))
        )
    paths = {name: folder / name / 'epoch_2.pth' for name in kinds}
    for (name, kind), student in zip(kinds.items(), students, strict=True):
        content = teacher if kind == 'teacher' else student
        if kind == 'distilled':
            content = {f'architecture.{key}': value for key, value in student.items()}
            content |= {f'teacher.{key}': value for key, value in teacher.items()}
        paths[name].parent.mkdir(parents=True)
        torch.save(content if kind == 'published' else dict(state_dict=content), paths[name])
    return {name: str(path) for name, path in paths.items()}


def write_log(run_dir: Path, top1: Mapping[int, float]) -> None:
    """Write the validations of a run, by epoch, as MMEngine does."""
    log = run_dir / '20260101_000000' / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    entries = [
        {'accuracy/top1': value, 'accuracy/top5': 99.0, 'step': epoch}
        for epoch, value in top1.items()
    ]
    log.write_text('\n'.join(map(json.dumps, entries)))


def read_logs(run_dir: Path) -> list[dict[str, Any]]:
    """Validations that MMEngine has logged for a run."""
    logs = sorted(run_dir.glob('*/vis_data/scalars.json'))
    entries = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    return [entry for entry in entries if 'accuracy/top1' in entry]


def write_run(
    folder: Path, name: str, seed: int, top1: Sequence[float] = (), **changes: Any
) -> Path:
    """Write record and log of a run of three epochs; return its folder."""
    run_dir = folder / name / f'seed_{seed}'
    write_log(run_dir, dict(enumerate(top1, 1)))
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
