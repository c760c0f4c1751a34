_base_ = [
    '../_base_/default_runtime.py',
    '../_base_/datasets/cifar100.py',
    '../_base_/schedules/cifar_b64-240e.py',
    '../_base_/pairs/vgg13_vgg8_cifar100.py',
    '../_base_/distillers/pkt.py',
]
model = dict(architecture=_base_.student, teacher=_base_.teacher, teacher_ckpt=_base_.teacher_ckpt)
