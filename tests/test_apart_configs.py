"""Folders of configs in several stages: README, metafile, what each stage takes from another."""

import re

import pytest
from mmengine.fileio import load

from crd_plugin.cli.dry_run import dry_run_file
from crd_plugin.fragments import join
from tests import small_runs
from tests.config_files import (
    APART,
    CONFIGS,
    OTHER_LEAVES,
    facts,
    fragments_of,
    key_of,
    name_of,
    parsed,
)

DISTILLED = [leaf for leaf in OTHER_LEAVES if 'distiller' in parsed(leaf).model]
# What starts from the student of a first stage, or from any network for a probe.
SECOND = [leaf for leaf in OTHER_LEAVES if re.match('probe|finetune|.*tuned', leaf.stem)]
DRY = [
    *APART['cross-modal'],
    *(
        CONFIGS / f'{name}.py'
        for name in (
            'transfer/cktf_vgg19_vgg8_b64-240e_stl10-unlabeled',
            'transfer/crd_resnet18_resnet18_b64-240e_stl10-unlabeled',
            'transfer/kd_vgg19_vgg19_b64-240e_stl10-unlabeled',
            'depth/crd_resnet18_conv5_b16-200e_nyu-depth',
            'depth/fitnet_resnet50_conv5_b16-200e_nyu-depth',
            'depth/kd-at_resnet50_conv5_b16-200e_nyu-depth',
            'depth/vanilla_conv5_b16-200e_nyu-depth',
            'depth/crd-batch_resnet14_conv5_b64-40e_digits-depth',
            'depth/vanilla_conv5_b20-100e_digits-depth',
        )
    ),
]


pytestmark = pytest.mark.usefixtures('mmpretrain_scope')


@pytest.mark.parametrize('folder', APART)
def test_readme_metafile_and_files_agree(folder):
    text = (CONFIGS / folder / 'README.md').read_text()
    stems = {leaf.stem for leaf in APART[folder]}
    assert set(re.findall(r'\(([\w.-]+)\.py\)', text)) == stems
    for path in re.findall(r'(?:configs|tools|docs)/[\w./-]+\.(?:py|md)', text):
        assert (small_runs.REPO / path).is_file(), path
    meta = CONFIGS / folder / 'metafile.yml'
    models = load(str(meta))['Models'] if meta.exists() else []
    assert len({model['Name'] for model in models}) == len(models)
    if folder in ('cross-modal', 'foundation'):
        assert {model['Name'] for model in models} == stems
    for model in models:
        path, data = CONFIGS / folder / f'{model["Name"]}.py', model['Metadata']
        assert model['Config'] == f'configs/{folder}/{path.name}'
        assert data['Epochs'] == parsed(path).train_cfg.max_epochs == int(facts(path)['epochs'])
        batch = int(facts(path)['batch']) * int(facts(path)['gpus'] or 1)
        assert data['Batch Size'] == batch
        assert parsed(path).train_dataloader.batch_size == int(facts(path)['batch'])


@pytest.mark.parametrize('leaf', DISTILLED, ids=name_of)
def test_first_stage(leaf):
    """It is the recipe, needs no labels, and its teacher is made by a config or by others."""
    cfg, methods = parsed(leaf), fragments_of(leaf)
    assert cfg.model == join(cfg.pair, *(cfg[method] for method in methods))
    assert set(cfg.model.distiller.distill_losses) == {f'loss_{method}' for method in methods}
    if leaf.parent.name != 'foundation' or leaf.stem.endswith('unlabeled'):
        assert 'gt_' not in str(cfg.model.distiller)
        assert cfg.model.calculate_student_loss is False
        assert cfg.val_dataloader is None and cfg.val_cfg is None and cfg.val_evaluator is None
        assert cfg.default_hooks.checkpoint.save_best is None
    if leaf.parent.name != 'foundation' and '://' not in cfg.model.teacher_ckpt:
        run, epoch = re.fullmatch(
            r'work_dirs/([\w-]+)/epoch_(\d+)\.pth', cfg.model.teacher_ckpt
        ).groups()
        (path,) = CONFIGS.glob(f'*/{run}.py')
        assert parsed(path).train_cfg.max_epochs == int(epoch)
        networks = parsed(path).model, cfg.model.teacher
        one, other = (key_of(dict(network, data_preprocessor=0)) for network in networks)
        assert one == other


@pytest.mark.parametrize('leaf', SECOND, ids=name_of)
def test_second_stage(leaf):
    """The network is that of the checkpoint's config; the images are as in its training."""
    cfg = parsed(leaf)
    backbone = dict(cfg.model.backbone)
    checkpoint = cfg.model.get('backbone_ckpt')
    if checkpoint is None:
        init = backbone.pop('init_cfg')
        assert (init.type, init.prefix) == ('Pretrained', 'architecture.backbone.')
        checkpoint = init.checkpoint
    else:
        assert cfg.model.type == 'crd_plugin.LinearProbe'
        assert cfg.model.get('finetune', False) == leaf.stem.startswith('finetune')
    run, epoch = re.search(r'([\w-]+)(?:/seed_\d)?/epoch_(\d+)\.pth', checkpoint).groups()
    (path,) = CONFIGS.glob(f'*/{run}.py')
    first = parsed(path)
    assert first.train_cfg.max_epochs == int(epoch)
    if '-tuned' in leaf.stem:
        assert run.startswith(f'{leaf.stem.split("-tuned")[0]}_')
    network = first.model.get('architecture', first.model)
    assert key_of(backbone) == key_of(network.backbone)
    given, before = (
        one.get('data_preprocessor') or cfg.data_preprocessor
        for one, cfg in ((cfg.model, cfg), (network, first))
    )
    assert (given['mean'], given['std']) == (before['mean'], before['std'])
    assert given.get('view') == before.get('view')


@pytest.mark.parametrize('leaf', DRY, ids=name_of)
def test_dry_run(leaf, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no data are
    changes = {'train_dataloader.batch_size': 2}
    if leaf.stem.endswith('nyu-depth'):
        changes['train_dataloader.dataset.dataset.pipeline.0.scale'] = (96, 64)
    report = dry_run_file(str(leaf), changes, use_teacher_ckpt=False)
    assert report.problems == [] and not any(tmp_path.iterdir())
    assert all(row.student > 0 for row in report.losses if row.summed)
