"""``mmpretrain.ResNet`` with the depth that it lacks."""

from mmpretrain.models.backbones import ResNet
from mmpretrain.models.backbones.resnet import BasicBlock

from crd_plugin.registry import MODELS


@MODELS.register_module()
class ImageNetResNet(ResNet):
    """ResNet-10 to ResNet-152 for ImageNet.

    All of ``mmpretrain.ResNet``, whose weights have torchvision's names and numbers, and depth 10,
    one basic block per stage, used for small students in the literature. For depths 18 and more the
    parent alone suffices.

    Args:
        depth (int): 10, 18, 34, 50, 101 or 152.
        **kwargs (Any): Arguments of ``mmpretrain.ResNet``: ``out_indices`` (stages 0 to 3, by
            default the last) ...

    Shape:
        Input: (B, 3, H, W). Output: tuple of maps (B, C_i, H_i, W_i), H_i = H / 4, H / 8, H / 16,
        H / 32 rounded up.
    """

    arch_settings = {10: (BasicBlock, (1, 1, 1, 1)), **ResNet.arch_settings}
