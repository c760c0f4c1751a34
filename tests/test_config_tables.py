"""README, metafile and files of each folder of configs agree."""

import re
from pathlib import Path

import pytest
from mmengine.fileio import load
from mmengine.registry import DefaultScope

from tests import small_runs
from tests.config_files import (
    CONFIGS,
    FOLDERS,
    build,
    facts,
    leaves_of,
    networks_of,
    parsed,
    plain,
)


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


def table(folder):
    """Rows of a folder's README, by the name of the config."""
    rows, header = {}, None
    for line in (CONFIGS / folder / 'README.md').read_text().splitlines():
        if not line.startswith('|'):
            header = None
            continue
        cells = [cell.strip() for cell in line.strip('|').split('|')]
        if header is None:
            header = cells
        elif not set(line) <= set('|-'):
            row = dict(zip(header, cells, strict=True))
            link = re.fullmatch(r'\[config\]\(([\w.-]+)\.py\)', row['Config'])
            assert link and link[1] not in rows
            rows[link[1]] = row
    return rows


@pytest.mark.parametrize('folder', FOLDERS)
def test_readme_metafile_and_files_agree(folder):
    files = {leaf.stem for leaf in leaves_of(folder)}
    rows = table(folder)
    meta = load(str(CONFIGS / folder / 'metafile.yml'))
    models = {model['Name']: model for model in meta['Models']}
    assert len(models) == len(meta['Models'])
    assert set(rows) == files and set(models) == files
    # Each method has one title in the table.
    titles = {facts(leaf)['method']: rows[leaf.stem].get('Method') for leaf in leaves_of(folder)}
    assert len(set(titles.values())) == len(titles)
    (collection,) = meta['Collections']
    assert (small_runs.REPO / collection['README']).is_file()
    for stem, model in models.items():
        row = rows[stem]
        leaf = CONFIGS / folder / f'{stem}.py'
        name, data = facts(leaf), model['Metadata']
        assert small_runs.REPO / model['Config'] == leaf
        assert model['In Collection'] == collection['Name']
        assert data['Epochs'] == int(name['epochs'])
        assert data['Batch Size'] == parsed(leaf).auto_scale_lr.base_batch_size
        trained = networks_of(parsed(leaf))[0]
        assert data['Parameters'] == build(plain(trained))
        assert re.sub(r'\W', '', data['Training Data']).lower() == re.sub(r'\W', '', name['data'])
        for key in ('Network', 'Teacher', 'Student'):
            assert data.get(key) == row.get(key)
        assert [str(data.get('Teachers', '')), row.get('Teachers')] in (
            ['', None],
            [name['members']] * 2,
        )
        nets = [data[key] for key in ('Network', 'Teacher', 'Student') if key in data]
        assert re.sub('-', '', '_'.join(nets)).lower() == re.sub('-', '', name['nets'])
        assert row.get('Method') == titles[name['method']]
        published = model.get('Published')
        assert row['Source'] == (published['Source'] if published else '')
        assert row['Paper'] == (f'{published["Top 1 Accuracy"]:.2f}' if published else '')
        # What was measured is in both or in neither.
        results = model.get('Results')
        assert bool(results) == bool(row['Ours'])


@pytest.mark.parametrize('folder', FOLDERS)
def test_commands_of_the_readme_name_what_exists(folder):
    text = (CONFIGS / folder / 'README.md').read_text()
    block = re.search(r'```shell\n(.*?)```', text, re.DOTALL)[1]
    paths = re.findall(r'(?:configs|tools)/[\w./-]+', block)
    assert len(paths) >= 4
    for path in paths:
        assert (small_runs.REPO / path).is_file(), path
    stem, epoch = re.search(r'work_dirs/([\w-]+)/epoch_(\d+)\.pth', block).groups()
    leaf = CONFIGS / folder / f'{stem}.py'
    assert parsed(leaf).train_cfg.max_epochs == int(epoch)
    eight = re.search(r'dist_train.sh (\S+) 8', block)
    large = any(facts(path)['gpus'] for path in leaves_of(folder))
    assert bool(eight) == large
    if eight:
        assert facts(Path(eight[1]))['gpus'] == '8'
    for link in re.findall(r'\]\((?!http)([^)]+)\)', text):
        assert (CONFIGS / folder / link).exists(), link


def test_model_index_imports_every_metafile():
    index = load(str(small_runs.REPO / 'model-index.yml'))
    expected = sorted([*FOLDERS, 'cross-modal'])
    assert sorted(index['Import']) == [f'configs/{folder}/metafile.yml' for folder in expected]


@pytest.mark.parametrize(
    'config, figure',
    [
        ('vanilla/vanilla_resnet32x4_b64-240e_cifar100', 79.42),
        ('kd/kd_wrn40-2_wrn16-2_b64-240e_cifar100', 74.92),
        ('online-kd/online-kd_resnet18_8xb32-100e_imagenet', 70.55),
        ('fitnet/fitnet_resnet32x4_resnet8x4_b64-240e_cifar100', 73.50),
        ('at/at_vgg13_mobilenetv2_b64-240e_cifar100', 59.40),
        ('sp/sp_wrn40-2_wrn16-2_b64-240e_cifar100', 73.83),
        ('cc/cc_resnet110_resnet32_b64-240e_cifar100', 71.48),
        ('vid/vid_vgg13_vgg8_b64-240e_cifar100', 71.23),
        ('rkd/rkd_wrn40-2_shufflenetv1_b64-240e_cifar100', 72.21),
        ('pkt/pkt_vgg19_vgg8_b64-240e_tiny-imagenet', 55.35),
        ('ab/ab_resnet50_resnet10_b64-240e_tiny-imagenet', 58.05),
        ('ft/ft_resnet56_resnet20_b64-240e_cifar100', 69.84),
        ('fsp/fsp_resnet110_resnet20_b64-240e_cifar100', 70.11),
        ('cktf/cktf_vgg13_vgg8_b64-240e_cifar100', 74.31),
        ('cktf/cktf-kd_vgg19_vgg8_b64-240e_tiny-imagenet', 58.76),
        ('cocord/cocord_resnet50_mobilenetv2_b64-240e_cifar100', 70.22),
        ('cocord/cocord-kd_wrn40-2_shufflenetv1_b64-240e_cifar100', 76.56),
        ('dkd/dkd_resnet110_resnet20_b64-240e_cifar100', 71.06),
        ('dkd/dkd_wrn40-2_shufflenetv1_b64-240e_cifar100', 76.70),
        ('lskd/lskd_resnet50_mobilenetv2_b64-240e_cifar100', 69.02),
        ('nst/nst_resnet50_resnet10_b32-240e_tiny-imagenet', 47.83),
        ('crd/crd_wrn40-2_shufflenetv1_b64-240e_cifar100', 76.05),
        ('ablation/crd-infonce-instance_vgg13_vgg8_b64-240e_cifar100', 73.24),
        ('ablation/crd-nce-class_resnet32x4_resnet8x4_b64-240e_cifar100', 75.51),
        ('ensemble/crd-ensemble_8xwrn40-2_wrn16-2_b64-240e_cifar100', 100 - 23.7),
        ('ensemble/crd-ensemble_8xresnet110_resnet20_b64-240e_cifar100', 100 - 28.3),
        ('crd/crd-kd_resnet34_resnet18_8xb32-100e_imagenet', 71.38),
        ('crd/crd_resnet34_resnet18_8xb32-100e_imagenet', 71.17),
        ('crd/crd-kd_resnet50_resnet18_8xb16-200e_cifar10', 94.62),
        ('crd/crd_wrn22-4_wrn16-2_8xb16-200e_cifar10', 93.19),
        ('crd/crd_resnet50_resnet18_8xb16-200e_cifar100', 79.38),
        ('crd/crd_resnet110_resnet20_8xb16-200e_cifar100', 69.08),
        ('crd/crd_wrn22-4_wrn16-2_8xb16-200e_cifar100', 75.69),
        ('crd/crd_resnet50_resnet18_8xb32-100e_imagenet', 69.91),
        ('crd/crd_wrn22-4_wrn16-2_8xb32-100e_imagenet', 70.92),
    ],
)
def test_cells_of_the_tables(config, figure):
    folder, stem = config.split('/')
    assert float(table(folder)[stem]['Paper']) == figure
