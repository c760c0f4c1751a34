"""Backbones of the distillation literature that mmpretrain lacks."""

from .cifar_zoo import CIFAR_ZOO, build_cifar_classifier_cfg, find_cifar_name
from .four_stage_resnet_cifar import CIFARFourStageResNet
from .mobilenet_v2_cifar import CIFARMobileNetV2
from .resnet_cifar import CIFARResNet
from .resnet_imagenet import ImageNetResNet
from .shufflenet_v1_cifar import CIFARShuffleNetV1
from .shufflenet_v2_cifar import CIFARShuffleNetV2
from .vgg_cifar import CIFARVGG
from .wide_resnet_cifar import CIFARWideResNet

__all__ = [
    'CIFARFourStageResNet',
    'CIFARMobileNetV2',
    'CIFARResNet',
    'CIFARShuffleNetV1',
    'CIFARShuffleNetV2',
    'CIFARVGG',
    'CIFARWideResNet',
    'CIFAR_ZOO',
    'ImageNetResNet',
    'build_cifar_classifier_cfg',
    'find_cifar_name',
]
