_base_ = [
    '../_base_/settings/cifar100_b64-240e.py',
    '../_base_/pairs/resnet110_resnet32_cifar100.py',
    '../_base_/distillers/crd_infonce_class.py',
]
from crd_plugin.fragments import join

model = join(_base_.pair, _base_.crd)
