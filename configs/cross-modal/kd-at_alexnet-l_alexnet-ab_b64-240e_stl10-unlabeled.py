_base_ = ['./kd_alexnet-l_alexnet-ab_b64-240e_stl10-unlabeled.py', '../_base_/distillers/at.py']
from crd_plugin.fragments import join

model = join(_base_.pair, _base_.kd, _base_.at)
