"""VGG with batch norm for 32x32 images, as distillation papers use it."""

from typing import List, Optional, Sequence, Tuple, Union

from mmpretrain.models.backbones.base_backbone import BaseBackbone
from torch import Tensor, nn

from crd_plugin.registry import MODELS

from ._common import check_out_indices, check_positive, kaiming_init

# Convolutions in each of the five groups.
_GROUPS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
_WIDTHS = (64, 128, 256, 512, 512)
_NUM_STAGES = 4


@MODELS.register_module()
class CIFARVGG(BaseBackbone):
    """VGG-8 to VGG-19: five groups of 3x3 convolutions with batch norm.

    Max pooling follows the first three groups; the fourth one too if the
    image has a height of 64. The first group is the stem, the other four are
    stages 0 to 3.

    Source: Simonyan and Zisserman, arXiv:1409.1556; VGG-8 of Tian et al.,
    arXiv:1910.10699. Behaviour and parameter names matched:
    HobbitLong/RepDistiller, ``models/vgg.py``, whose convolutions have a bias
    in spite of batch norm. Why not ``mmpretrain.VGG``: it pools five times
    whatever the image, has no bias beside batch norm, and no depth 8.

    Recorders reach the stem after its ReLU as ``backbone.relu``, a stage
    before its last ReLU as ``backbone.block1`` to ``backbone.block4`` and
    after it as ``backbone.relu1`` to ``backbone.relu4``.

    Args:
        depth (int): 8, 11, 13, 16 or 19.
        in_channels (int): Image channels. Defaults to 3.
        out_indices (Sequence[int]): Stages to return, 0 to 3, in ascending
            order. Defaults to (3, ).
        pre_activation (bool): Return the stages as they are before their last
            ReLU, and append the last stage's map after it, because necks and
            heads read the last entry. Defaults to False.
        init_cfg (dict or list[dict], optional): Defaults to the original's:
            Kaiming normal, fan-out, for convolutions; 1 and 0 for batch norm.

    Shape:
        Input: (B, in_channels, H, W). Output: tuple of maps (B, C_i, H_i,
        W_i), C_i = 128, 256, 512, 512, H_i = H / 2, H / 4, H / 8, H / 8
        rounded down; the last is H / 16 if H = 64.

    Raises:
        ValueError: If ``depth``, ``in_channels`` or ``out_indices`` is out of
            range.
    """

    def __init__(
        self,
        depth: int,
        in_channels: int = 3,
        out_indices: Sequence[int] = (3,),
        pre_activation: bool = False,
        init_cfg: Optional[Union[dict, List[dict]]] = None,
    ) -> None:
        if depth not in _GROUPS:
            raise ValueError(f'depth must be one of {tuple(_GROUPS)}, but got {depth!r}.')
        check_positive(in_channels=in_channels)
        indices = check_out_indices(out_indices, _NUM_STAGES)
        super().__init__(kaiming_init() if init_cfg is None else init_cfg)
        self.depth = depth
        self.out_indices = indices
        self.pre_activation = pre_activation
        for i, (number, width) in enumerate(zip(_GROUPS[depth], _WIDTHS)):
            self.add_module(f'block{i}', _group(number, in_channels, width))
            self.add_module(f'relu{i}' if i else 'relu', nn.ReLU())
            in_channels = width
        self.pool = nn.MaxPool2d(2)

    @property
    def block_names(self) -> Tuple[Tuple[str, ...], ...]:
        """tuple[tuple[str]]: For each stage the ReLUs that end a unit of
        convolution, batch norm and ReLU. The stem has none."""
        names = []
        for i in range(1, _NUM_STAGES + 1):
            stage = getattr(self, f'block{i}')
            inner = (f'block{i}.{j}' for j, layer in enumerate(stage) if isinstance(layer, nn.ReLU))
            names.append((*inner, f'relu{i}'))
        return tuple(names)

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        """Compute the maps of the stages in ``out_indices``.

        Args:
            x (Tensor): (B, in_channels, H, W), normalised images.

        Returns:
            tuple[Tensor]: One map a stage; with ``pre_activation`` followed
            by the last stage's map after its ReLU.
        """
        num_pools = 4 if x.shape[2] == 64 else 3
        x = self.relu(self.block0(x))
        outputs = []
        for i in range(_NUM_STAGES):
            if i < num_pools:
                x = self.pool(x)
            before = getattr(self, f'block{i + 1}')(x)
            x = getattr(self, f'relu{i + 1}')(before)
            if i in self.out_indices:
                outputs.append(before if self.pre_activation else x)
        if self.pre_activation:
            outputs.append(x)
        return tuple(outputs)


def _group(number: int, in_channels: int, channels: int) -> nn.Sequential:
    """Convolutions with batch norm, and ReLU between them."""
    layers: List[nn.Module] = []
    for i in range(number):
        if i:
            layers.append(nn.ReLU(inplace=True))
        layers += [
            nn.Conv2d(channels if i else in_channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
        ]
    return nn.Sequential(*layers)
