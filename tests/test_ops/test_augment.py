"""Crops, flips and resizing of batches, against NumPy, Pillow, mmpretrain."""

import itertools
from unittest import mock

import numpy as np
import pytest
import torch
from mmpretrain.datasets.transforms import RandomResizedCrop
from PIL import Image
from scipy.stats import chisquare

from crd_plugin.ops import augment


def pictures(count, height, width, seed=0):
    """Noise, half of it black and white, ``(N, 3, H, W)`` uint8."""
    generator = np.random.RandomState(seed)
    images = generator.randint(0, 256, (count, 3, height, width))
    images[::2] = (images[::2] > 127) * 255
    return torch.from_numpy(images.astype(np.uint8))


def test_uniform_table():
    table = augment.uniform_table(5000, 3, seed=2**64 - 1)
    assert table.shape == (5000, 3) and table.dtype == torch.float64
    assert 0 <= table.min() and table.max() < 1
    assert torch.equal(table, augment.uniform_table(5000, 3, 2**64 - 1))
    assert not torch.equal(table, augment.uniform_table(5000, 3, 1))
    # Columns and neighbouring rows have nothing to do with each other.
    columns = torch.cat([table[:-1], table[1:]], dim=1).T
    assert (columns.corrcoef() - torch.eye(6)).abs().max() < 0.06


def test_drawing_leaves_the_generators_alone():
    before = torch.get_rng_state()
    augment.uniform_table(10, 2, 0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize('count', [1, 2, 9, 33])
def test_offsets_are_uniform(count):
    uniform = augment.uniform_table(20000, 1, count)[:, 0]
    offsets = augment.random_offsets(uniform, count)
    assert offsets.dtype == torch.int64
    occurrences = np.bincount(offsets, minlength=count)
    assert len(occurrences) == count and occurrences.min() > 0
    assert chisquare(occurrences).pvalue > 1e-3 or count == 1
    # The largest number below one is in range too.
    assert augment.random_offsets(
        torch.tensor([0, 1 - 2**-53], dtype=torch.float64), count
    ).tolist() == [0, count - 1]


def test_offsets_of_different_ranges():
    uniform = torch.full((3,), 0.999, dtype=torch.float64)
    counts = torch.tensor([1, 4, 100])
    assert augment.random_offsets(uniform, counts).tolist() == [0, 3, 99]


@pytest.mark.parametrize('size', [(5, 4), (7, 6), (1, 1)])
def test_crop_at_every_place(size):
    images = pictures(3, 7, 6)
    rooms = (range(7 - size[0] + 1), range(6 - size[1] + 1))
    row, top, left = map(torch.tensor, zip(*itertools.product(range(3), *rooms)))
    found = augment.crop(images, row, top, left, size)
    assert found.is_contiguous() and found.dtype == torch.uint8
    for image, n, y, x in zip(found, row, top, left):
        expected = images[n, :, y : y + size[0], x : x + size[1]]
        assert torch.equal(image, expected)


@pytest.mark.parametrize('dims, axes', [((3,), 2), ((2,), 1), ((2, 3), (1, 2))])
def test_flip(dims, axes):
    images = pictures(4, 5, 6)
    chosen = torch.tensor([True, False, False, True])
    found = augment.flip(images, chosen, dims).numpy()
    for image, original, turned in zip(found, images.numpy(), chosen):
        expected = np.flip(original, axes) if turned else original
        assert np.array_equal(image, expected)


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
    table = augment.uniform_table(500, 2 * attempts + 2, 3)
    boxes = augment.random_boxes(table, size, areas, ratios, fallback)
    fell = 0
    for row, box in zip(table.tolist(), boxes.tolist()):
        trials, offsets = iter(row[:-2]), iter(row[-2:])
        with (
            mock.patch('numpy.random.uniform', lambda low, high: low + (high - low) * next(trials)),
            mock.patch('numpy.random.randint', lambda low, high: int(next(offsets) * high)),
        ):
            expected = theirs.rand_crop_params(image)
        assert tuple(box) == tuple(expected)
        fell += next(offsets, None) is not None
    # Images of a fitting shape rarely take the fallback, others often do.
    assert fell < 25 if size == (64, 64) else fell > 0


def test_fallback_stays_where_it_is():
    boxes = augment.random_boxes(
        augment.uniform_table(4, 2, 0), (9, 8), (0.1, 1.0), (0.5, 2.0), (1, 2, 5, 6)
    )
    assert boxes.tolist() == [[1, 2, 5, 6]] * 4


def pil_crop(image, box, *sizes):
    """Cut out and resized with Pillow step by step, ``(C, H, W)``."""
    top, left, height, width = box
    cut = image[:, top : top + height, left : left + width].permute(1, 2, 0)
    resized = Image.fromarray(cut.numpy())
    for size in sizes:
        resized = resized.resize(size[::-1], Image.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def boxes_of_all_sizes(height, width, seed=0):
    """Boxes of every height and every width, anywhere."""
    generator = np.random.RandomState(seed)
    boxes = []
    for size in range(1, max(height, width) + 1):
        for box_h, box_w in (
            (min(size, height), generator.randint(width) + 1),
            (generator.randint(height) + 1, min(size, width)),
        ):
            boxes.append(
                (
                    generator.randint(height - box_h + 1),
                    generator.randint(width - box_w + 1),
                    box_h,
                    box_w,
                )
            )
    return boxes


@pytest.mark.parametrize(
    'full, target',
    [((64, 64), (64, 64)), ((20, 30), (24, 32)), ((40, 33), (17, 33)), ((96, 96), (64, 64))],
)
def test_resized_crop_has_the_bits_of_pillow(full, target):
    images = pictures(6, *full)
    boxes = boxes_of_all_sizes(*full)
    rows = torch.arange(len(boxes)) % 6
    weights = tuple(map(augment.resize_weights, full, target))
    found = augment.resized_crop(images, rows, torch.tensor(boxes), weights)
    assert found.dtype == torch.uint8 and found.is_contiguous()
    assert found.shape == (len(boxes), 3, *target)
    for image, row, box in zip(found, rows, boxes):
        # Lines first; in one call the order depends on Pillow's version.
        lines = (box[2], target[1])
        assert torch.equal(image, pil_crop(images[row], box, lines, target))
        at_once = pil_crop(images[row], box, target)
        if box[2] <= target[0]:
            assert torch.equal(image, at_once), box
        assert (image.int() - at_once.int()).abs().max() <= 1, box


def test_resize_weights():
    table = augment.resize_weights(12, 5)
    assert table.shape == (13, 5, 24)
    for pixels in range(1, 13):
        weights = table[pixels]
        # All of the run, nothing else; in sum one, up to the rounding.
        assert (weights[:, :12] == 0).all() and (weights >= 0).all()
        assert (weights[:, 12 + pixels :] == 0).all()
        assert (weights.sum(0)[12 : 12 + pixels] > 0).all() or pixels < 5
        torch.testing.assert_close(
            weights.sum(1), torch.ones(5, dtype=torch.float64), rtol=0, atol=12 * 2**-22
        )
        assert ((weights * 2**22) % 1 == 0).all()
    # Five pixels stay as they are.
    assert torch.equal(table[5, :, 12:17], torch.eye(5, dtype=torch.float64))
