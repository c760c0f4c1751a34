_base_ = [
    '../_base_/settings/digits_b20-100e.py',
    '../_base_/pairs/resnet14_resnet8w4_digits.py',
    '../_base_/distillers/lskd.py',
]
from crd_plugin.fragments import join

model = join(_base_.pair, _base_.lskd)
