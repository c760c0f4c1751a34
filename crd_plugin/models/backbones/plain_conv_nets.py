"""Plain stacks of convolutions, for images of any modality."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from crd_plugin.models._numbers import count
from crd_plugin.registry import MODELS

from ._common import CIFARBackbone, conv_norm

# Of HalfAlexNet: widths, the stages that max pooling ends, the fully connected layers.
_WIDTHS = (48, 96, 192, 192, 96)
_POOLED = (0, 1, 4)
_HIDDEN = 2048


@MODELS.register_module()
class PlainConvNet(CIFARBackbone):
    """Convolutions of 3x3 with batch norm and ReLU, one after the other, each a stage.

    A student of five layers on depth stands in the CRD paper, arXiv:1910.10699, table 5; widths and
    strides were not published and are chosen here.

    Args:
        in_channels (int): Image channels. Defaults to 1.
        widths (Sequence[int]): Channels of each layer. Defaults to (64, 128, 256, 512, 512).
        strides (Sequence[int]): Stride of each layer. Defaults to (2, 2, 2, 2, 1).
        **kwargs (Any): Other arguments of :class:`CIFARBackbone`.

    Shape:
        Input: ``(B, in_channels, H, W)``. Output: a tuple of maps ``(B, widths[i], H_i, W_i)``.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        in_channels: int = 1,
        widths: Sequence[int] = (64, 128, 256, 512, 512),
        strides: Sequence[int] = (2, 2, 2, 2, 1),
        **kwargs: Any,
    ) -> None:
        if not widths or len(widths) != len(strides):
            raise ValueError(
                f'widths has {len(widths)} layers and strides {len(strides)}, expected as many, '
                'at least one.'
            )
        self.num_stages = len(widths)
        super().__init__(in_channels, **kwargs)
        before = self.in_channels
        self.layers = nn.ModuleList()
        for i, (width, stride) in enumerate(zip(widths, strides)):
            width, stride = count(f'widths[{i}]', width), count(f'strides[{i}]', stride)
            # Not in place: a recorded map must stay as it was.
            self.layers.append(
                nn.Sequential(*conv_norm(before, width, 3, stride=stride), nn.ReLU())
            )
            before = width

    def stem(self, x: Tensor) -> Tensor:
        """Return the images: the first layer is a stage."""
        return x

    def run_stage(self, i: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute a layer's map before and after its ReLU."""
        layer: Any = self.layers[i]
        if not self.pre_activation:
            x = layer(x)
            return x, x
        before = layer[:-1](x)
        return before, layer[-1](before)


@MODELS.register_module()
class HalfAlexNet(CIFARBackbone):
    """Five 3x3 convolutions and two fully connected layers, each with batch norm and ReLU.

    Source: Tian et al., Contrastive Multiview Coding, arXiv:1906.05849, with one half per modality;
    HobbitLong/CMC, ``models/alexnet.py`` @ 21ce9e0 is for 224x224 images. These are the widths and
    kernels for 64x64 images of STL-10 in projects built on it. Why not ``mmpretrain.AlexNet``: it
    takes 224x224 RGB images only and has no batch norm.

    The feature behind the second fully connected layer, which the head reads, always comes last.
    Recorders reach the layers as ``backbone.conv1`` to ``backbone.conv5`` before their ReLU, and as
    ``backbone.fc6`` and ``backbone.fc7`` after it.

    Args:
        input_size (int): Height and width of the images in pixels, at least 15. Defaults to 64.
        **kwargs (Any): Arguments of :class:`CIFARBackbone`; ``out_indices`` are 0 to 4, by default
            none of them.

    Shape:
        Output: maps of 48, 96, 192, 192, 96 channels and of height 31, 15, 15, 15, 7 for images of
        64; then a feature (B, 2048).

    Raises:
        ValueError: If an argument is out of range, or images are of another size.
    """

    num_stages = 5
    default_init_cfg = None
    stem_name = 'none'
    tail_names = ('fc6', 'fc7')

    def __init__(self, input_size: int = 64, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.input_size = size = count('input_size', input_size)
        before = self.in_channels
        for i, width in enumerate(_WIDTHS):
            self.add_module(f'conv{i + 1}', nn.Sequential(*conv_norm(before, width, 3)))
            before, size = width, (size - 1) // 2 if i in _POOLED else size
        if size < 1:
            raise ValueError(f'input_size is {input_size}, expected at least 15 pixels.')
        self.relu, self.pool = nn.ReLU(), nn.MaxPool2d(3, 2)
        self.fc6 = _fully_connected(before * size**2)
        self.fc7 = _fully_connected(_HIDDEN)

    def stem(self, x: Tensor) -> Tensor:
        """Return the images: the first convolution is a stage."""
        return x

    def run_stage(self, i: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute a stage's map before its ReLU, and after ReLU and pooling."""
        before = getattr(self, f'conv{i + 1}')(x)
        x = self.relu(before)
        return before, self.pool(x) if i in _POOLED else x

    def tail(self, x: Tensor) -> Tensor:
        """Compute the feature for the head, ``(B, 2048)``, from the map of the last stage."""
        x = x.flatten(1)
        if x.size(1) != self.fc6[0].in_features:
            raise ValueError(
                f'input_size is {self.input_size}, but the images are of another size: their last '
                f'map has {x.size(1)} numbers, expected {self.fc6[0].in_features}; set input_size '
                'to the height and width of the images, which must be equal.'
            )
        return self.fc7(self.fc6(x))


def _fully_connected(inputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, _HIDDEN), nn.BatchNorm1d(_HIDDEN), nn.ReLU())
