"""Configs with teachers that others have pretrained, made small and run for a step."""

import re

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image

from crd_plugin.cli.dry_run import dry_run_file
from tests import small_runs
from tests.config_files import APART, CONFIGS, facts, parsed
from tests.test_config_tables import table
from tests.test_models.test_backbones.test_timm_teacher import WIDTH, dinov2_file

FOUNDATION = APART['foundation']
# Transformers with one block instead of twelve.
SMALL = {
    'dinov2-vits14': dict(depth=1, embed_dim=48, num_heads=3, size=28),
    'dinov3-vits16': dict(depth=1, embed_dim=48, num_heads=3, size=32),
    'clip-vitb16': dict(depth=1, embed_dim=48, num_heads=3, size=32),
    'swin-tiny': {},
}


@pytest.mark.parametrize('leaf', FOUNDATION, ids=lambda leaf: leaf.stem)
def test_leaf_is_what_its_name_says(leaf):
    cfg, name = parsed(leaf), facts(leaf)
    row, data = table('foundation')[leaf.stem], name['data']
    assert re.sub(r'\W', '', row['Data']).lower() == re.sub(r'\W', '', data)
    assert re.sub(r'\W', '', row['Method']).lower() == re.sub(r'\W', '', name['method'])
    if 'timm' in cfg.model.teacher.type.lower():
        published = re.split('[-_.]', cfg.model.teacher.model_name)
        assert name['nets'].split('-')[0] in published, published
    assert cfg.model.architecture.backbone.depth == 18
    unlabeled = name['data'].endswith('-unlabeled')
    assert unlabeled == (cfg.train_dataloader.dataset.dataset.get('with_label') is False)
    assert unlabeled == (cfg.model.get('calculate_student_loss', True) is False)
    assert unlabeled == cfg.get('find_unused_parameters', False)


@pytest.mark.parametrize('leaf', FOUNDATION, ids=lambda leaf: leaf.stem)
def test_dry_run(leaf, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = facts(leaf)
    options = {f'model.teacher.{k}': v for k, v in SMALL[name['nets'].split('_')[0]].items()}
    options |= {'model.teacher_ckpt': None, 'train_dataloader.batch_size': 4}
    if 'imagenet' in name['data']:
        options['train_dataloader.dataset.dataset.pipeline.1.scale'] = 64
    report = dry_run_file(str(leaf), options)
    assert report.problems == []
    losses = {row.name: row for row in report.losses if row.summed}
    wanted = {f'distill.loss_{method}' for method in name['method'].split('-')}
    assert set(losses) - {'student.loss'} == wanted
    assert ('student.loss' in losses) == ('unlabeled' not in name['data'])
    assert all(row.value > 0 and row.student > 0 for row in losses.values())
    seen = {row.network: row.images for row in report.inputs}
    size = options.get('model.teacher.size', 224)
    assert seen['teacher'] == f'(4, 3, {size}, {size})'
    assert seen['student'] == ('(4, 3, 64, 64)' if 'imagenet' in name['data'] else '(4, 3, 32, 32)')


@pytest.mark.parametrize('method', ['crd', 'rrd'])
def test_training_on_a_folder_of_images(method, tmp_path):
    """From loose images and a published file to a checkpoint: a bank, or a queue."""
    (tmp_path / 'photos' / 'more').mkdir(parents=True)
    for i in range(8):
        image = Image.fromarray(np.random.default_rng(i).integers(0, 255, (40, 48, 3), np.uint8))
        image.save(tmp_path / 'photos' / ('more' if i % 2 else '') / f'{i}.png')
    torch.save(dinov2_file(37), tmp_path / 'dinov2.pth')
    leaf = f'{method}_dinov2-vits14_resnet18_8xb32-100e_imagenet-unlabeled'
    cfg = Config.fromfile(CONFIGS / 'foundation' / f'{leaf}.py')
    cfg.merge_from_dict(
        {
            **{f'model.teacher.{k}': v for k, v in SMALL['dinov2-vits14'].items()},
            'model.teacher.depth': 2,
            'model.teacher_ckpt': str(tmp_path / 'dinov2.pth'),
            'model.teacher_dtype': 'bfloat16',
            'train_dataloader.batch_size': 4,
            'train_dataloader.num_workers': 0,
            'train_dataloader.persistent_workers': False,
            'train_dataloader.dataset.dataset.data_root': str(tmp_path / 'photos'),
            'train_dataloader.dataset.dataset.data_prefix': '',
            'train_dataloader.dataset.dataset.pipeline.1.scale': 32,
            'train_cfg.max_epochs': 1,
            'work_dir': str(tmp_path / 'work'),
            'experiment_name': f'foundation-{method}',
        }
    )
    if method == 'rrd':
        cfg.model.distiller.distill_losses.loss_rrd.queue_size = 8
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter == 2
    weights = small_runs.load(tmp_path / 'work' / 'epoch_1.pth')['state_dict']
    assert weights['teacher.backbone.pos_embed'].shape == (1, 5, WIDTH)
    assert weights['teacher.backbone.pos_embed'].dtype == torch.bfloat16
    assert weights['architecture.backbone.conv1.weight'].dtype == torch.float32
    store = dict(crd='bank.teacher', rrd='queue.keys')[method]
    assert len(weights[f'distiller.distill_losses.loss_{method}.{store}']) == 8
