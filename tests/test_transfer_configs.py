"""Transfer: configs, both stages from Tiny-ImageNet to STL-10 and linear probes on few images."""

import copy
import re
from pathlib import Path

import pytest
import torch
from mmengine.registry import DefaultScope

from crd_plugin.cli.dry_run import dry_run_file
from crd_plugin.fragments import join
from crd_plugin.registry import MODELS
from tests import fake_data, small_runs
from tests.config_files import APART, CONFIGS, LEAVES, key_of, parsed
from tests.test_cli.test_arguments import call

TRANSFER = APART['transfer']
TUNED = [leaf for leaf in TRANSFER if '-tuned_' in leaf.name]
PROBES = [leaf for leaf in TRANSFER if leaf.name.startswith('probe_')]
DISTILLED = [leaf for leaf in TRANSFER if leaf.stem.endswith('-unlabeled')]
LOSSES = dict(
    kd=dict(type='mmrazor.KLDivergence', tau=4, loss_weight=1.0),
    crd=dict(type='crd_plugin.CRDLoss', loss_weight=1.0, exclude='instance'),
    cktf=dict(
        type='crd_plugin.CKTFLoss',
        beta=1.0,
        theta=0.04,
        temperature=0.07,
        exclude='instance',
        loss_weight=1.0,
    ),
)


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


def stem_of(path):
    return path.stem


def test_the_leaves():
    names = {leaf.stem for leaf in TRANSFER}
    pairs = ('vgg19_vgg19', 'vgg19_vgg8', 'resnet18_resnet18')
    probes = {leaf.stem for leaf in PROBES}
    assert names - probes == {'vanilla_resnet18_b64-240e_tiny-imagenet'} | {
        name
        for pair in pairs
        for method in LOSSES
        for name in (
            f'{method}_{pair}_b64-240e_stl10-unlabeled',
            f'{method}-tuned_{pair}_b64-240e_stl10',
        )
    }
    text = (CONFIGS / 'transfer' / 'README.md').read_text()
    for leaf in TRANSFER:
        assert f'({leaf.name})' in text
    for path in re.findall(r'(?:configs|tools)/[\w./-]+\.py', text):
        assert (small_runs.REPO / path).is_file(), path


@pytest.mark.parametrize('leaf', DISTILLED, ids=stem_of)
def test_first_stage(leaf):
    cfg = parsed(leaf)
    method = leaf.stem.split('_')[0]
    assert cfg.model == join(cfg.pair, cfg[method])
    assert cfg.model.distiller.distill_losses == {f'loss_{method}': LOSSES[method]}
    assert 'gt_label' not in str(cfg.model.distiller)
    assert cfg.model.calculate_student_loss is False
    assert cfg.train_dataloader.dataset.dataset.split == 'unlabeled'
    for part in ('cfg', 'dataloader', 'evaluator'):
        assert cfg[f'val_{part}'] is None and cfg[f'test_{part}'] is None
    assert cfg.default_hooks.checkpoint.save_best is None
    assert cfg.train_cfg.max_epochs == 240
    for net in (cfg.model.architecture, cfg.model.teacher):
        assert net.head.num_classes == 200
    teacher = re.fullmatch(r'work_dirs/([\w-]+)/epoch_240\.pth', cfg.model.teacher_ckpt)[1]
    folder = 'transfer' if 'resnet18' in teacher else 'vanilla'
    trained = parsed(CONFIGS / folder / f'{teacher}.py')
    assert key_of(trained.model) == key_of(cfg.model.teacher)
    assert trained.train_cfg.max_epochs == 240


@pytest.mark.parametrize('leaf', TUNED, ids=stem_of)
def test_second_stage(leaf):
    cfg = parsed(leaf)
    method, pair = leaf.stem.split('_', 1)
    first = f'{method.split("-")[0]}_{pair}-unlabeled'
    backbone = dict(cfg.model.backbone)
    assert backbone.pop('init_cfg') == dict(
        type='Pretrained',
        checkpoint=f'work_dirs/{first}/epoch_240.pth',
        prefix='architecture.backbone.',
    )
    distilled = parsed(CONFIGS / 'transfer' / f'{first}.py')
    assert backbone == distilled.model.architecture.backbone
    assert cfg.model.head.num_classes == 10
    assert cfg.train_dataloader.dataset.dataset.split == 'train'
    assert cfg.val_dataloader.dataset.split == 'test'
    assert cfg.default_hooks.checkpoint.save_best == 'accuracy/top1'
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.lr, cfg.train_cfg.max_epochs) == (0.05, 240)


@pytest.mark.parametrize(
    'name',
    [
        'cktf_vgg19_vgg8_b64-240e_stl10-unlabeled',
        'crd_resnet18_resnet18_b64-240e_stl10-unlabeled',
        'kd_vgg19_vgg19_b64-240e_stl10-unlabeled',
    ],
)
def test_dry_run_of_the_first_stage(name, tmp_path, monkeypatch):
    """Without labels, with and without the files."""
    monkeypatch.chdir(tmp_path)
    if name.startswith('cktf'):
        fake_data.write_stl10('data/stl10_binary', 2, 2, 6)
    report = dry_run_file(
        str(CONFIGS / 'transfer' / f'{name}.py'),
        {
            'model.teacher_ckpt': None,
            'train_dataloader.batch_size': 2,
            'train_dataloader.dataset.complete': False,
        },
    )
    assert report.problems == []
    (loss,) = (row for row in report.losses if row.summed)
    assert loss.name == f'distill.loss_{name.split("_")[0]}'
    assert loss.student > 0


def options(*more):
    return [
        '--cfg-options',
        'train_dataloader.batch_size=4',
        'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False',
        'train_cfg.max_epochs=1',
        'train_dataloader.dataset.complete=False',
        *more,
    ]


def test_both_stages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fake_data.write_stl10('data/stl10_binary', num_train=8, num_test=4, num_unlabeled=8)
    first, second = (
        CONFIGS / 'transfer' / f'{name}.py'
        for name in (
            'cktf_vgg19_vgg8_b64-240e_stl10-unlabeled',
            'cktf-tuned_vgg19_vgg8_b64-240e_stl10',
        )
    )
    # A small stand-in of the same family as the teacher.
    small = [
        'model.teacher_ckpt=None',
        'model.teacher.backbone.depth=11',
        'model.distiller.distill_losses.loss_cktf.num_negatives=4',
    ]
    assert call('train', first, *options(*small)) == 0
    work_dir = tmp_path / 'work_dirs' / first.stem
    assert 'student.loss' not in small_runs.scalars(work_dir)[-1]
    distilled = small_runs.load(work_dir / 'epoch_1.pth')['state_dict']
    banks = [key for key in distilled if key.endswith('bank.labels')]
    assert len(banks) == 6
    assert all(distilled[key].numel() == 0 for key in banks)
    # The second stage starts from the last epoch.
    (work_dir / 'epoch_1.pth').rename(work_dir / 'epoch_240.pth')

    assert (
        call(
            'train',
            second,
            *options('val_dataloader.num_workers=0', 'val_dataloader.persistent_workers=False'),
        )
        == 0
    )
    work_dir = tmp_path / 'work_dirs' / second.stem
    tuned = small_runs.load(work_dir / 'epoch_1.pth')['state_dict']
    before = {
        key[len('architecture.') :]: value
        for key, value in distilled.items()
        if key.startswith('architecture.backbone.')
    }
    assert before.keys() == {key for key in tuned if 'backbone' in key}
    moved = {
        key.rpartition('.')[2]
        for key, value in before.items()
        if not torch.equal(value, tuned[key])
    }
    # Batch norm updates its statistics; no weight of the backbone changes.
    assert moved == {'running_mean', 'running_var', 'num_batches_tracked'}
    assert tuned['head.fc.weight'].shape == (10, 512)
    assert 'accuracy/top1' in small_runs.scalars(work_dir)[-1]


# --- linear probes --------------------------------------------------------- #


@pytest.mark.parametrize('leaf', PROBES, ids=stem_of)
def test_probe(leaf):
    """The network is that of the checkpoint's config; the images are as in its training."""
    cfg = parsed(leaf)
    run = cfg.model.backbone_ckpt.removeprefix('work_dirs/').removeprefix('digits-0-4/')
    (trained,) = (parsed(path) for path in LEAVES if path.stem == run.split('/')[0])
    network = trained.model.get('architecture', trained.model)
    assert cfg.model.type == 'crd_plugin.LinearProbe'
    assert key_of(cfg.model.backbone) == key_of(network.backbone)
    for key in ('mean', 'std'):
        assert cfg.data_preprocessor[key] == trained.data_preprocessor[key]
    assert cfg.model.head.num_classes == cfg.data_preprocessor.num_classes
    _, net, schedule, data = leaf.stem.split('_')
    assert schedule == f'b{cfg.train_dataloader.batch_size}-{cfg.train_cfg.max_epochs}e'
    if data == 'digits-5-9':
        for dataset in (cfg.train_dataloader.dataset.dataset, cfg.test_dataloader.dataset):
            assert dataset.digits == [5, 6, 7, 8, 9]
    else:
        assert cfg.optim_wrapper.optimizer.lr == 0.05
        assert cfg.param_scheduler.milestones == [30, 60, 90]


@pytest.fixture
def wrn(tmp_path, monkeypatch):
    """The student of the CIFAR-100 pair as the checkpoint of a distillation, and small data."""
    monkeypatch.chdir(tmp_path)
    cfg = parsed(CONFIGS / 'crd' / 'crd_wrn40-2_wrn16-2_b64-240e_cifar100.py')
    network = MODELS.build(dict(copy.deepcopy(cfg.model.architecture)))
    state = {f'architecture.{key}': value for key, value in network.state_dict().items()}
    state['teacher.backbone.conv1.weight'] = torch.zeros(1)
    path = tmp_path / 'work_dirs' / 'crd_wrn40-2_wrn16-2_b64-240e_cifar100' / 'epoch_240.pth'
    path.parent.mkdir(parents=True)
    torch.save(dict(state_dict=state), path)
    fake_data.write_stl10('data/stl10_binary', num_train=8, num_test=4, num_unlabeled=1)
    fake_data.write_tiny_imagenet('data/tiny-imagenet-200', num_train=1, num_val=1)
    return path


@pytest.mark.parametrize('data', ['stl10', 'tiny-imagenet'])
def test_training_of_a_probe(wrn, data):
    leaf = CONFIGS / 'transfer' / f'probe_wrn16-2_b64-120e_{data}.py'
    workers = ('val_dataloader.num_workers=0', 'val_dataloader.persistent_workers=False')
    # The small Tiny-ImageNet has ten classes.
    assert call('train', leaf, *options(*workers, 'model.head.num_classes=10')) == 0
    work_dir = Path('work_dirs') / leaf.stem
    assert 'accuracy/top1' in small_runs.scalars(work_dir)[-1]
    found, before = (small_runs.load(p)['state_dict'] for p in (work_dir / 'epoch_1.pth', wrn))
    for key, value in found.items():
        assert ('head.' in key) != torch.equal(value, before[f'architecture.{key}'])
    # A checkpoint of a probe holds all of it.
    wrn.unlink()
    test = ('test_dataloader.num_workers=0', 'test_dataloader.persistent_workers=False')
    more = ('--cfg-options', *test, 'model.head.num_classes=10')
    assert call('test', leaf, work_dir / 'epoch_1.pth', *more) == 0


def test_probe_of_a_checkpoint_of_another_architecture(wrn, capsys):
    leaf = CONFIGS / 'transfer' / 'probe_wrn40-2_b64-120e_stl10.py'
    assert call('train', leaf, *options(f'model.backbone_ckpt={wrn}')) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f'error: model: backbone_ckpt={wrn} does not fit the network that is')
    assert line.endswith('whose model.backbone is that of the checkpoint (type, depth, widths).')
