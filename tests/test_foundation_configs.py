"""Configs with teachers that others have pretrained, made small and run for a step."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.runner import Runner
from PIL import Image

from crd_plugin.cli.dry_run import dry_run_file
from crd_plugin.fragments import join
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
PUBLISHED = {
    'dinov2-vits14': ('vit_small_patch14_dinov2.lvd142m', 'dinov2_vits14_pretrain.pth'),
    'dinov3-vits16': (
        'vit_small_patch16_dinov3.lvd1689m',
        'vit_small_patch16_dinov3.lvd1689m.safetensors',
    ),
    'clip-vitb16': ('vit_base_patch16_clip_quickgelu_224.openai', 'model.safetensors'),
}


def stem_of(path):
    return path.stem


def test_readme_metafile_and_files_agree():
    meta, rows = load(CONFIGS / 'foundation' / 'metafile.yml'), table('foundation')
    models = {model['Name']: model for model in meta['Models']}
    assert set(models) == set(rows) == {leaf.stem for leaf in FOUNDATION}
    for name, model in models.items():
        data, row = model['Metadata'], rows[name]
        assert [data[key] for key in ('Teacher', 'Student')] == [row['Teacher'], row['Student']]
        assert data['Training Data'] == row['Data']
        cfg = parsed(CONFIGS / 'foundation' / f'{name}.py')
        assert data['Batch Size'] == cfg.auto_scale_lr.base_batch_size
        assert data['Epochs'] == cfg.train_cfg.max_epochs


@pytest.mark.parametrize('leaf', FOUNDATION, ids=stem_of)
def test_leaf_is_what_its_name_says(leaf):
    cfg, name = parsed(leaf), facts(leaf)
    methods = name['method'].split('-')
    assert cfg.model == join(cfg.pair, *(cfg[method] for method in methods))
    teacher, student = name['nets'].split('_')
    assert student == 'resnet18' and cfg.model.architecture.backbone.depth == 18
    if teacher in PUBLISHED:
        model_name, file = PUBLISHED[teacher]
        assert cfg.model.teacher.model_name == model_name
        assert cfg.model.teacher_ckpt.endswith(f'/{file}')
    unlabeled = name['data'].endswith('-unlabeled')
    dataset = cfg.train_dataloader.dataset.dataset
    assert unlabeled == (dataset.get('with_label') is False)
    assert unlabeled == ('val_dataloader' in cfg and cfg.val_dataloader is None)
    assert unlabeled == (cfg.model.get('calculate_student_loss', True) is False)
    assert unlabeled == cfg.get('find_unused_parameters', False)


@pytest.mark.parametrize('leaf', FOUNDATION, ids=stem_of)
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


def test_kd_without_a_classifier_is_one_line(tmp_path):
    bases = [
        f'{CONFIGS}/_base_/{name}.py'
        for name in (
            'settings/imagenet_8xb32-100e',
            'pairs/dinov2-vits14_resnet18_imagenet',
            'distillers/kd',
        )
    ]
    text = f'_base_ = {bases}\nfrom crd_plugin.fragments import join\n'
    (tmp_path / 'kd.py').write_text(f'{text}model = join(_base_.pair, _base_.kd)\n')
    options = {f'model.teacher.{k}': v for k, v in SMALL['dinov2-vits14'].items()}
    report = dry_run_file(str(tmp_path / 'kd.py'), options, use_teacher_ckpt=False)
    (problem,) = report.problems
    assert problem.startswith(
        "model.distiller.teacher_recorders.logits: TimmTeacher has neither a 'head' nor a 'model'"
    )
    assert 'take a method that reads features alone' in problem
