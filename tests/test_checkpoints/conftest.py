"""One short distillation, whose student is published in many ways."""

import pytest
import torch

from tests import small_runs


@pytest.fixture(scope='session')
def run(tmp_path_factory):
    """Work dir of two epochs of CRD with averaged weights, configs, and the teacher's weights."""
    folder = tmp_path_factory.mktemp('run')
    teacher = small_runs.Runner.from_cfg(small_runs.config(folder)).model.teacher
    torch.save(teacher.state_dict(), folder / 'teacher.pth')
    hooks = [dict(type='crd_plugin.MemoryBankHook'), dict(type='EMAHook')]
    changes = dict(custom_hooks=hooks, train_cfg__max_epochs=2)
    changes['model__teacher_ckpt'] = str(folder / 'teacher.pth')
    small_runs.write_config(folder / 'crd.py', folder / 'work', **changes)
    student = dict(small_runs.net(6), _delete_=True)
    small_runs.write_config(folder / 'vanilla.py', folder, model=student, custom_hooks=[])
    small_runs.build(folder / 'work', **changes).train()
    return folder


@pytest.fixture(scope='session')
def checkpoint(run):
    return run / 'work' / 'epoch_2.pth'
