"""ResidentPipeline against the pipeline that it takes apart."""

import itertools
from unittest import mock

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from crd_plugin.datasets.resident import ResidentPipeline
from tests.test_datasets.toy_dataset import PACK, Numbers
from tests.test_ops.test_augment import pictures

CROP = dict(type='RandomCrop', crop_size=8, padding=2)
RESIZED = dict(type='RandomResizedCrop', scale=8, backend='pillow')
FLIP = dict(type='RandomFlip', prob=0.5, direction='horizontal')


def parse(*configs):
    """Return the pipeline as mmpretrain runs it, and taken apart."""
    dataset = Numbers(pipeline=[dict(config) for config in configs])
    return dataset.pipeline, ResidentPipeline(dataset)


def infos(count, height=8, width=8):
    """Return annotations with an image."""
    images = pictures(count, height, width).permute(0, 2, 3, 1).numpy()
    return [
        dict(img=image, gt_label=number, sample_idx=number) for number, image in enumerate(images)
    ]


def read(pipeline, count, height=8, width=8):
    """Return what is kept of some images."""
    return torch.stack([pipeline.read(info)[0] for info in infos(count, height, width)])


def original(whole, info, box=None, flipped=None):
    """Return the image of the original pipeline, for given draws."""
    for transform in whole.transforms:
        if box is not None and hasattr(transform, 'rand_crop_params'):
            transform.rand_crop_params = mock.Mock(return_value=box)
        if flipped is not None and hasattr(transform, '_choose_direction'):
            turn = transform.direction if flipped else None
            transform._choose_direction = mock.Mock(return_value=turn)
    return whole(dict(info))['inputs']


@pytest.mark.parametrize(
    'crop',
    [
        dict(crop_size=8, padding=2),
        dict(crop_size=(7, 9), padding=(1, 3), pad_val=9),
        dict(crop_size=8, padding=(0, 1, 2, 3), pad_val=(10, 20, 30)),
        dict(crop_size=8, padding=2, padding_mode='reflect'),
        dict(crop_size=6),
        dict(crop_size=(8, 12), pad_if_needed=True, padding_mode='reflect'),
        dict(crop_size=12, pad_if_needed=True, pad_val=7),
        dict(crop_size=10, padding=2, pad_if_needed=True, padding_mode='edge'),
        dict(crop_size=(20, 5), padding=1),
    ],
)
@pytest.mark.parametrize('direction', ['horizontal', 'vertical', 'diagonal'])
def test_every_crop_and_flip_has_the_bits_of_the_original(crop, direction):
    whole, pipeline = parse(
        dict(type='RandomCrop', **crop),
        dict(type='RandomFlip', prob=0.5, direction=direction),
        PACK,
    )
    images = read(pipeline, 2)
    wanted = np.broadcast_to(crop['crop_size'], 2).tolist()
    target = tuple(map(min, images.shape[2:], wanted))
    rooms = [range(full - size + 1) for full, size in zip(images.shape[2:], target)]
    cases = list(itertools.product(range(2), *rooms, [False, True]))
    rows, tops, lefts, flips = map(torch.tensor, zip(*cases))
    found = pipeline.make(images, rows, dict(box=torch.stack([tops, lefts], 1), flip=flips))
    both = infos(2)
    for image, (row, top, left, flipped) in zip(found, cases):
        assert torch.equal(image, original(whole, both[row], (top, left, *target), flipped))


def test_draws_are_uniform():
    state = torch.get_rng_state()
    _, pipeline = parse(CROP, FLIP, PACK)
    draws = pipeline.draw(40000, (12, 12), seed=2**64 - 1)
    top, left = draws['box'].unbind(1)
    # Every crop and flip occurs, all as often.
    occurrences = np.bincount((top * 5 + left) * 2 + draws['flip'], minlength=50)
    assert len(occurrences) == 50 and occurrences.min() > 0
    assert chisquare(occurrences).pvalue > 1e-3
    # Neighbouring images have nothing to do with each other.
    columns = torch.stack([top[:-1], left[:-1], top[1:], left[1:]]).double()
    assert (columns.corrcoef() - torch.eye(4)).abs().max() < 0.02
    for prob, slack in ((0.0, 0), (0.2, 0.012), (1.0, 0)):
        flips = parse(dict(FLIP, prob=prob), PACK)[1].draw(20000, (8, 8), 0)['flip']
        assert abs(flips.double().mean() - prob) <= slack
    # They depend on the seed alone, and leave the global generator as it is.
    again, other = (pipeline.draw(40000, (12, 12), seed) for seed in (2**64 - 1, 1))
    assert torch.equal(draws['box'], again['box']) and torch.equal(draws['flip'], again['flip'])
    assert not torch.equal(draws['box'], other['box'])
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize('size', [(8, 8), (5, 12)])
def test_resized_crops(size):
    whole, pipeline = parse(dict(RESIZED, scale=(16, 12)), FLIP, PACK)
    images = read(pipeline, 3, *size)
    draws = pipeline.draw(60, size, 0)
    rows = torch.arange(60) % 3
    found = pipeline.make(images, rows, draws)
    three = infos(3, *size)
    for number, image in enumerate(found):
        box, flipped = draws['box'][number].tolist(), draws['flip'][number]
        assert torch.equal(image, original(whole, three[number % 3], box, flipped))
    assert len(draws['box'].unique(dim=0)) > 30


EDGE = dict(type='ResizeEdge', scale=10, backend='pillow')


@pytest.mark.parametrize(
    'fixed, size',
    [
        ([dict(type='Resize', scale=(9, 7))], (8, 8)),
        ([dict(type='ResizeEdge', scale=10)], (8, 12)),
        ([EDGE, dict(type='CenterCrop', crop_size=6)], (12, 8)),
        ([dict(type='Pad', size=(11, 10))], (8, 8)),
        ([], (8, 8)),
    ],
)
def test_what_is_fixed_is_done_once_by_the_original(fixed, size):
    whole, pipeline = parse(*fixed, PACK)
    assert not pipeline.random and pipeline.draw(3, size, 0) == {}
    found = pipeline.make(read(pipeline, 2, *size), torch.tensor([1, 0, 1]), {})
    for info, image in zip(infos(2, *size), found[[1, 0]]):
        expected = whole(dict(info))
        assert torch.equal(image, expected['inputs'])
        _, label, metainfo = pipeline.read(dict(info))
        assert metainfo == expected['data_samples'].metainfo
        assert label == expected['data_samples'].gt_label.item()


@pytest.mark.parametrize('label', [3, np.array([3]), [3]])
def test_labels(label):
    _, pipeline = parse(PACK)
    found = pipeline.read(dict(infos(1)[0], gt_label=label))[1]
    assert found == 3 and type(found) is int
    assert pipeline.read(dict(img=infos(1)[0]['img']))[1] is None


TURNS = dict(FLIP, prob=[0.2, 0.3], direction=['horizontal', 'vertical'])


@pytest.mark.parametrize(
    'configs, message',
    [
        (
            [dict(type='ColorJitter'), PACK],
            'ColorJitter in the pipeline of Numbers is unknown or out of place; the order is.*'
            'LoadImageFromFile.*without ResidentDataset',
        ),
        ([FLIP, CROP, PACK], 'RandomFlip .* out of place; the order is'),
        ([CROP, RESIZED, PACK], 'RandomCrop .* out of place'),
        ([CROP, dict(type='Resize', scale=4), PACK], 'RandomCrop .* out of place'),
        ([PACK, PACK], 'PackInputs .* out of place'),
        ([CROP, FLIP], 'pipeline of Numbers must end with'),
        ([dict(RESIZED, backend='cv2'), PACK], "RandomResizedCrop .* has .*'cv2', 'bilinear'"),
        ([dict(RESIZED, interpolation='bicubic'), PACK], r"'bicubic'\), expected \('pillow', 'bil"),
        ([TURNS, PACK], 'RandomFlip .* has several directions, expected one'),
    ],
)
def test_what_cannot_be_done_is_refused(configs, message):
    with pytest.raises(ValueError, match=message):
        parse(*configs)


@pytest.mark.parametrize(
    'pack, change, message',
    [
        (
            {},
            dict(img=np.zeros((8, 8, 3), np.float32)),
            'image is of type torch.float32, expected a uint8',
        ),
        (dict(input_key='image'), {}, 'of type NoneType'),
        ({}, dict(gt_label=[1, 2]), r"it has {'gt_label': \[1, 2\]}"),
        ({}, dict(gt_score=[0.5, 0.5]), "has {.*'gt_score'.* but .* one class per sample"),
        (dict(algorithm_keys=('box',)), dict(box=np.zeros(4)), "has {.*'box'"),
    ],
)
def test_samples_that_cannot_be_kept_are_refused(pack, change, message):
    _, pipeline = parse(dict(PACK, **pack))
    with pytest.raises(ValueError, match=message):
        pipeline.read({**infos(1)[0], **change})


def test_broken_image(tmp_path):
    _, pipeline = parse(dict(type='LoadImageFromFile', ignore_empty=True), PACK)
    with pytest.raises(ValueError, match='image is of type NoneType, expected'):
        pipeline.read(dict(img_path=str(tmp_path / 'none.png'), sample_idx=7))


def test_what_is_random_is_told_apart():
    first = parse(CROP, FLIP, PACK)[1].random
    # What is done once may differ.
    assert first == parse(dict(type='Resize', scale=4), CROP, FLIP, PACK)[1].random
    other_crop, other_flip = dict(CROP, crop_size=7), dict(FLIP, prob=0.4)
    for other in ([CROP], [FLIP], [RESIZED, FLIP], [other_crop, FLIP], [CROP, other_flip]):
        assert parse(*other, PACK)[1].random != first
    narrow = parse(dict(RESIZED, max_attempts=3), PACK)[1]
    assert narrow.random != parse(RESIZED, PACK)[1].random
