_base_ = [
    '../_base_/settings/cifar100_b64-240e.py',
    '../_base_/pairs/wrn40-2_wrn40-1_cifar100.py',
    '../_base_/distillers/dkd.py',
]
from crd_plugin.fragments import join

model = join(_base_.pair, _base_.dkd)
