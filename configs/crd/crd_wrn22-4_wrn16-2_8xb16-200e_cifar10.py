_base_ = [
    '../_base_/settings/cifar10_8xb16-200e.py',
    '../_base_/pairs/wrn22-4_wrn16-2_cifar10.py',
    '../_base_/distillers/crd.py',
]
from crd_plugin.fragments import join

model = join(_base_.pair, _base_.crd)
