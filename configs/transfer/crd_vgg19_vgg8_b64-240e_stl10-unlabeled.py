_base_ = [
    '../_base_/transfer/distil.py',
    '../_base_/pairs/vgg19_vgg8_tiny-imagenet.py',
    '../_base_/transfer/crd.py',
]
model = dict(
    type='crd_plugin.FrozenTeacherDistill',
    architecture=_base_.student,
    teacher=_base_.teacher,
    teacher_ckpt=_base_.teacher_ckpt,
    calculate_student_loss=False,
    distiller=_base_.distiller,
)
