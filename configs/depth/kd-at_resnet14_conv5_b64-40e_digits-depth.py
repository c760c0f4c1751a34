_base_ = [
    '../_base_/settings/digits-depth_b64-40e.py',
    '../_base_/pairs/resnet14_conv5_digits-depth.py',
    '../_base_/distillers/kd_unlabeled.py',
    '../_base_/distillers/at.py',
]
from crd_plugin.fragments import join
model = join(_base_.pair, _base_.kd, _base_.at)
