"""Backbones of the distillation literature that mmpretrain lacks."""

from .cifar_zoo import CIFAR_ZOO, build_cifar_classifier_cfg, find_cifar_name
from .mobilenet_v2_cifar import CIFARMobileNetV2
from .plain_conv_nets import HalfAlexNet, PlainConvNet
from .plain_network import LogitsHead, plain_network
from .resnet import CIFARFourStageResNet, CIFARResNet, ImageNetResNet
from .shufflenet_cifar import CIFARShuffleNetV1, CIFARShuffleNetV2
from .timm_teacher import TimmTeacher
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
    'HalfAlexNet',
    'ImageNetResNet',
    'LogitsHead',
    'PlainConvNet',
    'TimmTeacher',
    'build_cifar_classifier_cfg',
    'find_cifar_name',
    'plain_network',
]
