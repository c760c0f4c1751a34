_base_ = [
    '../_base_/settings/nyu-depth_b16-200e.py',
    '../_base_/pairs/resnet50_conv5_nyu-depth.py',
    '../_base_/distillers/kd_unlabeled.py',
    '../_base_/distillers/at.py',
]
from crd_plugin.fragments import join
model = join(_base_.pair, _base_.kd, _base_.at)
