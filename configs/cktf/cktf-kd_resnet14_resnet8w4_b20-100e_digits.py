_base_ = [
    './cktf_resnet14_resnet8w4_b20-100e_digits.py',
    '../_base_/distillers/with_kd.py',
]
model = dict(distiller=_base_.with_kd)
