"""Backbones of the distillation literature that mmpretrain lacks."""
from .resnet_cifar import CIFARResNet

__all__ = ['CIFARResNet']
