"""Random crops, flips and resized crops of whole batches of uint8 images.

A batch is taken from one tensor ``(N, C, H, W)`` that holds all images, by the
rows of its samples. Where to crop and what to flip are tensors too, so nothing
here waits for a device.
"""

import math
from typing import Tuple

import torch
from torch import Tensor

Size = Tuple[int, int]

# Pillow keeps so many binary places of its filter's weights.
_PLACES = 22


def uniform_table(rows: int, columns: int, seed: int) -> Tensor:
    """Random numbers in [0, 1), a row a sample.

    They are drawn on the CPU, so that a run sees the same images on every
    device. For one epoch of CIFAR that takes half a millisecond.

    Args:
        rows (int): Samples.
        columns (int): Numbers that a sample needs.
        seed (int): Seed, in [0, 2**64).

    Returns:
        Tensor: ``(rows, columns)`` float64, on the CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, columns, dtype=torch.float64, generator=generator)


def random_offsets(uniform: Tensor, count: Tensor) -> Tensor:
    """Turn numbers in [0, 1) into integers.

    Args:
        uniform (Tensor): ``(N,)`` float64.
        count (Tensor | int): Number of integers, ``(N,)`` or one for all.

    Returns:
        Tensor: ``(N,)`` int64, each of [0, count) as likely.
    """
    return (uniform * count).long()


def random_boxes(
    uniform: Tensor,
    size: Size,
    area_range: Tuple[float, float],
    ratio_range: Tuple[float, float],
    fallback: Tuple[int, int, int, int],
) -> Tensor:
    """Boxes of random area and aspect ratio, as Inception-style crops.

    An attempt draws the area and the logarithm of the ratio; the first one
    whose box fits into the image counts. Source: C. Szegedy et al.,
    arXiv:1409.4842, section 6. Behaviour matched: mmpretrain 1.2.0,
    ``RandomResizedCrop.rand_crop_params``, the same box for the same numbers.

    Args:
        uniform (Tensor): ``(N, 2 A + 2)`` float64: area and ratio of each of
            the A attempts, then the offsets from the top and the left.
        size (tuple): Height and width of the images, pixels.
        area_range (tuple): Least and largest fraction of the image's area.
        ratio_range (tuple): Least and largest width over height.
        fallback (tuple): Box where no attempt fits: top, left, height, width.

    Returns:
        Tensor: ``(N, 4)`` int64: top, left, height, width.
    """
    height, width = size
    attempts = uniform[:, :-2].unflatten(1, (uniform.size(1) // 2 - 1, 2))
    low, high = area_range
    area = (low + (high - low) * attempts[..., 0]) * (height * width)
    low, high = map(math.log, ratio_range)
    ratio = (low + (high - low) * attempts[..., 1]).exp()
    widths = (area * ratio).sqrt().round().long()
    heights = (area / ratio).sqrt().round().long()
    fits = (0 < widths) & (widths <= width) & (0 < heights) & (heights <= height)
    # A last attempt that always fits; argmax gives the first that does.
    ones = fits.new_ones(len(fits), 1)
    first = torch.cat([fits, ones], dim=1).long().argmax(1, keepdim=True)
    box_h = _with_last(heights, fallback[2]).gather(1, first)[:, 0]
    box_w = _with_last(widths, fallback[3]).gather(1, first)[:, 0]
    top = random_offsets(uniform[:, -2], height - box_h + 1)
    left = random_offsets(uniform[:, -1], width - box_w + 1)
    fell = first[:, 0] == fits.size(1)
    top = top.masked_fill(fell, fallback[0])
    left = left.masked_fill(fell, fallback[1])
    return torch.stack([top, left, box_h, box_w], dim=1)


def crop(images: Tensor, rows: Tensor, top: Tensor, left: Tensor, size: Size) -> Tensor:
    """A window of one size out of each image.

    Args:
        images (Tensor): All images, ``(N, C, H, W)``, padding included.
        rows (Tensor): Which images, ``(B,)`` int64.
        top (Tensor): First line of each window, ``(B,)`` int64.
        left (Tensor): First column of each window, ``(B,)`` int64.
        size (tuple): Height and width of the windows, pixels.

    Returns:
        Tensor: ``(B, C, *size)``.
    """
    # A view with one window a place: what is indexed are whole windows, seven
    # times as fast on a CPU as indexing pixels.
    windows = images.unfold(2, size[0], 1).unfold(3, size[1], 1)
    return windows[rows, :, top, left]


def flip(images: Tensor, chosen: Tensor, dims: Tuple[int, ...]) -> Tensor:
    """Flip some images of a batch.

    Args:
        images (Tensor): ``(B, C, H, W)``.
        chosen (Tensor): Which of them, ``(B,)`` bool.
        dims (tuple): ``(3,)`` left to right, ``(2,)`` upside down.

    Returns:
        Tensor: ``(B, C, H, W)``.
    """
    return torch.where(chosen[:, None, None, None], images.flip(dims), images)


def resize_weights(full: int, target: int) -> Tensor:
    """Weights that resize 1 to ``full`` pixels to ``target`` pixels.

    A tent around the centre of each new pixel, at least two pixels wide and
    as wide as two new pixels when the image becomes smaller. Behaviour
    matched: Pillow's ``BILINEAR`` (src/libImaging/Resample.c), whose weights
    for 8-bit images are integers over 2**22.

    Args:
        full (int): Pixels of a whole line.
        target (int): Pixels after resizing.

    Returns:
        Tensor: ``(full + 1, target, 2 full)`` float64, integers times
        2**-22. Entry ``[n]`` belongs to a run of ``n`` pixels, and the weight
        of its pixel ``i`` stands in column ``full + i``, so that ``full``
        columns from ``full - left`` on fit a run that begins at ``left``.
    """
    table = torch.zeros(full + 1, target, 2 * full, dtype=torch.float64)
    for pixels in range(1, full + 1):
        scale = pixels / target
        reach = max(scale, 1.0)
        centre = (torch.arange(target, dtype=torch.float64) + 0.5) * scale
        first = (centre - reach + 0.5).long().clamp(min=0)
        last = (centre + reach + 0.5).long().clamp(max=pixels)
        place = torch.arange(pixels, dtype=torch.float64)
        distance = (place - centre[:, None] + 0.5).abs() * (1.0 / reach)
        weight = (1.0 - distance).clamp(min=0)
        weight *= (place >= first[:, None]) & (place < last[:, None])
        weight /= weight.sum(1, keepdim=True)
        table[pixels, :, full : full + pixels] = (weight * 2**_PLACES + 0.5).floor()
    return table * 2.0**-_PLACES


def resized_crop(
    images: Tensor, rows: Tensor, boxes: Tensor, weights: Tuple[Tensor, Tensor]
) -> Tensor:
    """Cut a box out of each image and resize it, as Pillow does.

    Lines are resized first, then columns, each rounded to whole grey levels.
    Both steps are exact in float64, so the result has the bits of Pillow's
    wherever that takes the same order. Pillow 13 begins with the columns where
    a box has more lines, but not many more columns, than the result; one grey
    level of difference is then possible.

    Args:
        images (Tensor): All images, ``(N, C, H, W)`` uint8.
        rows (Tensor): Which images, ``(B,)`` int64.
        boxes (Tensor): ``(B, 4)`` int64: top, left, height, width.
        weights (tuple): :func:`resize_weights` of H and of W.

    Returns:
        Tensor: ``(B, C, *target)`` uint8.
    """
    top, left, height, width = boxes.unbind(1)
    # Lines of all channels side by side make either step one product:
    # (B, H C, W) x (B, W, target width), (B, target height, H) x (B, H, C ..).
    pixels = images[rows].permute(0, 2, 1, 3)
    batch, lines, channels, _ = pixels.shape
    across = _shifted(weights[1], width, left).transpose(1, 2)
    pixels = _to_grey(torch.bmm(pixels.double().flatten(1, 2), across))
    down = _shifted(weights[0], height, top)
    pixels = _to_grey(torch.bmm(down, pixels.view(batch, lines, -1)))
    pixels = pixels.byte().unflatten(2, (channels, -1))
    return pixels.transpose(1, 2).contiguous()


def _with_last(values: Tensor, last: int) -> Tensor:
    """``(N, A)`` with one more column."""
    return torch.cat([values, values.new_full((len(values), 1), last)], dim=1)


def _shifted(table: Tensor, sizes: Tensor, starts: Tensor) -> Tensor:
    """Weights of runs of given sizes and starts, ``(B, target, full)``."""
    full = table.size(2) // 2
    return table.unfold(2, full, 1)[sizes, :, full - starts]


def _to_grey(values: Tensor) -> Tensor:
    """Round to 0 .. 255, in place."""
    return values.add_(0.5).floor_().clamp_(0, 255)
