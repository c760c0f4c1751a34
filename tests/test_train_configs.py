"""One row of each table through ``tools/``, on few images in the true format.

A teacher by its own config, then the distillation: two iterations, validation,
checkpoint, two more after resuming, test. Networks, images and losses are
those of the configs; batches, data sets and epochs are small, and the best
checkpoint of the large networks is not saved beside the last one. MMPretrain's
zoo is not asked: ResNet-34 has random weights in a file of the same layout.
"""

import json
from pathlib import Path

import pytest
import torch
from mmengine.registry import DefaultScope

from crd_plugin.registry import MODELS
from tests import fake_data, small_runs
from tests.config_files import CONFIGS, fast, parsed
from tests.test_cli.test_arguments import call

# Config, data folder, how many images fill it, images per step, learning rate of the schedule.
ROWS = {
    'cifar10': ('crd/crd_wrn22-4_wrn16-2_8xb16-200e_cifar10', 'cifar10', (10, 6), 5, 0.1),
    'cifar100': ('crd/crd-kd_resnet56_resnet20_b64-240e_cifar100', 'cifar100', (12, 6), 6, 0.05),
    'imagenet': ('crd/crd_resnet34_resnet18_8xb32-100e_imagenet', 'imagenet', (1, 1), 2, 0.1),
    'tiny-imagenet': (
        'kd/kd_vgg16_vgg11_b64-240e_tiny-imagenet',
        'tiny-imagenet-200',
        (1, 1),
        5,
        0.05,
    ),
}


def options(batch, epochs, *more):
    """Small batches in this process, every step logged."""
    every = 'default_hooks.logger.interval=1', 'log_processor.window_size=1'
    return fast(*every, f'train_cfg.max_epochs={epochs}', *more, batch=batch)


def train_teacher(cfg, batch):
    """Make the checkpoint that a config asks for; more options for it."""
    checkpoint = cfg.model.teacher_ckpt
    if '://' in checkpoint:
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            model = MODELS.build(cfg.model.teacher)
        torch.save(dict(meta={}, state_dict=model.state_dict()), 'zoo.pth')
        return Path('zoo.pth'), ['model.teacher_ckpt=zoo.pth']
    folder = Path(checkpoint).parent
    vanilla = CONFIGS / 'vanilla' / f'{folder.name}.py'
    assert call('train', vanilla, '--no-check', *options(batch, 1)) == 0
    # The name of the last of all epochs.
    return (folder / 'epoch_1.pth').rename(checkpoint), []


@pytest.mark.parametrize('data', ROWS)
def test_row(data, tmp_path, monkeypatch):
    name, root, images, batch, rate = ROWS[data]
    monkeypatch.chdir(tmp_path)
    fake_data.without_md5(monkeypatch)
    getattr(fake_data, f'write_{data.replace("-", "_")}')(f'data/{root}', *images)
    leaf = CONFIGS / f'{name}.py'
    cfg = parsed(leaf)
    teacher, more = train_teacher(cfg, batch)
    work_dir = Path('work_dirs', leaf.stem)
    if 'imagenet' in data:
        more = [*more, 'default_hooks.checkpoint.save_best=None']

    # The data sets that are written here have fewer classes than the real ones.
    assert call('train', leaf, '--no-check', *options(batch, 1, *more)) == 0
    assert (work_dir / 'epoch_1.pth').is_file()
    assert bool(list(work_dir.glob('best_*.pth'))) == ('imagenet' not in data)
    lines = small_runs.scalars(work_dir)
    steps = [line for line in lines if 'loss' in line]
    assert len(steps) == 2
    for step in steps:
        assert step['lr'] == rate and 0 < step['loss'] < float('inf')
        parts = [value for key, value in step.items() if '.loss' in key]
        assert sum(parts) == pytest.approx(step['loss'], rel=1e-5)
    assert {key for key in steps[0] if '.loss' in key} == {
        'student.loss',
        *(f'distill.{key}' for key in cfg.model.distiller.distill_losses),
    }
    assert ['accuracy/top1' in line for line in lines].count(True) == 1

    assert call('train', leaf, '--no-check', '--resume', *options(batch, 2, *more)) == 0
    state = small_runs.load(work_dir / 'epoch_2.pth')
    assert state['meta']['epoch'] == 2 and state['meta']['iter'] == 4
    assert len([line for line in small_runs.scalars(work_dir) if 'loss' in line]) == 4
    weights = state['state_dict']
    frozen = small_runs.load(teacher)['state_dict']
    for key, value in frozen.items():
        assert torch.equal(weights[f'teacher.{key}'], value), key
    banks = [key for key in weights if key.endswith('bank.student')]
    assert len(banks) == ('loss_crd' in cfg.model.distiller.distill_losses)
    for key in banks:
        # Two epochs have written the row of every image.
        assert weights[key].shape == (2 * batch, 128)
        norms = weights[key].norm(dim=1)
        torch.testing.assert_close(norms, torch.ones(2 * batch))

    # The checkpoint has the teacher; no file or URL of it is asked for.
    teacher.unlink()
    out = '--out', 'found.json', '--out-item', 'metrics'
    assert call('test', leaf, work_dir / 'epoch_2.pth', *out, *options(batch, 2)) == 0
    found = json.loads(Path('found.json').read_text())
    lines = [line for line in small_runs.scalars(work_dir) if 'loss' not in line]
    assert found['accuracy/top1'] in [line.get('accuracy/top1') for line in lines]
    assert 0 <= found['accuracy/top1'] <= found['accuracy/top5'] <= 100
