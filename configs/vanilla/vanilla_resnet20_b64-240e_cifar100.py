_base_ = [
    '../_base_/settings/cifar100_b64-240e.py',
    '../_base_/pairs/resnet56_resnet20_cifar100.py',
]
model = _base_.pair.architecture
