"""Small but real training runs for the tests of hooks, loops and tools.

Twenty of scikit-learn's digits, batches of six (the last one of two), a student with dropout and a
random teacher: an epoch takes a tenth of a second.
"""

import copy
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import mmengine.config.config
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModule
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from crd_plugin.compat import load_checkpoint_file

# Formatting the text of a config takes longer than such a run itself.
mmengine.config.config.FormatCode = lambda text, **kwargs: (text, True)

REPO = Path(__file__).parents[1]
NUM_SAMPLES, BATCH_SIZE, STEPS = 20, 6, 4
_COUNT = itertools.count()
load = load_checkpoint_file


@MODELS.register_module()
class TinyNet(BaseModule):
    """One convolution, batch norm and dropout."""

    def __init__(self, width: int, dropout: float = 0.0, activated: bool = True) -> None:
        super().__init__()
        self.activated = activated
        self.conv = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.bn = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> tuple:
        """Return one map in a tuple, as backbones do."""
        maps = self.bn(self.conv(x))
        return (self.drop(maps.relu() if self.activated else maps),)


class FailHook(Hook):
    """Raises an error that no caller expects, after some iterations."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def before_train_iter(self, runner, *args, **kwargs) -> None:
        if runner.iter == self.iteration:
            raise ArithmeticError('broken on purpose')


class Watch(Hook):
    """Calls a function at one point of training."""

    def __init__(self, point: str, function: Callable, priority: str = 'LOWEST') -> None:
        self.priority = priority
        setattr(self, point, function)


def net(width: int, dropout: float = 0.0) -> dict[str, Any]:
    """Return the config of a classifier of digits."""
    return dict(
        type='mmpretrain.ImageClassifier',
        data_preprocessor=dict(
            type='mmpretrain.ClsDataPreprocessor', num_classes=10, mean=[78.0] * 3, std=[81.4] * 3
        ),
        backbone=dict(type='mmpretrain.TinyNet', width=width, dropout=dropout),
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
        head=dict(type='mmpretrain.LinearClsHead', num_classes=10, in_channels=width),
    )


def distiller(**loss: Any) -> dict[str, Any]:
    """Return the config of CRD on the neck's output; arguments go to the loss."""
    loss = {**dict(type='crd_plugin.CRDLoss', embed_dim=8, num_negatives=8), **loss}
    connector = dict(type='crd_plugin.EmbeddingConnector', embed_dim=8)
    return dict(
        type='mmrazor.ConfigurableDistiller',
        student_recorders=dict(
            feat=dict(type='mmrazor.ModuleOutputs', source='neck'),
            ids=dict(type='crd_plugin.SampleField', source='sample_idx'),
            labels=dict(type='crd_plugin.SampleField', source='gt_label'),
        ),
        teacher_recorders=dict(feat=dict(type='mmrazor.ModuleOutputs', source='neck')),
        connectors=dict(s=dict(connector), t=dict(connector)),
        distill_losses=dict(loss_crd=loss),
        loss_forward_mappings=dict(
            loss_crd=dict(
                s_feats=dict(recorder='feat', from_student=True, connector='s'),
                t_feats=dict(recorder='feat', from_student=False, connector='t'),
                sample_idx=dict(recorder='ids', from_student=True),
                labels=dict(recorder='labels', from_student=True),
            )
        ),
    )


def model(**loss: Any) -> dict[str, Any]:
    """Return the config of the algorithm; arguments go to the loss."""
    return dict(
        type='crd_plugin.FrozenTeacherDistill',
        architecture=net(6, dropout=0.2),
        teacher=net(12),
        input_shape=(3, 8, 8),
        distiller=distiller(**loss),
    )


def config(work_dir: Any, **changes: Any) -> Config:
    """Return a complete config; in the names of changes a double underscore stands for a dot."""
    pipeline = [dict(type='RandomCrop', crop_size=8, padding=1), dict(type='PackInputs')]
    digits = dict(type='crd_plugin.Digits', num_train_per_class=2, pipeline=pipeline)
    train_dataloader = dict(
        batch_size=BATCH_SIZE,
        num_workers=0,
        dataset=dict(type='crd_plugin.SampleIndexDataset', dataset=digits),
        sampler=dict(type='DefaultSampler', shuffle=True),
    )
    test_dataloader = dict(
        batch_size=25,
        num_workers=0,
        dataset=dict(
            type='crd_plugin.Digits', split='test', indices=50, pipeline=[dict(type='PackInputs')]
        ),
        sampler=dict(type='DefaultSampler', shuffle=False),
    )
    evaluator = dict(type='Accuracy', topk=(1, 5))
    optimizer = dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=5e-4)
    backends = [dict(type='LocalVisBackend')]
    cfg = Config(
        dict(
            default_scope='mmpretrain',
            custom_imports=dict(imports=['crd_plugin', 'tests.small_runs']),
            work_dir=str(work_dir),
            model=model(),
            train_dataloader=train_dataloader,
            val_dataloader=test_dataloader,
            val_evaluator=evaluator,
            val_cfg=dict(),
            test_dataloader=test_dataloader,
            test_evaluator=evaluator,
            test_cfg=dict(),
            optim_wrapper=dict(type='OptimWrapper', optimizer=optimizer),
            train_cfg=dict(by_epoch=True, max_epochs=1, val_interval=1),
            default_hooks=dict(
                logger=dict(type='LoggerHook', interval=1),
                checkpoint=dict(type='crd_plugin.CheckpointHook', interval=1),
                random_state=dict(type='crd_plugin.RandomStateHook'),
            ),
            custom_hooks=[dict(type='crd_plugin.MemoryBankHook', interval=1)],
            visualizer=dict(type='UniversalVisualizer', vis_backends=backends),
            # Each step is logged, not the mean of ten.
            log_processor=dict(window_size=1),
            log_level='INFO',
            randomness=dict(seed=0),
            # Runs of one process share loggers and message hubs by name.
            experiment_name=f'run-{os.getpid()}-{next(_COUNT)}',
        )
    )
    # Copied, because merging removes `_delete_` from what it is given.
    changes = copy.deepcopy(changes)
    cfg.merge_from_dict({key.replace('__', '.'): value for key, value in changes.items()})
    return cfg


def without_validation() -> dict[str, None]:
    """Return changes that remove validation."""
    return dict(val_cfg=None, val_dataloader=None, val_evaluator=None)


def build(work_dir: Any, *hooks: Hook, **changes: Any) -> Runner:
    """Build a runner of :func:`config` with more hooks."""
    runner = Runner.from_cfg(config(work_dir, **changes))
    for hook in hooks:
        runner.register_hook(hook)
    return runner


def train(work_dir: Any, *hooks: Hook, **changes: Any) -> Runner:
    """Train by :func:`build`, without validation; return the runner."""
    runner = build(work_dir, *hooks, **{**without_validation(), **changes})
    runner.train()
    return runner


def write_config(path: Path, work_dir: Any, **changes: Any) -> Path:
    """Write a config for a tool."""
    cfg = config(work_dir, **changes)
    cfg.pop('experiment_name')
    cfg.dump(path)
    return path


def start(
    script: str, *args: Any, log: Path, env: dict[str, str] | None = None
) -> subprocess.Popen:
    """Start a script of ``tools/`` that writes its output to a file."""
    path = REPO / 'tools' / script
    program = ['bash'] if path.suffix == '.sh' else [sys.executable]
    ours = dict(PYTHONPATH=str(REPO), PYTHON=sys.executable, OMP_NUM_THREADS='1')
    with open(log, 'wb') as file:
        return subprocess.Popen(
            [*program, str(path), *map(str, args)],
            cwd=log.parent,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **ours, **(env or {})},
        )


def finish(process: subprocess.Popen, log: Path, timeout: float = 180) -> str:
    """Wait for a script, which must succeed, and return its output."""
    try:
        status = process.wait(timeout)
    finally:
        process.kill()
    output = log.read_text()
    assert status == 0, output[-4000:]
    return output


def scalars(work_dir: Path) -> list[dict[str, Any]]:
    """Return the logged numbers of all runs in a work dir, oldest first, without times."""
    files = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    lines = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    times = ('time', 'data_time', 'memory')
    return [{key: value for key, value in line.items() if key not in times} for line in lines]


def student_of(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """Return the weights of the student in the checkpoint of a distillation."""
    prefix, weights = 'architecture.', checkpoint['state_dict'].items()
    return {key.removeprefix(prefix): value for key, value in weights if key.startswith(prefix)}


def batch(size: int = 6, pixels: int = 8) -> tuple[Tensor, list[DataSample]]:
    """Return images and samples with labels and ids from 0."""
    samples = [DataSample(metainfo=dict(sample_idx=i)).set_gt_label(i) for i in range(size)]
    return torch.randn(size, 3, pixels, pixels), samples


@contextmanager
def process_group(rank: int, folder: str, world: int = 2) -> Iterator[dict[str, Any]]:
    """Join a group of ranks in a folder, and leave there what is put into the result."""
    torch.set_num_threads(1)
    os.environ['LOCAL_RANK'] = str(rank)
    init = f'file://{folder}/init'
    dist.init_process_group('gloo', init_method=init, rank=rank, world_size=world)
    result: dict[str, Any] = {}
    try:
        yield result
    finally:
        torch.save(result, f'{folder}/rank_{rank}.pth')
        dist.destroy_process_group()


def run_ranks(work: Callable[[int, str], None], folder: Path, ranks: int = 2) -> list[Any]:
    """Run a function of rank and folder in processes; return what each saved there."""
    # Imports once, in a server without threads, of which the ranks are forks.
    mp.set_forkserver_preload([work.__module__])
    with mock.patch.dict(os.environ, PYTHONPATH=str(REPO)):
        mp.start_processes(work, args=(str(folder),), nprocs=ranks, start_method='forkserver')
    return [torch.load(folder / f'rank_{rank}.pth') for rank in range(ranks)]
