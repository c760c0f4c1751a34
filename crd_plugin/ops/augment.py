"""Random crops and resized crops of whole batches of uint8 images.

All images are in one tensor ``(N, C, H, W)``; a batch is chosen by its rows. Where to crop is
a tensor too, so nothing here waits for a device.
"""

import math

import torch
from torch import Tensor

# Pillow rounds the weights of its filters to this many binary places.
_PLACES = 22


def random_boxes(
    uniform: Tensor,
    size: tuple[int, int],
    area_range: tuple[float, float],
    ratio_range: tuple[float, float],
    fallback: tuple[int, int, int, int],
) -> Tensor:
    """Draw boxes of random area and aspect ratio.

    Of several attempts the first box that fits into the image is taken. Source: C. Szegedy et al.,
    arXiv:1409.4842, section 6; numbers of mmpretrain's ``RandomResizedCrop.rand_crop_params``.

    Args:
        uniform (Tensor): Random numbers in [0, 1), ``(N, 2 A + 2)`` float64: area and ratio of
            each of A attempts, then the offsets from the top and from the left.
        size (tuple): Height and width of the images, pixels.
        area_range (tuple): Smallest and largest fraction of the image's area.
        ratio_range (tuple): Smallest and largest width over height.
        fallback (tuple): Box if no attempt fits: top, left, height, width.

    Returns:
        Tensor: Top, left, height and width, ``(N, 4)`` int64.
    """
    height, width = size
    attempts = uniform[:, :-2].unflatten(1, (uniform.size(1) // 2 - 1, 2))
    low, high = area_range
    area = (low + (high - low) * attempts[..., 0]) * (height * width)
    low, high = map(math.log, ratio_range)
    ratio = (low + (high - low) * attempts[..., 1]).exp()
    sizes = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()], 2).round().long()
    fits = ((sizes > 0) & (sizes <= torch.tensor(size))).all(2)
    # The fallback is a last attempt that always fits; argmax finds the first that does.
    sizes = torch.cat([sizes, torch.tensor(fallback[2:]).expand(len(sizes), 1, 2)], 1)
    first = torch.cat([fits, fits.new_ones(len(fits), 1)], 1).long().argmax(1)
    sizes = sizes[torch.arange(len(sizes)), first]
    corners = (uniform[:, -2:] * (torch.tensor(size) - sizes + 1)).long()
    fell_back = first == fits.size(1)
    corners[fell_back] = torch.tensor(fallback[:2])
    return torch.cat([corners, sizes], 1)


def crop(images: Tensor, rows: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut a window of one size, with its top and left in ``boxes (B, 2)``, out of each image."""
    # Indexing a view that holds every window copies whole windows: on a CPU seven times as fast as
    # indexing pixels.
    windows = images.unfold(2, size[0], 1).unfold(3, size[1], 1)
    top, left = boxes.unbind(1)
    return windows[rows, :, top, left]


def resized_crop(images: Tensor, rows: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut a box out of each image and resize it, as Pillow's ``BILINEAR`` does.

    Lines are resized first, then columns, each rounded to whole grey levels. Pillow 13 begins with
    the columns of some boxes; a difference of one grey level is then possible.

    Args:
        images (Tensor): All images, ``(N, C, H, W)`` uint8.
        rows (Tensor): Images of the batch, ``(B,)`` int64.
        boxes (Tensor): Top, left, height and width, ``(B, 4)`` int64.
        size (tuple): Height and width of the result, pixels.

    Returns:
        Tensor: ``(B, C, *size)`` uint8.
    """
    top, left, height, width = boxes.unbind(1)
    # (B, H, C, W): with the lines of all channels side by side, each step is one product.
    pixels = images[rows].transpose(1, 2)
    batch, lines, channels, columns = pixels.shape
    across = _resize_weights(left, width, columns, size[1])
    pixels = _round(torch.bmm(pixels.double().flatten(1, 2), across.transpose(1, 2)))
    down = _resize_weights(top, height, lines, size[0])
    pixels = _round(torch.bmm(down, pixels.view(batch, lines, -1)))
    return pixels.byte().unflatten(2, (channels, -1)).transpose(1, 2).contiguous()


def _resize_weights(starts: Tensor, lengths: Tensor, full: int, target: int) -> Tensor:
    """Compute weights ``(B, target, full)`` that resize a run of each line of ``full`` pixels."""
    # A tent around the centre of each new pixel, at least two pixels wide, and as wide as two new
    # pixels if the run becomes shorter. Behaviour matched: Pillow, src/libImaging/Resample.c.
    starts, lengths = starts[:, None, None], lengths[:, None, None]
    counts = torch.arange(max(full, target), dtype=torch.float64, device=starts.device)
    scale = lengths.double() / target
    reach = scale.clamp(min=1)
    centre = (counts[:target, None] + 0.5) * scale
    place = counts[:full] - starts
    first = (centre - reach + 0.5).floor().clamp(min=0)
    last = (centre + reach + 0.5).floor().minimum(lengths)
    weights = (1 - (place - centre + 0.5).abs() * (1 / reach)).clamp(min=0)
    weights *= (place >= first) & (place < last)
    weights /= weights.sum(2, keepdim=True)
    return (weights * 2**_PLACES + 0.5).floor() * 2.0**-_PLACES


def _round(values: Tensor) -> Tensor:
    return values.add_(0.5).floor_().clamp_(0, 255)
