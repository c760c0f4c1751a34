"""Checkpoints of runs of version 0.1.0 load and are resumed.

``tests/data/former`` was written by commit 48aca77: names and shapes of the
state of every config for the digits, and the checkpoint of a small run (that
of :mod:`tests.small_runs`, one epoch).
"""

import gzip
import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS

from crd_plugin.engine import StrictLoadingHook
from tests import small_runs

FORMER = Path(__file__).parents[1] / 'data' / 'former'
STATES = json.loads(gzip.decompress((FORMER / 'state_keys.json.gz').read_bytes()))
BANK = 'distiller.distill_losses.loss_crd.bank.'


@pytest.mark.parametrize('leaf', STATES)
def test_state_of_every_method_loads_strictly(leaf):
    init_default_scope('mmpretrain')
    cfg = Config.fromfile(small_runs.REPO / 'configs' / leaf).model
    if 'teacher_ckpt' in cfg:
        cfg.teacher_ckpt = None
    state = {name: torch.full(shape, 0.01) for name, shape in STATES[leaf].items()}
    model = MODELS.build(cfg)
    model.load_state_dict(state, strict=True)
    assert all(value.eq(0.01).all() for value in model.parameters())


def test_a_former_run_is_resumed(tmp_path):
    runner = small_runs.build(
        tmp_path,
        StrictLoadingHook(),
        **small_runs.without_validation(),
        train_cfg__max_epochs=2,
        resume=True,
        load_from=str(FORMER / 'crd_epoch_1.pth'),
    )
    runner.train()
    assert runner.epoch == 2
    before, after = (
        small_runs.load(path)['state_dict']
        for path in (FORMER / 'crd_epoch_1.pth', tmp_path / 'epoch_2.pth')
    )
    for side in ('student', 'teacher'):
        assert not torch.equal(before[BANK + side], after[BANK + side])
        assert torch.equal(before[f'{BANK}log_z_{side}'], after[f'{BANK}log_z_{side}'])
