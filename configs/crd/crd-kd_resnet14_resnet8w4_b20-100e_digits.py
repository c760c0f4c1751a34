_base_ = [
    './crd_resnet14_resnet8w4_b20-100e_digits.py',
    '../_base_/distillers/kd.py',
]
from crd_plugin.fragments import join

model = join(_base_.pair, _base_.crd, _base_.kd)
