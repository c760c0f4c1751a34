"""What the processes of the tests of ResidentDataset do."""

import copy
import os
from pathlib import Path
from typing import Any, Dict, List

import torch
from mmengine.hooks import Hook
from torch import Tensor

import crd_plugin  # noqa: F401
from crd_plugin.models.recorders.sample_field_recorder import stack_field

from . import small_runs

RESIDENT = dict(num_workers=0, collate_fn=dict(type='crd_plugin.whole_batch'))


class Watch(Hook):
    """Keeps what each training step is given."""

    def __init__(self) -> None:
        self.seen: List[Dict[str, Any]] = []

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        """Look at the batch before it is preprocessed."""
        samples, inputs = data_batch['data_samples'], data_batch['inputs']
        if isinstance(inputs, list):
            inputs = torch.stack(inputs)
        ids, labels = [
            stack_field(samples, name, torch.device('cpu')).tolist()
            for name in ('sample_idx', 'gt_label')
        ]
        self.seen.append(dict(ids=ids, labels=labels, inputs=inputs.cpu()))


def changes() -> Dict[str, Any]:
    """Changes that make a small run resident."""
    cfg = small_runs.config('unused')
    train, val = map(copy.deepcopy, (cfg.train_dataloader, cfg.val_dataloader))
    train.update(RESIDENT)
    train.dataset.type = 'crd_plugin.ResidentDataset'
    val.update(RESIDENT)
    val.dataset = dict(type='crd_plugin.ResidentDataset', dataset=val.dataset)
    preprocessor = dict(
        cfg.model.architecture.data_preprocessor, type='crd_plugin.ResidentDataPreprocessor'
    )
    return dict(
        train_dataloader=dict(train.to_dict(), _delete_=True),
        val_dataloader=dict(val.to_dict(), _delete_=True),
        model__data_preprocessor=preprocessor,
    )


def without_validation() -> Dict[str, Any]:
    """The same for two epochs and without validation."""
    return {**changes(), **runs.without_validation(), 'train_cfg__max_epochs': 2}


def by_id(steps: List[Dict[str, Any]]) -> Dict[int, Tensor]:
    """Images of an epoch by position."""
    return {index: image for step in steps for index, image in zip(step['ids'], step['inputs'])}


def work(rank: int, folder: str, port: int) -> None:
    """Train as one of two ranks and write down what was seen."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE='2',
        MASTER_ADDR='localhost',
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)
    watch = Watch()
    small_runs.build(
        Path(folder) / 'work', watch, launcher='pytorch', **without_validation()
    ).train()
    torch.save(watch.seen, Path(folder) / f'{rank}.pth')
    torch.distributed.destroy_process_group()
