_base_ = [
    '../_base_/settings/cifar100_b64-240e.py',
    '../_base_/pairs/resnet50_vgg8_cifar100.py',
    '../_base_/distillers/lskd.py',
]
from crd_plugin.fragments import join

model = join(_base_.pair, _base_.lskd)
