"""Convolution that brings one map to the shape of another."""

from typing import Any, Dict, Optional, Sequence, Tuple, Type

import torch.nn.functional as F
from torch import Tensor, nn

from crd_plugin.registry import MODELS

Shape = Tuple[int, int, int]
Plan = Tuple[Type[nn.Module], Dict[str, Any]]


@MODELS.register_module()
class ConvRegressor(nn.Module):
    """Bring a map to another's channels, height and width.

    One convolution with bias, batch norm and, if wanted, a ReLU. The heights
    choose the convolution: input twice as high: 3x3 with stride 2; half as
    high: transposed 4x4 with stride 2; at least as high otherwise: no padding
    and a kernel of 1 + difference (1x1 for equal sizes).

    Source: Romero et al., arXiv:1412.6550, section 2.2; behaviour matched:
    HobbitLong/RepDistiller ``models/util.py`` (``ConvReg``). Differs: a shape
    that cannot be reached is an error here, not a mismatch while training.

    Args:
        in_shape (Sequence[int]): Channels, height, width of the input.
        out_shape (Sequence[int]): Channels, height, width of the output.
        relu (bool): End with a ReLU. Defaults to True.

    Shape:
        Input: ``(B, *in_shape)``. Output: ``(B, *out_shape)``. Other heights
        and widths do too, see :meth:`fits`.

    Raises:
        ValueError: If a shape is none, or one convolution does not lead from
            one to the other.
    """

    def __init__(
        self, in_shape: Sequence[int], out_shape: Sequence[int], relu: bool = True
    ) -> None:
        super().__init__()
        self.in_shape = check_shape('in_shape', in_shape)
        self.out_shape = check_shape('out_shape', out_shape)
        self.relu = relu
        self._plan = _plan(self.in_shape, self.out_shape)
        if self._plan is None:
            raise ValueError(
                f'in_shape {self.in_shape} cannot be brought to out_shape '
                f'{self.out_shape} by one convolution: heights and widths '
                'must be twice, half, or at least those of the output; '
                'choose another stage with data_idx.'
            )
        convolution, settings = self._plan
        self.conv = convolution(self.in_shape[0], self.out_shape[0], **settings)
        self.bn = nn.BatchNorm2d(self.out_shape[0])

    def fits(self, in_shape: Sequence[int], out_shape: Sequence[int]) -> bool:
        """Whether it also leads from one of these shapes to the other.

        Maps of other sizes do, if their heights relate in the same way.

        Args:
            in_shape (Sequence[int]): Channels, height, width of an input.
            out_shape (Sequence[int]): Those that its output should have.

        Returns:
            bool: The same layers would be made for them.
        """
        return (
            in_shape[0] == self.in_shape[0]
            and out_shape[0] == self.out_shape[0]
            and _plan(in_shape, out_shape) == self._plan
        )

    def forward(self, x: Tensor) -> Tensor:
        """Regress a batch of maps.

        Args:
            x (Tensor): Maps, ``(B, *in_shape)``.

        Returns:
            Tensor: ``(B, *out_shape)``.
        """
        x = self.bn(self.conv(x))
        return F.relu(x) if self.relu else x


def check_shape(name: str, shape: Sequence[int]) -> Shape:
    """A shape of a map as a tuple.

    Args:
        name (str): Argument, for the message.
        shape (Sequence[int]): Channels, height, width.

    Returns:
        tuple[int, int, int]: The same.

    Raises:
        ValueError: If it is not three positive integers.
    """
    if (
        not isinstance(shape, Sequence)
        or len(shape) != 3
        or not all(isinstance(n, int) and n > 0 for n in shape)
    ):
        raise ValueError(
            f'{name} is {shape}, expected channels, height and width of a '
            'map, three positive integers.'
        )
    return tuple(shape)


def _plan(in_shape: Shape, out_shape: Shape) -> Optional[Plan]:
    """The convolution that the heights ask for, if one does."""
    (_, *size), (_, *out_size) = in_shape, out_shape
    if size[0] == 2 * out_size[0]:
        reached = [(n + 1) // 2 for n in size]
        plan = (nn.Conv2d, dict(kernel_size=3, stride=2, padding=1))
    elif 2 * size[0] == out_size[0]:
        reached = [2 * n for n in size]
        plan = (nn.ConvTranspose2d, dict(kernel_size=4, stride=2, padding=1))
    else:
        reached = out_size
        kernel = tuple(1 + n - m for n, m in zip(size, out_size))
        plan = (nn.Conv2d, dict(kernel_size=kernel))
        if min(kernel) < 1:
            return None
    return plan if reached == out_size else None
