"""Tests of the one call, on digits as a folder of images."""

import inspect
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmpretrain import get_model
from PIL import Image
from sklearn.datasets import load_digits

import crd_plugin
from crd_plugin import __main__ as command
from crd_plugin.cli.arguments import UsageError
from crd_plugin.compat import load_checkpoint_file
from crd_plugin.fragments import join
from tests import small_runs
from tests.test_cli.test_arguments import call
from tests.test_cli.test_networks import Small

STUDENT = 'tests.test_cli.test_networks.Small'
FAST = ('train_dataloader.num_workers', 'val_dataloader.num_workers')


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """Four training and two test images of each digit, and all training images in one folder."""
    root, digits = tmp_path_factory.mktemp('images'), load_digits()
    for digit in range(10):
        pixels = digits.images[digits.target == digit][:6] * 255 / 16
        for number, image in enumerate(pixels.astype(np.uint8)):
            split, name = ('train', 'val')[number >= 4], f'{digit}_{number}.png'
            for folder in (Path(split, str(digit)), Path(f'flat_{split}')):
                (root / folder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(root / folder / name)
    return root


@pytest.fixture(scope='module')
def teacher():
    torch.manual_seed(0)
    return Small(10, width=12)


@pytest.fixture(scope='module')
def distil(images, teacher):
    """The call with what all runs share."""

    def run(work_dir, train='train', val='val', **kwargs):
        options = {key: 0 for key in FAST if val is not None or 'val' not in key}
        shared = dict(student=STUDENT, teacher=teacher, epochs=2, batch_size=16, image_size=16)
        kwargs = {**shared, **kwargs, 'cfg_options': {**options, **kwargs.get('cfg_options', {})}}
        kwargs |= dict(val_data=None if val is None else images / val, work_dir=work_dir)
        return crd_plugin.distill(train_data=images / train, **kwargs)

    return run


@pytest.fixture(scope='module')
def run(distil, tmp_path_factory):
    options = {
        'model.distiller.distill_losses.loss_crd.num_negatives': 8,
        'train_dataloader.dataset.dataset.pipeline.3.prob': 0.0,
        'default_hooks.logger.interval': 1,
    }
    return distil(tmp_path_factory.mktemp('run') / 'crd', cfg_options=options)


def test_trains_with_the_given_teacher_and_every_image(run, teacher):
    weights = load_checkpoint_file(run.checkpoint)['state_dict']
    for key, value in teacher.state_dict().items():
        assert torch.equal(weights[f'teacher.backbone.{key}'], value)
    assert weights['distiller.distill_losses.loss_crd.bank.student'].shape == (40, 128)
    lines = small_runs.scalars(run.config.parents[1])
    steps = [line for line in lines if 'distill.loss_crd' in line]
    assert len(steps) == 6 and all('student.loss' in line for line in steps)
    accuracies = [line['accuracy/top1'] for line in lines if 'accuracy/top1' in line]
    assert len(accuracies) == 2
    assert run.last == pytest.approx(accuracies[-1]) and run.best == max(accuracies)


def test_config_that_was_written_gives_the_same_accuracy(run, tmp_path):
    flags = ['--out', tmp_path / 'm.json', '--out-item', 'metrics', '--work-dir', tmp_path]
    assert call('test', run.config, run.checkpoint, *flags) == 0
    assert json.loads((tmp_path / 'm.json').read_text())['accuracy/top1'] == run.last


def test_config_is_a_pair_a_fragment_and_settings(run, images):
    cfg = Config.fromfile(run.config)
    expected = join(cfg.pair, cfg.crd)
    expected.distiller.distill_losses.loss_crd.num_negatives = 8
    assert cfg.model == expected
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(0.05 * 16 / 64)
    assert cfg.param_scheduler.end == cfg.train_cfg.max_epochs == 2
    assert cfg.default_hooks.logger == dict(type='LoggerHook', interval=1)  # merged into the base
    dataset = cfg.train_dataloader.dataset.dataset
    assert dataset.pipeline[3].prob == 0 and dataset.data_root == str(images / 'train')
    assert cfg.test_dataloader.dataset == cfg.val_dataloader.dataset
    text = run.config.read_text()
    assert len(text.splitlines()) < 80
    assert '_base_.train_dataloader.dataset.dataset.pipeline[3].prob = 0.0\n' in text


def test_student_is_published(run):
    weights = load_checkpoint_file(run.checkpoint)['state_dict']
    cfg = Config.fromstring(load_checkpoint_file(run.student)['meta']['cfg'], '.py')
    model = get_model(cfg, pretrained=str(run.student))
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[f'architecture.{key}'])
    assert model._dataset_meta['classes'] == tuple('0123456789')


def test_recipe_follows_the_size_of_the_images(distil, tmp_path):
    """Large images have ImageNet's; what fails in the dry run leaves its config."""
    with pytest.raises(UsageError, match='val_interval is 0'):
        distil(tmp_path / 'run', image_size=96, cfg_options={'train_cfg.val_interval': 0})
    assert not list(tmp_path.rglob('*.pth'))
    cfg = Config.fromfile(tmp_path / 'run' / 'recipe' / 'run.py')
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(0.1 * 16 / 256)
    crop = cfg.train_dataloader.dataset.dataset.pipeline[1]
    assert crop == dict(type='RandomResizedCrop', scale=96, backend='pillow')
    sizes = [
        part.get('scale', part.get('crop_size')) for part in cfg.val_dataloader.dataset.pipeline
    ]
    assert sizes == [None, 109, 96, None]
    assert cfg.model.input_shape == (3, 96, 96)


def test_without_labels(distil, tmp_path):
    """A folder without classes takes the fragments without labels; kd trains the classifier."""
    result = distil(tmp_path / 'run', 'flat_train', method='crd+kd', epochs=1)
    text = result.config.read_text()
    assert 'distillers/crd_unlabeled.py' in text and 'distillers/kd_unlabeled.py' in text
    cfg = Config.fromfile(result.config)
    assert cfg.model.calculate_student_loss is False and cfg.find_unused_parameters is True
    weights = load_checkpoint_file(result.checkpoint)['state_dict']
    assert weights['distiller.distill_losses.loss_crd.bank.student'].shape == (40, 128)
    assert 0 <= result.last <= 100


def test_without_labels_and_validation(distil, tmp_path):
    """The classes of a folder do not count for a method without labels."""
    result = distil(tmp_path / 'run', 'train', None, method=['crd_unlabeled'], epochs=1)
    assert result.last is result.best is None
    data = Config.fromfile(result.config).train_dataloader.dataset.dataset
    assert data.with_label is False
    assert result.checkpoint.name == 'epoch_1.pth' and result.student.exists()
    with pytest.raises(UsageError, match='has a run already: a run with a module'):
        distil(tmp_path / 'run', 'train')


def test_linked_folders_other_endings_and_files_that_are_no_images(
    distil, images, tmp_path, caplog
):
    """A link to the folder of a class is read; .webp too; what is passed over is said."""
    folder = tmp_path / 'linked'
    folder.mkdir()
    for digit in range(10):
        (folder / str(digit)).symlink_to(images / 'train' / str(digit))
    own = folder / '9'
    own.unlink()
    own.mkdir()
    for file in (images / 'train' / '9').iterdir():
        Image.open(file).save(own / f'{file.stem}.webp', lossless=True)
    (own / 'labels.json').write_text('{}')
    result = distil(tmp_path / 'run', folder, epochs=1)
    weights = load_checkpoint_file(result.checkpoint)['state_dict']
    assert weights['distiller.distill_losses.loss_crd.bank.student'].shape == (40, 128)
    log = next((tmp_path / 'run').glob('*/*.log')).read_text()
    assert f'train_data {folder}: 1 files are passed over (.json); images end in .jpg, ' in log


def test_wrong_folders(distil, images, tmp_path):
    bad = images / 'bad'
    for name in ('mixed/0', 'empty', 'other/0', 'other/x', 'hidden/0', 'hidden/.ipynb_checkpoints'):
        (bad / name).mkdir(parents=True)
    image = next((images / 'flat_val').iterdir()).read_bytes()
    for name in (
        'mixed/0/a.png',
        'mixed/a.PNG',
        'other/0/a.png',
        'other/x/a.png',
        'hidden/0/a.png',
    ):
        (bad / name).write_bytes(image)
    for train, val, message in (
        ('none', 'val', 'train_data .*none.* is not a folder'),
        ('bad/empty', 'val', 'empty has no images'),
        ('bad/hidden', 'val', 'without images, each .* a class: .ipynb_checkpoints; move them'),
        ('bad/mixed', 'val', 'mixed has both images and folders; put each image'),
        ('train', 'flat_val', 'flat_val has images without classes; give'),
        ('flat_train', 'flat_val', 'or leave val_data out'),
        ('train', 'bad/other', 'other must have .* only one of them has 1, 2, 3, 4, 5\\.'),
    ):
        with pytest.raises(UsageError, match=message):
            distil(tmp_path, train, val)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(method='crdd'), "method 'crdd' is unknown; the nearest are crd"),
        (dict(method='crd+ab'), "method 'ab' needs a schedule or data of its own; write a config"),
        (dict(method='online_kd'), 'see docs/methods/online-kd.md'),
        (dict(epochs=0), 'epochs is 0, expected an integer of at least 1'),
        (dict(teacher=STUDENT), "Small has no weights; give its file as teacher_checkpoint, or 'p"),
        (dict(teacher='cifar/resnet8'), 'teacher resnet8 has no weights'),
        (dict(teacher_checkpoint='no.pth'), 'teacher_checkpoint no.pth does not exist'),
        (dict(teacher_checkpoint={}), 'teacher_checkpoint is a dict, expected a file'),
        (dict(teacher={'conv.weight': 0}), 'a dict is the config of a network, with `type`'),
        (dict(student=partial(print)), 'a config cannot name a partial'),
        (dict(student='resnet'), "no network 'resnet'; the nearest are"),
        (dict(method='at'), 'stages: Small returns Tensor, expected a tuple with one map per'),
        (dict(lr=-1.0), 'lr is -1.0, expected a finite number that is not negative'),
        (dict(lr='0.1'), "lr is '0.1', expected a number"),
        (dict(lr=float('nan')), 'lr is nan, expected a finite number'),
        (dict(method=None), "method is None, expected a name such as 'crd', or several"),
        (dict(seed=torch.tensor(3)), 'randomness.seed is tensor.3., expected what a config can'),
        (dict(cfg_options={'train_cfg.max_epochs': None}), 'max_epochs is None, expected an int'),
        (
            dict(cfg_options={'tain_cfg.max_epochs': 1}),
            'tain_cfg.max_epochs: nothing reads a setting of this name; the nearest .* train_cfg',
        ),
        (dict(cfg_options={'model.distilller.a': 1}), 'distilller'),
        (
            dict(cfg_options={'val_dataloader.dataset.pipeline.9.a': 1}),
            'val_dataloader.dataset.pipeline.9.a cannot be set: ',
        ),
    ],
    ids=str,
)
def test_wrong_argument(distil, tmp_path, kwargs, message):
    with pytest.raises(UsageError, match=message):
        distil(tmp_path / 'run', **kwargs)
    assert not list(tmp_path.rglob('*.pth'))


def test_numpy_numbers_and_paths(distil, tmp_path, images):
    load = {'load_from': tmp_path / 'gone.pth'}
    with pytest.raises(UsageError, match='gone.pth does not exist'):
        distil(tmp_path / 'run', lr=np.float64(0.1), seed=np.int64(3), cfg_options=load)
    cfg = Config.fromfile(tmp_path / 'run/recipe/run.py')
    assert (cfg.optim_wrapper.optimizer.lr, cfg.randomness.seed) == (0.1, 3)
    with pytest.raises(UsageError, match='cfg_options is .* expected a dict by dotted name'):
        crd_plugin.distill(STUDENT, STUDENT, images / 'train', cfg_options=['a=1'])


def test_command_line(images, run, tmp_path, capsys, monkeypatch):
    """The published student of one run is the teacher of another."""
    monkeypatch.chdir(tmp_path)
    argv = ['--student', STUDENT, '--teacher', run.student, '--train', images / 'train', '--val']
    argv += [images / 'val', '--image-size', 16, '--epochs', 1, '--lr', 0.1, '--method', 'kd']
    argv += ['--cfg-options', *(f'{key}=0' for key in FAST)]
    command.main(['distill', *map(str, argv)])
    found = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[-5:])
    assert set(found) == set(run._fields) and found['last'].endswith('% top-1')
    folder = f'work_dirs/kd_{run.student.name}_{STUDENT}'
    assert found['config'] == f'{folder}/recipe/{Path(folder).name}.py'
    with pytest.raises(UsageError, match=f'tools/train.py {found["config"]} --resume. goes on'):
        command.main(['distill', *map(str, argv)])
    cfg = Config.fromfile(found['config'])
    assert cfg.optim_wrapper.optimizer.lr == 0.1 and cfg.model.teacher_ckpt == str(run.student)


def test_help_names_the_defaults(capsys):
    with pytest.raises(SystemExit):
        command.main(['distill', '--help'])
    text = ' '.join(capsys.readouterr().out.split())
    signature = inspect.signature(crd_plugin.distill).parameters
    for name in ('method', 'epochs', 'batch_size', 'image_size', 'seed'):
        assert f'(default: {signature[name].default})' in text, name
    parsed = vars(command.parse_args(['distill', *'--student a --teacher b --train c'.split()]))
    assert set(parsed) == {'command', 'student', 'teacher', 'train_data'}
    every = {
        flag.strip('[').removeprefix('--').replace('-', '_')
        for flag in text.split()
        if '--' in flag
    }
    assert set(signature) - {'train_data', 'val_data'} <= every
