_base_ = [
    '../_base_/settings/cifar100_b64-240e.py',
    '../_base_/pairs/vgg13_vgg8_cifar100.py',
    '../_base_/distillers/crd.py',
]
from crd_plugin.fragments import join

model = join(_base_.pair, _base_.crd)
