_base_ = [
    '../_base_/settings/cifar100_8xb16-200e.py',
    '../_base_/pairs/dinov3-vits16_resnet18_cifar100.py',
    '../_base_/distillers/crd.py',
]
from crd_plugin.fragments import join

model = join(_base_.pair, _base_.crd)
