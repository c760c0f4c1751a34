"""What the processes of the tests of ResidentDataset do."""

import copy
import os
from pathlib import Path

import torch
from mmengine.hooks import Hook

from crd_plugin.models.recorders.sample_field_recorder import stack_field
from tests import small_runs

RESIDENT = dict(num_workers=0, collate_fn=dict(type='crd_plugin.whole_batch'))


class Watch(Hook):
    """Keeps ids, labels and images of each training step."""

    def __init__(self):
        self.seen = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        """Look at the batch before it is preprocessed."""
        samples, inputs = data_batch['data_samples'], data_batch['inputs']
        if isinstance(inputs, list):
            inputs = torch.stack(inputs)
        ids, labels = (
            stack_field(samples, name, torch.device('cpu')).tolist()
            for name in ('sample_idx', 'gt_label')
        )
        self.seen.append(dict(ids=ids, labels=labels, inputs=inputs.cpu()))


def changes():
    """Return the changes that make a small run resident."""
    cfg = small_runs.config('unused')
    train, val = map(copy.deepcopy, (cfg.train_dataloader, cfg.val_dataloader))
    train.update(RESIDENT)
    train.dataset.type = 'crd_plugin.ResidentDataset'
    val.update(RESIDENT)
    val.dataset = dict(type='crd_plugin.ResidentDataset', dataset=val.dataset)
    return dict(
        train_dataloader=dict(train.to_dict(), _delete_=True),
        val_dataloader=dict(val.to_dict(), _delete_=True),
    )


def without_validation():
    """Return the same for two epochs without validation."""
    return {**changes(), **small_runs.without_validation(), 'train_cfg__max_epochs': 2}


def by_id(steps):
    """Return the images of an epoch by position."""
    return {index: image for step in steps for index, image in zip(step['ids'], step['inputs'])}


def work(rank, folder, port):
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
