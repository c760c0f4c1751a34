_base_ = [
    '../_base_/transfer/distil.py',
    '../_base_/transfer/vgg19_vgg19.py',
    '../_base_/transfer/kd.py',
]
model = dict(
    type='crd_plugin.FrozenTeacherDistill',
    architecture=_base_.student,
    teacher=_base_.teacher,
    teacher_ckpt=_base_.teacher_ckpt,
    calculate_student_loss=False,
    distiller=_base_.distiller,
)
