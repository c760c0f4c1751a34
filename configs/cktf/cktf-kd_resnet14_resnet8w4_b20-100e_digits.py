_base_ = [
    './cktf_resnet14_resnet8w4_b20-100e_digits.py',
    '../_base_/distillers/kd.py',
]
from crd_plugin.fragments import join

model = join(_base_.pair, _base_.cktf, _base_.kd)
