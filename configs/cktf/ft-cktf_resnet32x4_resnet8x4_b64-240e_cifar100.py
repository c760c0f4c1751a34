_base_ = [
    '../_base_/default_runtime.py',
    '../_base_/datasets/cifar100.py',
    '../_base_/schedules/cifar_b64-30e-240e_init001.py',
    '../_base_/pairs/resnet32x4_resnet8x4_cifar100.py',
    '../_base_/distillers/ft.py',
    '../_base_/distillers/with_cktf_second.py',
]
model = dict(
    architecture=_base_.student,
    teacher=_base_.teacher,
    teacher_ckpt=_base_.teacher_ckpt,
    distiller=_base_.with_cktf,
)
