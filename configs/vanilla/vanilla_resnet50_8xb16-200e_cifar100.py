_base_ = [
    '../_base_/settings/cifar100_8xb16-200e.py',
    '../_base_/pairs/resnet50_resnet18_cifar100.py',
]
model = _base_.pair.teacher
