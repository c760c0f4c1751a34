"""Luminance to chrominance: configs, and every stage on few images in the real formats."""

import copy
import re
import runpy

import cv2
import numpy as np
import pytest
import torch
from mmengine.fileio import load
from mmengine.registry import DefaultScope

from crd_plugin.checkpoints.publish import student_config
from crd_plugin.cli.dry_run import dry_run_file, run_dry
from crd_plugin.fragments import join
from crd_plugin.ops import rgb_to_lab
from crd_plugin.registry import DATASETS, MODELS
from tests import fake_data, small_runs
from tests.config_files import APART, BASE, CONFIGS, key_of, parsed
from tests.test_cli.test_arguments import call

FOLDER = CONFIGS / 'cross-modal'
CROSS_MODAL = APART['cross-modal']
CROSS_PAIRS = sorted(BASE.glob('pairs/*-ab_*.py'))
NETS = ('alexnet', 'resnet18', 'resnet8')
METHODS = {'crd': ['crd'], 'kd': ['kd'], 'fitnet': ['fitnet'], 'kd-at': ['kd', 'at']}
# Channels, mean and std, as HobbitLong/CMC computes them.
LAB = dict(
    L=([50.0], [50.0]),
    ab=(
        [(98.233 - 86.183) / 2, (94.478 - 107.857) / 2],
        [(98.233 + 86.183) / 2, (94.478 + 107.857) / 2],
    ),
)


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


def leaf(method, nets, data='stl10'):
    """The one leaf of a method, its networks and its data."""
    (path,) = FOLDER.glob(f'{method}_{nets}_b*_{data}.py')
    return path


def pair(net):
    return f'{net}-l_{net}-ab'


def data_of(net, suffix=''):
    return ('photos' if net == 'resnet8' else 'stl10') + suffix


def stem_of(path):
    return path.stem


# --- the files ------------------------------------------------------------- #


def test_the_leaves():
    expected = {leaf('vanilla', f'{net}-l', 'tiny-imagenet') for net in NETS[:2]}
    for net in NETS:
        expected.add(leaf('vanilla', f'{net}-l', data_of(net)))
        expected |= {leaf(method, pair(net), data_of(net, '-unlabeled')) for method in METHODS}
        few = '-few' if net == 'resnet8' else ''
        expected |= {leaf(kind, f'{net}-ab', data_of(net, few)) for kind in ('probe', 'finetune')}
    assert set(CROSS_MODAL) == expected
    text = (FOLDER / 'README.md').read_text()
    meta = load(str(FOLDER / 'metafile.yml'))['Models']
    assert {row['Name'] for row in meta} == {path.stem for path in CROSS_MODAL} and len(meta) == 23
    for row in meta:
        path = FOLDER / f'{row["Name"]}.py'
        assert row['Config'] == f'configs/cross-modal/{path.name}' and f'({path.name})' in text
        cfg, data = parsed(path), row['Metadata']
        assert data['Epochs'] == cfg.train_cfg.max_epochs
        assert data['Batch Size'] == cfg.train_dataloader.batch_size
        assert path.stem.split('_')[-2] == f'b{data["Batch Size"]}-{data["Epochs"]}e'
    for path in re.findall(r'(?:configs|tools)/[\w./-]+\.py', text):
        assert (small_runs.REPO / path).is_file(), path


@pytest.mark.parametrize('path', CROSS_PAIRS, ids=stem_of)
def test_a_pair_differs_only_in_what_it_sees(path):
    networks = dict(L=parsed(path).pair.teacher, ab=parsed(path).pair.architecture)
    plain = []
    for channels, network in networks.items():
        mean, std = LAB[channels]
        given = network.data_preprocessor
        assert given.view == dict(type='crd_plugin.LabView', channels=channels)
        assert (given.mean, given.std) == (pytest.approx(mean), pytest.approx(std))
        assert network.backbone.in_channels == len(mean)
        plain.append(
            key_of(
                dict(network, data_preprocessor=0, backbone=dict(network.backbone, in_channels=0))
            )
        )
    assert plain[0] == plain[1]


@pytest.mark.parametrize('net', NETS)
def test_distillation_without_labels(net):
    teacher_ckpt = parsed(leaf('crd', pair(net), data_of(net, '-unlabeled'))).model.teacher_ckpt
    run, epoch = re.fullmatch(r'work_dirs/([\w-]+)/epoch_(\d+)\.pth', teacher_ckpt).groups()
    trained = parsed(FOLDER / f'{run}.py')
    assert trained.train_cfg.max_epochs == int(epoch)
    for method, fragments in METHODS.items():
        cfg = parsed(leaf(method, pair(net), data_of(net, '-unlabeled')))
        assert cfg.model == join(cfg.pair, *(cfg[name] for name in fragments))
        losses = cfg.model.distiller.distill_losses
        assert list(losses) == [f'loss_{name}' for name in fragments]
        weights = [loss.loss_weight for loss in losses.values()]
        assert weights == [dict(at=1000).get(name, 1.0) for name in fragments]
        assert 'gt_label' not in str(cfg.model.distiller)
        assert cfg.model.calculate_student_loss is False
        assert cfg.train_dataloader.dataset.dataset.split == 'unlabeled'
        assert cfg.val_dataloader is None and cfg.default_hooks.checkpoint.save_best is None
        # The teacher sees what it was trained on; the images' order of channels is the data's.
        teacher = key_of(dict(cfg.model.teacher, data_preprocessor=0))
        assert teacher == key_of(dict(trained.model, data_preprocessor=0))
        given, before = (x.data_preprocessor.copy() for x in (cfg.model.teacher, trained.model))
        assert before.pop('to_rgb', False) == trained.data_preprocessor.get('to_rgb', False)
        assert given == before and not cfg.data_preprocessor.get('to_rgb', False)
    hints = parsed(leaf('fitnet', pair(net), data_of(net, '-unlabeled'))).model.distiller
    for record in hints.loss_forward_mappings.loss_fitnet.values():
        assert record.data_idx == -1


@pytest.mark.parametrize('kind', ['probe', 'finetune'])
@pytest.mark.parametrize('net', NETS)
def test_probe_and_finetuning(net, kind):
    few = '-few' if net == 'resnet8' else ''
    cfg = parsed(leaf(kind, f'{net}-ab', data_of(net, few)))
    distilled = leaf('crd', pair(net), data_of(net, '-unlabeled'))
    last = parsed(distilled).train_cfg.max_epochs
    assert cfg.model.backbone_ckpt == f'work_dirs/{distilled.stem}/epoch_{last}.pth'
    assert cfg.model.type == 'crd_plugin.LinearProbe'
    assert cfg.model.get('finetune', False) == (kind == 'finetune')
    student = parsed(distilled).model.architecture
    for key in ('backbone', 'data_preprocessor'):
        assert cfg.model[key] == student[key]
    assert cfg.model.head.num_classes == cfg.data_preprocessor.num_classes == 10
    assert cfg.train_dataloader.dataset.dataset.split == 'train'
    assert cfg.val_dataloader.dataset.split == 'test'


@pytest.mark.parametrize('path', CROSS_MODAL, ids=stem_of)
def test_dry_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no data are
    report = dry_run_file(str(path), {'train_dataloader.batch_size': 2}, use_teacher_ckpt=False)
    assert report.problems == []
    size = 32 if 'photos' in path.stem else 64
    assert f'2 x 3 x {size} x {size}' in report.images
    assert all(row.student > 0 for row in report.losses if row.summed)
    if path.stem.endswith('unlabeled'):
        seen = {row.network: row.images for row in report.inputs}
        assert seen == dict(student=f'(2, 2, {size}, {size})', teacher=f'(2, 1, {size}, {size})')
    assert not any(tmp_path.iterdir())


# --- training -------------------------------------------------------------- #


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Small Tiny-ImageNet and STL-10, and photos of the same format."""
    monkeypatch.chdir(tmp_path)
    fake_data.write_tiny_imagenet('data/tiny-imagenet-200', num_train=1, num_val=1)
    for name in ('stl10_binary', 'photos'):
        fake_data.write_stl10(f'data/{name}', num_train=8, num_test=10, num_unlabeled=8)
    return tmp_path


def train(path, *more, validate=True):
    """Train an epoch of batches of four; return the weights and the last line of the log."""
    options = [
        'train_dataloader.batch_size=4',
        'train_dataloader.dataset.complete=False',
        'train_cfg.max_epochs=1',
        'default_hooks.checkpoint.save_optimizer=False',
        'default_hooks.checkpoint.save_best=None',
    ]
    for loader in ('train', 'val')[: 2 if validate else 1]:
        options += [f'{loader}_dataloader.num_workers=0']
        options += [f'{loader}_dataloader.persistent_workers=False']
    assert call('train', path, '--cfg-options', *options, *more) == 0
    run = small_runs.REPO.__class__('work_dirs', path.stem)
    return small_runs.load(run / 'epoch_1.pth')['state_dict'], small_runs.scalars(run)[-1]


def part(weights, prefix):
    return {name[len(prefix) :]: x for name, x in weights.items() if name.startswith(prefix)}


def test_all_stages_of_the_alexnets(files):
    few = 'model.head.num_classes=10'  # the small Tiny-ImageNet has ten classes
    teacher, log = train(leaf('vanilla', 'alexnet-l', 'tiny-imagenet'), few)
    assert 'accuracy/top1' in log and teacher['backbone.conv1.0.weight'].shape == (48, 1, 3, 3)

    distil = leaf('crd', pair('alexnet'), 'stl10-unlabeled')
    more = [f'model.{network}.{few[6:]}' for network in ('teacher', 'architecture')]
    more += ['model.distiller.distill_losses.loss_crd.num_negatives=4']
    checkpoint = 'work_dirs/vanilla_alexnet-l_b64-240e_tiny-imagenet/epoch_1.pth'
    weights, log = train(distil, *more, f'model.teacher_ckpt={checkpoint}', validate=False)
    assert log['loss'] == log['distill.loss_crd'] and 'student.loss' not in log
    assert all(torch.equal(x, teacher[name]) for name, x in part(weights, 'teacher.').items())
    student = part(weights, 'architecture.')
    assert student['backbone.conv1.0.weight'].shape == (48, 2, 3, 3)

    distilled = f'model.backbone_ckpt=work_dirs/{distil.stem}/epoch_1.pth'
    for kind in ('probe', 'finetune'):
        found, log = train(leaf(kind, 'alexnet-ab'), distilled)
        assert 'accuracy/top1' in log
        same = {torch.equal(x, student[name]) for name, x in found.items() if 'backbone' in name}
        assert same == {kind == 'probe'}


@pytest.mark.parametrize('method', METHODS)
def test_every_method_and_a_teacher_of_the_same_data(files, method):
    teacher, _ = train(leaf('vanilla', 'resnet8-l', 'photos'))
    more = ['model.teacher_ckpt=work_dirs/vanilla_resnet8-l_b50-20e_photos/epoch_1.pth']
    if method == 'crd':
        more += ['model.distiller.distill_losses.loss_crd.num_negatives=4']
    path = leaf(method, pair('resnet8'), 'photos-unlabeled')
    weights, log = train(path, *more, validate=False)
    assert set(log) >= {f'distill.loss_{name}' for name in METHODS[method]}
    assert all(torch.equal(x, teacher[name]) for name, x in part(weights, 'teacher.').items())


def test_luminance_is_that_of_the_files(files):
    """The order of channels is another in Tiny-ImageNet's pipeline than in STL-10's."""
    leaves = [leaf('vanilla', 'alexnet-l', data) for data in ('tiny-imagenet', 'stl10')]
    for path in leaves:
        cfg = copy.deepcopy(parsed(path))
        data = DATASETS.build(cfg.val_dataloader.dataset)
        place = int(np.flatnonzero(data.get_gt_labels() == 4)[0])  # yellow
        images, item = data[place]['inputs'][None], data.get_data_info(place)
        if 'img' in item:
            rgb = torch.from_numpy(item['img']).permute(2, 0, 1)[None]
            rgb = torch.nn.functional.interpolate(
                rgb.float(), (64, 64), mode='bilinear', antialias=True
            )
        else:
            rgb = torch.from_numpy(cv2.imread(item['img_path'])[..., ::-1].copy())
            rgb = rgb.permute(2, 0, 1)[None].float()
        luminance = rgb_to_lab(rgb / 255)[:, :1]
        preprocess = MODELS.build(cfg.model.data_preprocessor)
        found = preprocess(dict(inputs=images))['inputs'] * 50 + 50
        torch.testing.assert_close(found, luminance, atol=0.75, rtol=0)  # rounded pixels
        assert (luminance - rgb_to_lab(rgb.flip(1) / 255)[:, :1]).abs().min() > 1.5


def test_the_student_alone_predicts_the_same():
    """Its config is that of a network of MMPretrain for RGB images."""
    cfg = copy.deepcopy(parsed(leaf('kd', pair('resnet8'), 'photos-unlabeled')))
    cfg.model.teacher_ckpt, cfg.data_preprocessor.to_rgb = None, True
    model = MODELS.build(dict(cfg.model, data_preprocessor=cfg.data_preprocessor))
    plain = student_config(cfg.to_dict())
    alone = MODELS.build(dict(plain['model'], data_preprocessor=plain['data_preprocessor']))
    alone.load_state_dict(model.architecture.state_dict())
    batch = dict(inputs=torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8))
    batch['data_samples'] = small_runs.batch(4)[1]
    expected, found = (net.eval().test_step(copy.deepcopy(batch)) for net in (model, alone))
    for one, other in zip(expected, found):
        torch.testing.assert_close(other.pred_score, one.pred_score)


@pytest.mark.parametrize(
    'name, options, message',
    [
        (
            'kd',
            ['model.teacher_ckpt=None', 'model.architecture.data_preprocessor=None'],
            'model.architecture.backbone.in_channels is 2, but the feature has 3 channels, .* or '
            'let the student see 2 channels by model.student_view.',
        ),
        (
            'finetune',
            ['model.data_preprocessor=None'],
            'model.backbone.in_channels is 2, but the feature has 3 channels, .* in_channels=3.',
        ),
        (
            'finetune',
            [
                'model.data_preprocessor.view.type=crd_plugin.ChannelView',
                'model.data_preprocessor.view.channels=[2,3]',
            ],
            r'.*ChannelView asks for channels \[2, 3\], but the images have 3, .*',
        ),
    ],
)
def test_images_that_do_not_fit(files, capsys, name, options, message):
    """One line each, before the first iteration."""
    path = leaf('kd', pair('resnet8'), 'photos-unlabeled')
    if name == 'finetune':
        path = leaf(name, 'resnet8-ab', 'photos-few')
        options = ['model.backbone_ckpt=None', *options]
    assert call('train', path, '--cfg-options', *options) == 1
    *_, line = capsys.readouterr().err.splitlines()
    assert re.fullmatch(f'error: {message}', line), line
    assert not list(files.glob('work_dirs/*/*.pth'))


@pytest.mark.parametrize('method, nets', [('vanilla', 'alexnet-l'), ('kd', pair('alexnet'))])
def test_grey_images(method, nets):
    data = 'stl10' if method == 'vanilla' else 'stl10-unlabeled'
    cfg = copy.deepcopy(parsed(leaf(method, nets, data)))
    cfg.model.pop('teacher_ckpt', None)
    grey = dict(type='RandomGrayscale', prob=1.0, keep_channels=False)
    cfg.train_dataloader.dataset.dataset.pipeline.insert(1, grey)
    (problem,) = run_dry(cfg).problems
    assert 'LabView is given images of 1 channels, expected 3, which are red,' in problem


def test_photos(tmp_path, monkeypatch):
    """The files are STL-10's; no pixel of a test patch is in a training patch."""
    monkeypatch.chdir(tmp_path)
    script = runpy.run_path(str(small_runs.REPO / 'docs/examples/make_photos.py'))
    positions = np.stack(np.meshgrid(np.arange(640), np.arange(427)), -1).astype(np.float32)
    photos = [np.dstack([positions, np.full((427, 640), i, np.float32)]) for i in range(2)]
    seen = [np.zeros((2, 427, 640), bool) for _ in range(2)]
    classes = set()
    for black in (0, 1):
        for _ in range(2000):
            patch, number = script['draw'](np.random.default_rng(_), photos, black)
            column, row, photo = np.rint(patch[[0, -1]][:, [0, -1]]).astype(int).T
            seen[black][photo.min(), row.min() : row.max() + 1, column.min() : column.max() + 1] = 1
            assert number == 5 * photo.min() + column.min() // 128
            classes.add(number)
    assert not (seen[0] & seen[1]).any() and classes == set(range(10))
