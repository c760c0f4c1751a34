"""ImageNet to NYU-Depth: settings, and both stages on small data in the true format."""

import re

import h5py
import pytest
import torch

from crd_plugin.cli.comparison import read_published
from crd_plugin.cli.dry_run import dry_run_file
from tests import fake_data, small_runs
from tests.config_files import CONFIGS, fast, key_of, parsed
from tests.test_cli.test_arguments import call

FRAGMENTS = {
    'crd': ['crd'],
    'crd-batch': ['crd'],
    'kd': ['kd'],
    'kd-at': ['kd', 'at'],
    'fitnet': ['fitnet'],
}
ROOT = 'data/nyu-depth-v2'


pytestmark = pytest.mark.usefixtures('mmpretrain_scope')


def config(name):
    return CONFIGS / 'depth' / f'{name}.py'


def test_figures_of_the_paper():
    """Each belongs to the second stage behind the first stage of its method."""
    figures = read_published()
    rows = figures[figures['config'].str.startswith('depth/')]
    assert len(rows) == 10 and set(rows['table']) == {'5'}
    for row in rows.itertuples():
        method = row.method.lower().replace('+', '-')
        leaf = CONFIGS / row.config
        if method == 'random init':
            assert 'init_cfg' not in parsed(leaf).model.backbone
            continue
        first = parsed(leaf).model.backbone.init_cfg.checkpoint.split('/')[1]
        assert first == f'{method}_resnet18_conv5_b16-200e_nyu-depth'


@pytest.mark.parametrize('method', FRAGMENTS)
@pytest.mark.parametrize(
    'teacher, first, second',
    [
        ('resnet18', 'b16-200e_nyu', 'b16-200e_nyu'),
        ('resnet14', 'b64-40e_digits', 'b20-100e_digits'),
    ],
)
def test_settings_of_both_stages(teacher, first, second, method):
    one = parsed(config(f'{method}_{teacher}_conv5_{first}-depth'))
    loss = one.model.distiller.distill_losses.get('loss_crd')
    if loss:
        assert loss.type == 'crd_plugin.DenseCRDLoss'
        assert (loss.temperature, loss.exclude, loss.loss_weight) == (0.1, 'instance', 1.0)
        assert loss.get('negatives', 'bank') == ('batch' if method == 'crd-batch' else 'bank')
    assert one.train_dataloader.dataset.dataset.inputs == ['rgb', 'depth']
    two = parsed(config(f'{method}-tuned_{teacher}_conv5_{second}-depth'))
    for loader in (two.train_dataloader.dataset, two.val_dataloader, two.test_dataloader):
        assert loader.dataset.inputs == ['depth']
    classes = two.model.head.num_classes
    assert two.val_evaluator.num_classes == two.test_evaluator.num_classes == classes
    alone = parsed(config(f'vanilla_conv5_{second}-depth')).model
    assert alone.head == two.model.head
    assert key_of(alone.backbone) == key_of(one.model.architecture.backbone)


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fake_data.write_nyu_depth(ROOT, num_train=4)
    return tmp_path / ROOT


def options(*more, validate=True):
    scale = 'train_dataloader.dataset.dataset.pipeline.0.scale=64,48'
    return fast(scale, 'param_scheduler.milestones=[1]', *more, batch=2, validate=validate)


@pytest.mark.parametrize('method', FRAGMENTS)
def test_both_stages(data, tmp_path, method):
    """The distilled weights of the backbone, and none of the head, go into the second stage."""
    leaf = config(f'{method}_resnet18_conv5_b16-200e_nyu-depth')
    first = 'model.teacher_ckpt=None', 'model.input_shape=4,48,64'
    assert call('train', leaf, *options(*first, validate=False)) == 0
    first = tmp_path / 'work_dirs' / leaf.stem
    logged = small_runs.scalars(first)[-1]
    assert {name for name in logged if 'loss_' in name} == {
        f'distill.loss_{name}' for name in FRAGMENTS[method]
    }
    state = small_runs.load(first / 'epoch_1.pth')['state_dict']
    (first / 'epoch_1.pth').rename(first / 'epoch_200.pth')
    if method not in ('crd', 'kd-at'):
        return
    leaf = config(f'{method}-tuned_resnet18_conv5_b16-200e_nyu-depth')
    size = [f'{loader}_dataloader.dataset.pipeline.0.scale=64,48' for loader in ('val', 'test')]
    rate = ['optim_wrapper.optimizer.lr=0.0', 'train_cfg.val_interval=1']
    assert call('train', leaf, *options(*size, *rate)) == 0
    second = tmp_path / 'work_dirs' / leaf.stem
    values = small_runs.scalars(second)[-1]
    assert {'segmentation/pixel_accuracy', 'segmentation/mean_iou'} <= set(values)
    assert list(second.glob('best_segmentation_mean_iou_epoch_1.pth'))
    tuned = small_runs.load(second / 'epoch_1.pth')['state_dict']
    weights = [name for name in tuned if re.search(r'backbone.*(weight|bias)$', name)]
    assert len(weights) == 15
    for name in weights:
        assert torch.equal(tuned[name], state[f'architecture.{name}'])
    assert call('test', leaf, second / 'epoch_1.pth', *options(size[1])) == 0


def test_each_network_sees_its_modality(data):
    report = dry_run_file(
        str(config('kd_resnet18_conv5_b16-200e_nyu-depth')),
        {'model.teacher_ckpt': None, 'train_dataloader.dataset.complete': False},
    )
    assert report.problems == []
    assert report.images == '4 x 4 x 240 x 320 float32 (training samples)'
    seen = {row.network: row for row in report.inputs}
    assert seen['student'].images == '(4, 1, 240, 320)'
    assert seen['teacher'].images == '(4, 3, 240, 320)'
    # The written depths are from 0.7 to 10 metres.
    assert (0.7 - 2.8) / 1.4 - 1e-4 <= seen['student'].min < -1
    assert 4 < seen['student'].max <= (10 - 2.8) / 1.4 + 1e-4
    assert seen['teacher'].max == pytest.approx(2.64, abs=0.05)


def truncate(root):
    path = root / 'nyu_depth_v2_labeled.mat'
    path.write_bytes(path.read_bytes()[:-500])


def spoil_label(root):
    with h5py.File(root / 'nyu_depth_v2_labeled.mat', 'r+') as file:
        file['labels'][:, 1, 1] = 900


@pytest.mark.parametrize(
    'damage, more, message',
    [
        (truncate, (), r'nyu_depth_v2_labeled\.mat: truncated or another file: .*get '),
        (spoil_label, (), r'image \d has the label 900, but classMapping40\.mat maps classes from'),
        (
            lambda root: None,
            ('model.head.num_classes=40',),
            'model.head.num_classes is 40, the data set has 13 classes; set it to 13',
        ),
        (
            lambda root: None,
            ('val_evaluator.num_classes=5',),
            'val_evaluator: gt_seg_map has values from 0 to 12, expected 0 to 4; set num_classes',
        ),
    ],
)
def test_bad_data_is_told_before_training(data, tmp_path, capsys, damage, more, message):
    damage(data)
    leaf = config('vanilla_conv5_b16-200e_nyu-depth')
    assert call('train', leaf, *options(*more)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line
    assert not list(tmp_path.rglob('epoch_*.pth'))
