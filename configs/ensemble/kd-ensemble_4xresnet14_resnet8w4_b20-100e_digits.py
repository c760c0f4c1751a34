_base_ = [
    '../_base_/settings/digits_b20-100e.py',
    '../_base_/pairs/resnet14_resnet8w4_digits.py',
    '../_base_/distillers/kd_ensemble.py',
]
from crd_plugin.fragments import join, seeds

model = join(seeds(_base_.pair, 4), _base_.kd)
