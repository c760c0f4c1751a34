_base_ = [
    '../_base_/settings/cifar10_8xb16-200e.py',
    '../_base_/pairs/wrn22-4_wrn16-2_cifar10.py',
]
model = _base_.pair.teacher
