_base_ = [
    '../_base_/settings/digits_b20-100e.py',
    '../_base_/pairs/resnet14_resnet8w4_digits.py',
    '../_base_/distillers/online_kd.py',
]
model = dict(_base_.online_kd, architecture=_base_.pair.architecture, branch_from='backbone.layer3')
