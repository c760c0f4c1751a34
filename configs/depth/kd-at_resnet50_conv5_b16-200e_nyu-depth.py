_base_ = ['./kd_resnet50_conv5_b16-200e_nyu-depth.py', '../_base_/distillers/at.py']
from crd_plugin.fragments import join

model = join(_base_.pair, _base_.kd, _base_.at)
