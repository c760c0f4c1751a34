"""Convolution that brings a map to the shape of another."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from crd_plugin.registry import MODELS

Shape = tuple[int, int, int]
# Class and arguments of a convolution.
Plan = tuple[type[nn.Module], dict[str, Any]]


@MODELS.register_module()
class ConvRegressor(nn.Module):
    """Bring a map to another's channels, height and width.

    One convolution with bias, batch norm and, by default, a ReLU. The heights choose it: input
    twice as high: 3x3 with stride 2; half as high: transposed 4x4 with stride 2; at least as high
    otherwise: no padding and a kernel of 1 + difference.

    Source: Romero et al., arXiv:1412.6550, section 2.2; behaviour matched: HobbitLong/RepDistiller
    ``models/util.py`` (``ConvReg``).

    Args:
        in_shape (Sequence[int]): Channels, height, width of the input.
        out_shape (Sequence[int]): Channels, height, width of the output.
        relu (bool): End with a ReLU. Defaults to True.

    Shape:
        Input: ``(B, *in_shape)``. Output: ``(B, *out_shape)``.

    Raises:
        ValueError: If a shape is not three positive integers, or cannot be reached.
    """

    def __init__(
        self, in_shape: Sequence[int], out_shape: Sequence[int], relu: bool = True
    ) -> None:
        super().__init__()
        self.in_shape = check_shape('in_shape', in_shape)
        self.out_shape = check_shape('out_shape', out_shape)
        self.relu = relu
        plan = _plan(self.in_shape, self.out_shape)
        if plan is None:
            raise ValueError(
                f'in_shape {self.in_shape} cannot be brought to out_shape {self.out_shape} by one '
                'convolution: heights and widths must be twice, half, or at least those of the '
                'output; choose another stage with data_idx.'
            )
        convolution, settings = plan
        self.conv = convolution(self.in_shape[0], self.out_shape[0], **settings)
        self.bn = nn.BatchNorm2d(self.out_shape[0])

    def forward(self, x: Tensor) -> Tensor:
        """Regress a batch of maps, ``(B, *in_shape)``, to ``(B, *out_shape)``."""
        x = self.bn(self.conv(x))
        return F.relu(x) if self.relu else x


def check_shape(name: str, shape: Sequence[int]) -> Shape:
    """Require the shape of a map; a ValueError names the argument."""
    sizes = list(shape) if isinstance(shape, Sequence) else []
    if len(sizes) != 3 or not all(isinstance(n, int) and n > 0 for n in sizes):
        raise ValueError(
            f'{name} is {shape}, expected channels, height and width of a map, three positive '
            'integers.'
        )
    return sizes[0], sizes[1], sizes[2]


def _plan(in_shape: Sequence[int], out_shape: Sequence[int]) -> Plan | None:
    """Choose the convolution by the heights; None if it does not reach the output's size."""
    (_, *size), (_, *out_size) = in_shape, out_shape
    if size[0] == 2 * out_size[0]:
        reached = [(n + 1) // 2 for n in size]
        plan: Plan = (nn.Conv2d, dict(kernel_size=3, stride=2, padding=1))
    elif 2 * size[0] == out_size[0]:
        reached = [2 * n for n in size]
        plan = (nn.ConvTranspose2d, dict(kernel_size=4, stride=2, padding=1))
    else:
        kernel = tuple(1 + n - m for n, m in zip(size, out_size, strict=True))
        reached = out_size if min(kernel) > 0 else []
        plan = (nn.Conv2d, dict(kernel_size=kernel))
    return plan if reached == out_size else None
