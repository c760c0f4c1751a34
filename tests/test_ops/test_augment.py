"""Pixel functions of batches against NumPy, Pillow and mmpretrain."""

import itertools
from unittest import mock

import numpy as np
import pytest
import torch
from mmpretrain.datasets.transforms import RandomResizedCrop
from PIL import Image

from crd_plugin.ops import augment


def pictures(count, height, width, seed=0):
    """Return noise, half of it black and white, ``(N, 3, H, W)`` uint8."""
    generator = np.random.RandomState(seed)
    images = generator.randint(0, 256, (count, 3, height, width))
    images[::2] = (images[::2] > 127) * 255
    return torch.from_numpy(images.astype(np.uint8))


@pytest.mark.parametrize('size', [(5, 4), (7, 6), (1, 1)])
def test_crop_at_every_place(size):
    images = pictures(3, 7, 6)
    rooms = (range(7 - size[0] + 1), range(6 - size[1] + 1))
    row, top, left = map(torch.tensor, zip(*itertools.product(range(3), *rooms)))
    found = augment.crop(images, row, torch.stack([top, left], 1), size)
    assert found.is_contiguous() and found.dtype == torch.uint8
    for image, n, y, x in zip(found, row, top, left):
        assert torch.equal(image, images[n, :, y : y + size[0], x : x + size[1]])


@pytest.mark.parametrize(
    'size, areas, ratios, attempts',
    [
        ((64, 64), (0.08, 1.0), (3 / 4, 4 / 3), 10),
        ((96, 40), (0.3, 1.0), (1 / 2, 3.0), 3),
        ((40, 96), (0.9, 1.0), (0.9, 1.1), 2),
        ((100, 30), (0.5, 1.0), (0.7, 1.4), 1),
        ((30, 100), (0.5, 1.0), (0.7, 1.4), 1),
        ((32, 32), (0.5, 1.0), (0.7, 1.4), 0),
    ],
)
def test_boxes_are_those_of_mmpretrain(size, areas, ratios, attempts):
    theirs = RandomResizedCrop(8, areas, ratios, max_attempts=attempts)
    image = np.zeros((*size, 3), np.uint8)
    theirs.max_attempts = 0
    fallback = theirs.rand_crop_params(image)
    theirs.max_attempts = attempts
    table = torch.from_numpy(np.random.RandomState(3).rand(500, 2 * attempts + 2))
    table[0, -2:] = 1 - 2**-53  # the largest number below one
    boxes = augment.random_boxes(table, size, areas, ratios, fallback)
    assert boxes.dtype == torch.int64
    fell_back = 0
    for row, box in zip(table.tolist(), boxes.tolist()):
        trials, offsets = iter(row[:-2]), iter(row[-2:])
        with (
            mock.patch(
                'numpy.random.uniform', lambda a, b, draws=trials: a + (b - a) * next(draws)
            ),
            mock.patch('numpy.random.randint', lambda a, b, draws=offsets: int(next(draws) * b)),
        ):
            assert tuple(box) == tuple(theirs.rand_crop_params(image))
        fell_back += next(offsets, None) is not None
    # Images of a fitting shape rarely take the fallback, others often do.
    assert fell_back < 25 if size == (64, 64) else fell_back > 0


def pil_crop(image, box, *sizes):
    """Cut out and resize with Pillow, size after size, ``(C, H, W)``."""
    top, left, height, width = box
    cut = image[:, top : top + height, left : left + width].permute(1, 2, 0)
    resized = Image.fromarray(cut.numpy())
    for size in sizes:
        resized = resized.resize(size[::-1], Image.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def boxes_of_all_sizes(height, width):
    generator = np.random.RandomState(0)
    sizes = []
    for size in range(1, max(height, width) + 1):
        sizes.append((min(size, height), generator.randint(width) + 1))
        sizes.append((generator.randint(height) + 1, min(size, width)))
    return [
        (generator.randint(height - box_h + 1), generator.randint(width - box_w + 1), box_h, box_w)
        for box_h, box_w in sizes
    ]


@pytest.mark.parametrize(
    'full, target',
    [((64, 64), (64, 64)), ((20, 30), (24, 32)), ((40, 33), (17, 33)), ((96, 96), (64, 64))],
)
def test_resized_crop_has_the_bits_of_pillow(full, target):
    images = pictures(6, *full)
    boxes = boxes_of_all_sizes(*full)
    rows = torch.arange(len(boxes)) % 6
    found = augment.resized_crop(images, rows, torch.tensor(boxes), target)
    assert found.dtype == torch.uint8 and found.is_contiguous()
    assert found.shape == (len(boxes), 3, *target)
    for image, row, box in zip(found, rows, boxes):
        # Lines first; in one call the order depends on Pillow's version.
        assert torch.equal(image, pil_crop(images[row], box, (box[2], target[1]), target))
        at_once = pil_crop(images[row], box, target)
        if box[2] <= target[0]:
            assert torch.equal(image, at_once), box
        assert (image.int() - at_once.int()).abs().max() <= 1, box
