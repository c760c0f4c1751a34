_base_ = ['./kd_resnet8-l_resnet8-ab_b50-20e_photos-unlabeled.py', '../_base_/distillers/at.py']
from crd_plugin.fragments import join

model = join(_base_.pair, _base_.kd, _base_.at)
