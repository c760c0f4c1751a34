"""Luminance to chrominance: configs, and every stage on few images in the real formats."""

import copy
import re
import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from crd_plugin.checkpoints.publish import student_config
from crd_plugin.ops import rgb_to_lab
from crd_plugin.registry import DATASETS, MODELS
from tests import fake_data, small_runs
from tests.config_files import BASE, CONFIGS, fast, key_of, parsed
from tests.test_cli.test_arguments import call

FOLDER = CONFIGS / 'cross-modal'
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


pytestmark = pytest.mark.usefixtures('mmpretrain_scope')


def leaf(method, nets, data='stl10'):
    (path,) = FOLDER.glob(f'{method}_{nets}_b*_{data}.py')
    return path


def pair(net):
    return f'{net}-l_{net}-ab'


# --- the files ------------------------------------------------------------- #


@pytest.mark.parametrize('net', NETS)
def test_stages_of_a_network(net):
    """Every stage is there; what it learns from, and with which weights."""
    data = 'photos' if net == 'resnet8' else 'stl10'
    for method, fragments in METHODS.items():
        cfg = parsed(leaf(method, pair(net), f'{data}-unlabeled'))
        weights = [loss.loss_weight for loss in cfg.model.distiller.distill_losses.values()]
        assert weights == [dict(at=1000).get(name, 1.0) for name in fragments]
        assert cfg.train_dataloader.dataset.dataset.split == 'unlabeled'
        # The order of the images' channels is the data's.
        assert not cfg.data_preprocessor.get('to_rgb', False)
        if method == 'fitnet':
            records = cfg.model.distiller.loss_forward_mappings.loss_fitnet.values()
            assert all(record.data_idx == -1 for record in records)
    for kind in ('probe', 'finetune'):
        cfg = parsed(leaf(kind, f'{net}-ab', 'photos-few' if net == 'resnet8' else data))
        assert cfg.model.head.num_classes == cfg.data_preprocessor.num_classes == 10
        splits = cfg.train_dataloader.dataset.dataset.split, cfg.val_dataloader.dataset.split
        assert splits == ('train', 'test')


@pytest.mark.parametrize('path', CROSS_PAIRS, ids=lambda path: path.stem)
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
    """Train an epoch; return the weights and the last line of the log."""
    small = [
        f'default_hooks.checkpoint.{key}' for key in ('save_optimizer=False', 'save_best=None')
    ]
    assert call('train', path, *fast(*small, *more, validate=validate)) == 0
    run = Path('work_dirs', path.stem)
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
        part = 'train_dataloader.dataset.dataset.indices=8'
        options = ['model.backbone_ckpt=None', part, *options]
    assert call('train', path, '--cfg-options', *options) == 1
    *_, line = capsys.readouterr().err.splitlines()
    assert re.fullmatch(f'error: {message}', line), line
    assert not list(files.glob('work_dirs/*/*.pth'))


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
