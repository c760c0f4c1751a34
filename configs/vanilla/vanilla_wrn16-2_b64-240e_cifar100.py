_base_ = [
    '../_base_/settings/cifar100_b64-240e.py',
    '../_base_/pairs/wrn40-2_wrn16-2_cifar100.py',
]
model = _base_.pair.architecture
