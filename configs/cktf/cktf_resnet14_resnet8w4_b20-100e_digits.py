_base_ = [
    '../_base_/default_runtime.py',
    '../_base_/datasets/digits.py',
    '../_base_/schedules/digits_b20-100e.py',
    '../_base_/pairs/resnet14_resnet8w4_digits.py',
    '../_base_/distillers/cktf.py',
]
model = dict(
    architecture=_base_.student,
    teacher=_base_.teacher,
    teacher_ckpt=_base_.teacher_ckpt,
    input_shape=(3, 16, 16),
    # K / N = 0.32 as published (16,384 of 50,000)
    distiller=dict(distill_losses=dict(loss_cktf=dict(num_negatives=32))),
)
