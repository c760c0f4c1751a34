_base_ = [
    '../_base_/default_runtime.py',
    '../_base_/datasets/cifar10.py',
    '../_base_/schedules/cifar_8xb16-200e.py',
    '../_base_/pairs/resnet50_resnet18_cifar10.py',
    '../_base_/distillers/crd.py',
]
model = dict(architecture=_base_.student, teacher=_base_.teacher, teacher_ckpt=_base_.teacher_ckpt)
