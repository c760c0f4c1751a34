"""Transfer: settings, both stages from Tiny-ImageNet to STL-10 and linear probes on few images."""

import copy
from pathlib import Path

import pytest
import torch

from crd_plugin.registry import MODELS
from tests import fake_data, small_runs
from tests.config_files import CONFIGS, fast, parsed
from tests.test_cli.test_arguments import call

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


pytestmark = pytest.mark.usefixtures('mmpretrain_scope')


@pytest.mark.parametrize('method', LOSSES)
@pytest.mark.parametrize('pair', ['vgg19_vgg19', 'vgg19_vgg8', 'resnet18_resnet18'])
def test_settings_of_both_stages(method, pair):
    first, second = (
        parsed(CONFIGS / 'transfer' / f'{stem}.py')
        for stem in (
            f'{method}_{pair}_b64-240e_stl10-unlabeled',
            f'{method}-tuned_{pair}_b64-240e_stl10',
        )
    )
    assert first.model.distiller.distill_losses == {f'loss_{method}': LOSSES[method]}
    assert first.train_dataloader.dataset.dataset.split == 'unlabeled'
    for net in (first.model.architecture, first.model.teacher):
        assert net.head.num_classes == 200
    assert second.model.head.num_classes == 10 and second.optim_wrapper.optimizer.lr == 0.05
    splits = second.train_dataloader.dataset.dataset.split, second.val_dataloader.dataset.split
    assert splits == ('train', 'test')
    assert second.default_hooks.checkpoint.save_best == 'accuracy/top1'


def test_both_stages(tmp_path, monkeypatch, capsys):
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
    assert call('train', first, *fast(*small, validate=False)) == 0
    work_dir = tmp_path / 'work_dirs' / first.stem
    assert 'student.loss' not in small_runs.scalars(work_dir)[-1]
    distilled = small_runs.load(work_dir / 'epoch_1.pth')['state_dict']
    banks = [key for key in distilled if key.endswith('bank.labels')]
    assert len(banks) == 6
    assert all(distilled[key].numel() == 0 for key in banks)
    # The second stage starts from the last epoch.
    (work_dir / 'epoch_1.pth').rename(work_dir / 'epoch_240.pth')

    assert call('train', second, *fast()) == 0
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
    whole = fast('train_dataloader.dataset.complete=True')
    assert call('test', second, work_dir / 'epoch_1.pth', *whole) == 1
    assert 'The test set of STL10 in data/stl10_binary has 4 images' in capsys.readouterr().err


# --- linear probes --------------------------------------------------------- #


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
    cfg = parsed(leaf)
    assert cfg.optim_wrapper.optimizer.lr == 0.05
    assert cfg.param_scheduler.milestones == [30, 60, 90]
    assert cfg.model.head.num_classes == cfg.data_preprocessor.num_classes
    options = fast('model.head.num_classes=10')  # the small Tiny-ImageNet has ten classes
    assert call('train', leaf, *options) == 0
    work_dir = Path('work_dirs') / leaf.stem
    assert 'accuracy/top1' in small_runs.scalars(work_dir)[-1]
    found, before = (small_runs.load(p)['state_dict'] for p in (work_dir / 'epoch_1.pth', wrn))
    for key, value in found.items():
        assert ('head.' in key) != torch.equal(value, before[f'architecture.{key}'])
    # A checkpoint of a probe holds all of it.
    wrn.unlink()
    assert call('test', leaf, work_dir / 'epoch_1.pth', *options) == 0


def test_probe_of_a_checkpoint_of_another_architecture(wrn, capsys):
    leaf = CONFIGS / 'transfer' / 'probe_wrn40-2_b64-120e_stl10.py'
    assert call('train', leaf, *fast(f'model.backbone_ckpt={wrn}')) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f'error: model: backbone_ckpt={wrn} does not fit the network that is')
    assert line.endswith('whose model.backbone is that of the checkpoint (type, depth, widths).')
