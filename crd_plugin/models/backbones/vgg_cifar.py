"""VGG with batch norm for 32x32 images, as distillation papers use it."""

from typing import Any

from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from crd_plugin.models._numbers import one_of
from crd_plugin.registry import MODELS

from ._common import CIFARBackbone

# Convolutions in each of the five groups.
_GROUPS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
_WIDTHS = (64, 128, 256, 512, 512)


@MODELS.register_module()
class CIFARVGG(CIFARBackbone):
    """VGG-8 to VGG-19: five groups of 3x3 convolutions with batch norm.

    Max pooling follows the first three groups; the fourth one too if the image has a height of 64.
    The first group is the stem, the other four are stages 0 to 3.

    Source: Simonyan and Zisserman, arXiv:1409.1556; VGG-8 of Tian et al., arXiv:1910.10699.
    Behaviour and parameter names matched: HobbitLong/RepDistiller, ``models/vgg.py``, whose
    convolutions have a bias in spite of batch norm. Why not ``mmpretrain.VGG``: it always pools
    five times, has no bias beside batch norm, and no depth 8.

    Recorders reach the stem as ``backbone.relu``, a stage before its last ReLU as
    ``backbone.block1`` to ``backbone.block4`` and after it as ``backbone.relu1`` and so on.

    Args:
        depth (int): 8, 11, 13, 16 or 19.
        **kwargs (Any): Arguments of :class:`CIFARBackbone`; ``out_indices`` are 0 to 3, by
            default the last.

    Shape:
        Output: maps of 128, 256, 512, 512 channels and of height H / 2, H / 4, H / 8, H / 8 rounded
        down; the last is H / 16 if H = 64.

    Raises:
        ValueError: If an argument is out of range.
    """

    num_stages = 4

    def __init__(self, depth: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.depth = one_of('depth', depth, _GROUPS)
        in_channels = self.in_channels
        for i, (number, width) in enumerate(zip(_GROUPS[depth], _WIDTHS)):
            layers: list[nn.Module] = []
            for _ in range(number):
                layers += Conv2dNormActivation(in_channels, width, 3, bias=True)
                in_channels = width
            # Without the last ReLU, which is a module of its own.
            self.add_module(f'block{i}', nn.Sequential(*layers[:-1]))
            self.add_module(f'relu{i}' if i else 'relu', nn.ReLU())
        self.pool = nn.MaxPool2d(2)

    @property
    def block_names(self) -> tuple[tuple[str, ...], ...]:
        """tuple[tuple[str]]: For each stage, the ReLUs that end a unit with a convolution."""
        names = []
        for i in range(1, self.num_stages + 1):
            stage = getattr(self, f'block{i}')
            inner = (f'block{i}.{j}' for j, layer in enumerate(stage) if isinstance(layer, nn.ReLU))
            names.append((*inner, f'relu{i}'))
        return tuple(names)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """As for :class:`CIFARBackbone`."""
        num_pools = 4 if x.shape[2] == 64 else 3
        x = self.relu(self.block0(x))
        outputs = []
        for i in range(self.num_stages):
            if i < num_pools:
                x = self.pool(x)
            before = getattr(self, f'block{i + 1}')(x)
            x = getattr(self, f'relu{i + 1}')(before)
            if i in self.out_indices:
                outputs.append(before if self.pre_activation else x)
        return (*outputs, x) if self.pre_activation else tuple(outputs)
