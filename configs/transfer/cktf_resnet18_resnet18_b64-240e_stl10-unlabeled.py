_base_ = [
    '../_base_/transfer/distil.py',
    '../_base_/transfer/resnet18_resnet18.py',
    '../_base_/transfer/cktf.py',
]
model = dict(
    type='crd_plugin.FrozenTeacherDistill',
    architecture=_base_.student,
    teacher=_base_.teacher,
    teacher_ckpt=_base_.teacher_ckpt,
    calculate_student_loss=False,
    distiller=_base_.distiller,
)
