_base_ = ['./kd_resnet14_conv5_b64-40e_digits-depth.py', '../_base_/distillers/at.py']
from crd_plugin.fragments import join

model = join(_base_.pair, _base_.kd, _base_.at)
