"""Configs with teachers that others have pretrained, made small and run for a step."""

import pytest
from mmengine.fileio import load

from crd_plugin.cli.dry_run import dry_run_file
from crd_plugin.fragments import join
from tests.config_files import APART, CONFIGS, facts, parsed
from tests.test_config_tables import table

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
