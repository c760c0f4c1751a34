_base_ = [
    '../_base_/settings/cifar100_8xb16-200e.py',
    '../_base_/pairs/wrn22-4_wrn16-2_cifar100.py',
]
model = _base_.pair.teacher
