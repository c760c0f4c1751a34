_base_ = [
    '../_base_/default_runtime.py',
    '../_base_/datasets/digits.py',
    '../_base_/schedules/digits_b20-30e-100e.py',
    '../_base_/pairs/resnet14_resnet8w4_digits.py',
    '../_base_/distillers/ab.py',
]
model = dict(architecture=_base_.student, teacher=_base_.teacher, teacher_ckpt=_base_.teacher_ckpt)
