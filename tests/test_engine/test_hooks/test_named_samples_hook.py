"""Tests of the name of a sample that cannot be read."""

import numpy as np
import pytest
from mmpretrain.datasets import KFoldDataset
from PIL import Image

from crd_plugin.datasets import _checks
from crd_plugin.engine import NamedSamplesHook
from tests import small_runs

IMAGES = 6


@pytest.fixture
def images(tmp_path):
    """A folder of images, of which the third is cut off."""
    for number in range(IMAGES):
        folder = tmp_path / 'images' / 'ab'[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f'{number}.png')
    broken = tmp_path / 'images' / 'a' / '2.png'
    broken.write_bytes(broken.read_bytes()[:100])
    load = dict(type='LoadImageFromFile', imdecode_backend='pillow')
    pipeline = [load, dict(type='PackInputs')]
    return dict(type='CustomDataset', data_root=str(tmp_path / 'images'), pipeline=pipeline)


@pytest.mark.parametrize('loop', ['train', 'test'])
def test_images_that_are_missing_for_validation_or_testing(tmp_path, monkeypatch, loop):
    """Before the first step, and only if asked; ``indices`` takes a part on purpose."""
    monkeypatch.setitem(_checks._IMAGES, 'Digits', dict(test=1001))
    pack = [dict(type='PackInputs')]
    digits = dict(type='crd_plugin.Digits', split='test', pipeline=pack, _delete_=True)
    name = 'val_dataloader__dataset' if loop == 'train' else 'test_dataloader__dataset'
    runner = small_runs.build(tmp_path / 'run', NamedSamplesHook(complete=True), **{name: digits})
    message = 'The test set of Digits .* has 1,000 images, expected 1,001; .* holds for every split'
    with pytest.raises(ValueError, match=message):
        getattr(runner, loop)()
    assert runner.iter == 0
    for hook, changes in ((NamedSamplesHook(), {name: digits}), (NamedSamplesHook(True), {})):
        getattr(small_runs.build(tmp_path / 'run', hook, **changes), loop)()


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize('loop', ['train', 'val', 'test'])
def test_file_is_named(images, tmp_path, loop, workers):
    """Also from data workers, and inside of a wrapper."""
    kfold = dict(type=KFoldDataset, dataset=images, fold=0, num_splits=1, test_mode=True)
    changes = {
        f'{loop}_dataloader__dataset': dict(kfold, _delete_=True),
        f'{loop}_dataloader__num_workers': workers,
    }
    if loop == 'train':
        changes |= dict(model=small_runs.net(6), custom_hooks=[])
        changes['model']['_delete_'] = True
    runner = small_runs.build(tmp_path / 'run', NamedSamplesHook(), **changes)
    with pytest.raises(
        ValueError, match=r'/a/2\.png \(sample 1 of CustomDataset\) cannot be read: '
    ):
        getattr(runner, loop)()
