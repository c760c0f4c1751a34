_base_ = [
    '../_base_/settings/digits_b20-100e.py',
    '../_base_/pairs/resnet14_resnet8w4_digits.py',
]
model = _base_.pair.teacher
