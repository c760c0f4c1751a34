_base_ = [
    '../_base_/settings/cifar10_8xb16-200e.py',
    '../_base_/pairs/resnet50_resnet18_cifar10.py',
]
model = _base_.pair.teacher
