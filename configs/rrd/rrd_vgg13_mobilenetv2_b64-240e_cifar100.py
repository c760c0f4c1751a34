_base_ = [
    '../_base_/settings/cifar100_b64-240e_lr001.py',
    '../_base_/pairs/vgg13_mobilenetv2_cifar100.py',
    '../_base_/distillers/rrd.py',
]
from crd_plugin.fragments import join

model = join(_base_.pair, _base_.rrd)
