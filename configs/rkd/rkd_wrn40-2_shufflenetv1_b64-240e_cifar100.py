_base_ = [
    '../_base_/default_runtime.py',
    '../_base_/datasets/cifar100.py',
    '../_base_/schedules/cifar_b64-240e_lr001.py',
    '../_base_/pairs/wrn40-2_shufflenetv1_cifar100.py',
    '../_base_/distillers/rkd.py',
]
model = dict(architecture=_base_.student, teacher=_base_.teacher, teacher_ckpt=_base_.teacher_ckpt)
