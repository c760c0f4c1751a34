_base_ = [
    '../_base_/settings/cifar100_b64-240e.py',
    '../_base_/pairs/wrn40-2_wrn16-2_cifar100.py',
    '../_base_/distillers/crd_ensemble.py',
]
from crd_plugin.fragments import join, seeds

model = join(seeds(_base_.pair, 2), _base_.crd)
