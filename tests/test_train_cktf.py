"""CKTF in training: several banks are sized, shared, saved and resumed."""

import itertools
import os

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from tests import small_runs

LEAF = small_runs.REPO / 'configs' / 'cktf' / 'cktf_resnet14_resnet8w4_b20-100e_digits.py'
LEVELS = ['penultimate', 'stem', 'group1', 'group2', 'group3']
_COUNT = itertools.count()


class Watch(Hook):
    """Look at the banks before training and after each iteration."""

    priority = 'LOWEST'

    def __init__(self):
        self.shared = []

    def before_train(self, runner):
        banks = banks_of(runner)
        first = banks['penultimate']
        for bank in banks.values():
            self.shared.append(
                bank.labels is first.labels and bank.keys('class') is first.keys('class')
            )

    def after_train_iter(self, runner, *args, **kwargs):
        assert all(bank.pending is None and bank.has_z for bank in banks_of(runner).values())


def banks_of(runner):
    losses = runner.model.distiller.distill_losses['loss_cktf'].losses
    return {level: losses[level].bank for level in losses}


def run(work_dir, epochs, **changes):
    """Forty digits, batches of twenty, a random teacher."""
    cfg = Config.fromfile(LEAF)
    cfg.merge_from_dict(
        {
            **small_runs.without_validation(),
            'work_dir': str(work_dir),
            'experiment_name': f'cktf-{os.getpid()}-{next(_COUNT)}',
            'model.teacher_ckpt': None,
            'train_dataloader.dataset.dataset.num_train_per_class': 4,
            'train_cfg.max_epochs': epochs,
            'param_scheduler.end': 2,
            'default_hooks.logger.interval': 1,
            'default_hooks.checkpoint.save_best': None,
            **changes,
        }
    )
    runner = Runner.from_cfg(cfg)
    watch = Watch()
    runner.register_hook(watch)
    runner.train()
    return runner, watch


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('whole')
    return (work_dir, *run(work_dir, 2))


def test_labels_and_their_index_are_held_once(whole):
    work_dir, runner, watch = whole
    assert {f'mi_bound_{level}' for level in LEVELS} <= set(small_runs.scalars(work_dir)[-1])
    assert watch.shared == [True] * 5
    assert list(banks_of(runner)) == LEVELS
    stored = {bank.labels.data_ptr() for bank in banks_of(runner).values()}
    assert len(stored) == 1
    rows = {bank.teacher.data_ptr() for bank in banks_of(runner).values()}
    assert len(rows) == 5


def test_resumed_run_is_the_same(whole, tmp_path):
    _, runner, _ = whole
    run(tmp_path, 1)
    resumed, _ = run(tmp_path, 2, load_from=str(tmp_path / 'epoch_1.pth'), resume=True)
    assert banks_of(resumed).keys() == banks_of(runner).keys()
    expected = runner.model.state_dict()
    found = resumed.model.state_dict()
    assert sum('.bank.' in key for key in found) == 5 * 5
    for key, value in expected.items():
        assert torch.equal(value, found[key]), key
