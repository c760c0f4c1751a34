"""ResidentPipeline against the pipeline that it takes apart."""

import itertools

import numpy as np
import pytest
import torch
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from scipy.stats import chisquare

import crd_plugin  # noqa: F401
from crd_plugin.datasets.resident_pipeline import ResidentPipeline
from crd_plugin.ops import augment
from crd_plugin.registry import TRANSFORMS
from tests.test_ops.test_augment import pictures

PACK = dict(type='PackInputs')
CROP = dict(type='RandomCrop', crop_size=8, padding=2)
RESIZED = dict(type='RandomResizedCrop', scale=8, backend='pillow')
FLIP = dict(type='RandomFlip', prob=0.5, direction='horizontal')


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


def parse(*configs):
    """The pipeline as mmpretrain runs it, and taken apart."""
    whole = Compose([TRANSFORMS.build(dict(config)) for config in configs])
    return whole, ResidentPipeline(whole.transforms, 'Numbers')


def infos(count, height=8, width=8):
    """Annotations with an image."""
    images = pictures(count, height, width).permute(0, 2, 3, 1).numpy()
    return [
        dict(img=image, gt_label=number, sample_idx=number) for number, image in enumerate(images)
    ]


def hold(pipeline, count, height=8, width=8):
    """What is kept of some samples, ready to make batches of."""
    samples = [pipeline.read(info) for info in infos(count, height, width)]
    images = torch.from_numpy(np.stack([sample.image for sample in samples]))
    images = images.permute(0, 3, 1, 2).contiguous()
    pipeline.prepare(images.shape[2:], torch.device('cpu'))
    return images


def original(whole, info, box=None, flipped=None):
    """The image of the original pipeline, for given draws."""
    for transform in whole.transforms:
        if box is not None and hasattr(transform, 'rand_crop_params'):
            transform.rand_crop_params = lambda img: box
        if flipped is not None and hasattr(transform, '_choose_direction'):
            turn = transform.direction if flipped else None
            transform._choose_direction = lambda: turn
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
    images = hold(pipeline, 2)
    target = tuple(
        min(full, size)
        for full, size in zip(images.shape[2:], np.broadcast_to(crop['crop_size'], 2).tolist())
    )
    rooms = [range(full - size + 1) for full, size in zip(images.shape[2:], target)]
    cases = list(itertools.product(range(2), *rooms, [False, True]))
    rows, tops, lefts, flips = map(torch.tensor, zip(*cases))
    found = pipeline.make(images, rows, dict(box=torch.stack([tops, lefts], 1), flip=flips))
    both = infos(2)
    for image, (row, top, left, flipped) in zip(found, cases):
        expected = original(whole, both[row], (top, left, *target), flipped)
        assert torch.equal(image, expected)


def test_draws_are_uniform():
    _, pipeline = parse(CROP, FLIP, PACK)
    hold(pipeline, 1)
    table = augment.uniform_table(40000, pipeline.num_draws, 0)
    draws = pipeline.draw(table)
    top, left = draws['box'].unbind(1)
    # Every crop and flip occurs, all as often.
    cases = (top * 5 + left) * 2 + draws['flip']
    occurrences = np.bincount(cases, minlength=50)
    assert len(occurrences) == 50 and occurrences.min() > 0
    assert chisquare(occurrences).pvalue > 1e-3


@pytest.mark.parametrize('prob', [0.0, 0.2, 1.0])
def test_flip_rate(prob):
    _, pipeline = parse(dict(FLIP, prob=prob), PACK)
    draws = pipeline.draw(augment.uniform_table(20000, 1, 0))
    assert abs(draws['flip'].double().mean() - prob) < 0.012
    assert prob == 0.2 or draws['flip'].unique().tolist() == [prob == 1]


@pytest.mark.parametrize('size', [(8, 8), (5, 12)])
def test_resized_crops(size):
    whole, pipeline = parse(dict(RESIZED, scale=(16, 12)), FLIP, PACK)
    images = hold(pipeline, 3, *size)
    assert pipeline.num_draws == 23
    draws = pipeline.draw(augment.uniform_table(60, 23, 0))
    rows = torch.arange(60) % 3
    found = pipeline.make(images, rows, draws)
    three = infos(3, *size)
    for number, image in enumerate(found):
        expected = original(
            whole, three[number % 3], draws['box'][number].tolist(), draws['flip'][number]
        )
        assert torch.equal(image, expected)
    assert len(draws['box'].unique(dim=0)) > 30


@pytest.mark.parametrize(
    'fixed, size',
    [
        ([dict(type='Resize', scale=(9, 7))], (8, 8)),
        ([dict(type='ResizeEdge', scale=10)], (8, 12)),
        (
            [
                dict(type='ResizeEdge', scale=10, backend='pillow'),
                dict(type='CenterCrop', crop_size=6),
            ],
            (12, 8),
        ),
        ([dict(type='Pad', size=(11, 10))], (8, 8)),
        ([], (8, 8)),
    ],
)
def test_what_is_fixed_is_done_once_by_the_original(fixed, size):
    whole, pipeline = parse(*fixed, PACK)
    assert not pipeline.is_random and pipeline.num_draws == 0
    images = hold(pipeline, 2, *size)
    found = pipeline.make(images, torch.tensor([1, 0, 1]), {})
    for info, image in zip(infos(2, *size), found[[1, 0]]):
        expected = whole(dict(info))
        assert torch.equal(image, expected['inputs'])
        sample = pipeline.read(dict(info))
        assert sample.metainfo == expected['data_samples'].metainfo
        assert sample.label == expected['data_samples'].gt_label.item()


def test_files_are_loaded(tmp_path):
    from PIL import Image

    image = infos(1)[0]['img']
    Image.fromarray(image).convert('L').save(tmp_path / 'grey.png')
    info = dict(img_path=str(tmp_path / 'grey.png'), gt_label=1)
    for load in (dict(), dict(color_type='grayscale')):
        whole, pipeline = parse(dict(type='LoadImageFromFile', **load), CROP, PACK)
        sample = pipeline.read(dict(info))
        expected = original(whole, info, (0, 0, 12, 12))
        assert sample.image.shape == (12, 12, 1 if load else 3)
        assert (sample.image.transpose(2, 0, 1) == expected.numpy()).all()
        assert sample.metainfo is None


@pytest.mark.parametrize('label', [3, np.int64(3), np.array([3]), [3]])
def test_labels(label):
    _, pipeline = parse(PACK)
    sample = pipeline.read(dict(infos(1)[0], gt_label=label))
    assert sample.label == 3 and type(sample.label) is int
    assert pipeline.read(dict(img=infos(1)[0]['img'])).label is None


@pytest.mark.parametrize(
    'configs, message',
    [
        (
            [dict(type='ColorJitter'), PACK],
            'ColorJitter in the pipeline of Numbers is none of the transforms.*'
            'LoadImageFromFile.*without ResidentDataset',
        ),
        (
            [dict(type='EfficientNetRandomCrop', scale=8), PACK],
            'EfficientNetRandomCrop .* is none of',
        ),
        ([FLIP, CROP, PACK], 'RandomFlip .* is out of place: the order is'),
        ([CROP, RESIZED, PACK], 'RandomCrop .* is out of place'),
        ([FLIP, FLIP, PACK], 'RandomFlip .* is out of place'),
        ([CROP, dict(type='Resize', scale=4), PACK], 'RandomCrop .* out of place'),
        ([CROP, FLIP], 'pipeline of Numbers must end with'),
        ([], 'pipeline of Numbers must end with'),
        ([PACK, PACK], 'PackInputs .* is out of place'),
        (
            [dict(RESIZED, backend='cv2'), PACK],
            "RandomResizedCrop .* has backend='cv2' and interpolation='bilinear'",
        ),
        (
            [dict(RESIZED, interpolation='bicubic'), PACK],
            "interpolation='bicubic', expected 'pillow' and 'bilinear'",
        ),
        (
            [dict(FLIP, prob=[0.2, 0.3], direction=['horizontal', 'vertical']), PACK],
            r'RandomFlip .* has prob=\[0.2, 0.3\]',
        ),
        ([dict(PACK, algorithm_keys=('box',))], r"PackInputs .* algorithm_keys=\('box',\)"),
        ([dict(PACK, input_key='image')], "input_key='image'"),
    ],
)
def test_what_cannot_be_done_is_refused(configs, message):
    with pytest.raises(ValueError, match=message):
        parse(*configs)


@pytest.mark.parametrize(
    'change, message',
    [
        (
            dict(img=np.zeros((8, 8, 3), np.float32)),
            'an image of type float32, expected a uint8 array',
        ),
        (dict(img=None), 'an image of type NoneType'),
        (dict(gt_label=[1, 2]), r'Numbers has the label \[1, 2\]'),
        (dict(gt_label=0.5), 'has the label 0.5, expected one class'),
        (dict(gt_score=[0.5, 0.5]), 'have a gt_score'),
        (dict(mask=np.zeros(4)), 'have a mask'),
    ],
)
def test_samples_that_cannot_be_held_are_refused(change, message):
    _, pipeline = parse(PACK)
    with pytest.raises(ValueError, match=message):
        pipeline.read({**infos(1)[0], **change})


def test_broken_image(tmp_path):
    _, pipeline = parse(dict(type='LoadImageFromFile', ignore_empty=True), PACK)
    with pytest.raises(ValueError, match='LoadImageFromFile gives None for sample 7 of Numbers'):
        pipeline.read(dict(img_path=str(tmp_path / 'none.png'), sample_idx=7))


def test_equality():
    same = [parse(CROP, FLIP, PACK)[1], parse(CROP, FLIP, PACK)[1]]
    # What is done once may differ.
    same.append(parse(dict(type='Resize', scale=4), CROP, FLIP, PACK)[1])
    assert same[0] == same[1] == same[2]
    for other in (
        [CROP, PACK],
        [FLIP, PACK],
        [RESIZED, FLIP, PACK],
        [dict(CROP, crop_size=7), FLIP, PACK],
        [CROP, dict(FLIP, prob=0.4), PACK],
    ):
        assert parse(*other)[1] != same[0]
    narrow = dict(RESIZED, max_attempts=3)
    assert parse(RESIZED, PACK)[1] != parse(narrow, PACK)[1]
    assert same[0] != 'a pipeline'
